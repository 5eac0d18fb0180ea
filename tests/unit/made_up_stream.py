"""A campaign of events alone, a stream or in rounds, as a driver and its workers might make them, at random."""

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import groupby

from fabricated import TIMING, settings
from test_events import REPORT, SCORES

from pipeline.decisions import Decision, End
from pipeline.events import (
    SCHEMA,
    Created,
    Event,
    Gathered,
    LabelFailed,
    Labelled,
    Rejected,
    Requeued,
    Resumed,
    Selected,
    Submitted,
    TaskLost,
    Trained,
    Walked,
    Work,
)
from pipeline.flow import Flow, Open
from pipeline.fold import apply, begin
from pipeline.plan import picks_allowed
from pipeline.policy import decide
from pipeline.quarantine import quarantined
from pipeline.records import FileRef, Found
from pipeline.requests import Request
from pipeline.settings.campaign import CampaignSettings
from pipeline.splits import split_in
from pipeline.state import CampaignState
from pipeline.streaming import kept_at_most, picks_wanted

SLOTS = 4
STREAM = {
    "schedule": {"kind": "streaming", "pool": 12},
    "labels__budget": 60,
    "labels__recovery": {"pause_share": 1.0},
    "site": {"kind": "local_threads", "walk_slots": 2, "label_slots": SLOTS},
}


def file(name: str) -> FileRef:
    """A file that nobody reads."""
    return FileRef(path=f"shards/{name}.h5", sha256="0" * 64)


@dataclass(kw_only=True)
class MadeUpStream:
    """Tasks end in any order; what they bring is drawn.

    Attributes:
        failing, losing, refusing: how likely a label fails, a task loses its worker, a model does not pass the gate.
        known: share of the candidates that a selection drops.
        least: candidates of a leg, at least.
        error: force RMSE of version v on labels new to it, eV/Å.
    """

    seed: int
    chosen: CampaignSettings = field(default_factory=lambda: settings(**STREAM))
    failing: float = 0.0
    losing: float = 0.0
    refusing: float = 0.0
    known: float = 0.3
    least: int = 0
    error: float = 1.0
    events: list[Event] = field(default_factory=list)
    in_flight: dict[str, Request] = field(default_factory=dict)
    shards: dict[str, list[str]] = field(default_factory=dict)
    made: dict[str, object] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    end: End | None = None

    def __post_init__(self) -> None:
        self.random, self.time, self.name = random.Random(self.seed), 0.0, 0
        plain = self.chosen.model_dump(mode="json")
        created = Created(time=0.0, schema=SCHEMA, settings=plain, digest="", structures="", versions={})
        self.events.append(created)
        self.state: CampaignState = begin(created)

    @property
    def flow(self) -> Flow:
        """What is under way."""
        assert self.state.flow is not None
        return self.state.flow

    def tell(self, event: Event) -> None:
        """One more event, as the driver tells it."""
        self.time += 1.0
        event = replace(event, time=self.time)
        self.events.append(event)
        self.state = apply(self.state, event)

    def of(self, kind: type) -> list:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    def decide(self) -> Decision:
        """The decision, twice the same."""
        first, second = (
            decide(self.state, self.chosen, now=self.time, in_flight=self.in_flight.keys()) for _ in range(2)
        )
        assert first == second
        return first

    def hand_out(self) -> None:
        """What the driver does at a wake-up."""
        decision = self.decide()
        while decision.gather:
            rows = self.state.round_labels
            assert rows
            self.tell(Gathered(time=0.0, round=self._gathering, file=file(f"g{len(self.events)}"), count=len(rows)))
            decision = self.decide()
        self.end = decision.end
        for work, group in groupby(decision.requests if self.end is None else (), key=lambda request: request.work):
            requests = list(group)
            for request in requests:
                assert request.name not in self.in_flight, "asked for twice"
                self.in_flight[request.name] = request
                self.asked[request.name] += 1
            names = tuple(request.name for request in requests)
            self.tell(Submitted(time=0.0, work=work, round=self.state.round, tasks=names))
            if work is Work.SELECT:
                self.made[names[0]] = (*self._pool(), self.state.models[-1].version)
            elif work is Work.WALK:
                self.made.update(dict.fromkeys(names, self.state.models[-1].version))

    @property
    def _gathering(self) -> int:
        return self.state.round if self.state.flow is None else self.state.versions

    def step(self) -> bool:
        """A wake-up: tasks are handed out, one ends. False: the campaign is over."""
        self.hand_out()
        if not self.in_flight:
            assert self.end is not None, "nothing is under way and nothing is asked for"
            return False
        self.finish(self.random.choice(sorted(self.in_flight)))
        return True

    def run(self, most: int = 3000) -> "MadeUpStream":
        """To the end."""
        while self.step():
            assert len(self.events) < most, "it does not end"
        return self

    def take_up(self, chosen: CampaignSettings | None = None) -> None:
        """Another driver; what was in flight is gone."""
        self.chosen = chosen or self.chosen
        self.in_flight.clear()
        self.tell(Resumed(time=0.0, settings=self.chosen.model_dump(mode="json"), host="h", pid=1))

    def requeue(self) -> int:
        """All quarantined labels are tried again by the next driver; how many these are."""
        rows = [row for row in quarantined(self.events) if not row.requeued]
        if rows:
            failures, picks = tuple(row.failure for row in rows), tuple(row.picks for row in rows)
            self.tell(Requeued(time=0.0, failures=failures, picks=picks))
        return len(rows)

    def finish(self, name: str) -> None:
        """A task ends, well or not."""
        request = self.in_flight.pop(name)
        if request.work is not Work.LABEL and self.random.random() < self.losing and self.state.lost.count(name) < 3:
            self.tell(TaskLost(time=0.0, work=request.work, round=request.round, task=name, reason="gone", remedy=""))
            return
        self.tell(
            {Work.WALK: self._walk, Work.SELECT: self._select, Work.LABEL: self._label, Work.TRAIN: self._train}[
                request.work
            ](request)
        )

    def _pool(self) -> tuple[list[str], list[str], int, int]:
        """Candidates that were waiting for a label, all others that a selection sees, and how many it picks and keeps."""
        flow = self.state.flow
        if flow is None:
            found = [name for walk in self.state.walked for name in self.shards[walk.candidates.path]]
            return [], found, (count := picks_allowed(self.state, self.chosen)), count
        left = flow.left
        kept = [] if left is None else [self.shards[left.file.path][row] for row in left.rows]
        new = [name for ref in flow.reading for name in self.shards[ref.path]]
        wanted = picks_wanted(flow, self.chosen)
        return kept[: flow.waiting], [*kept[flow.waiting :], *new], wanted, kept_at_most(self.chosen)

    def _walk(self, request: Request) -> Walked:
        count = self.random.randint(self.least, 5)
        ref = file(f"c-{request.name}-{len(self.events)}")
        self.shards[ref.path] = [f"found-{self.name + k}" for k in range(count)]
        self.name += count
        steps_left = self.random.choice([0, 0, 5])
        version = self.made[request.name]
        found = {"a": Found(count=count, mean_bound=0.5, cells=(self.random.randrange(4),))} if count else {}
        return Walked(
            time=0.0, round=request.round, item=request.item, leg=request.leg, version=version, candidates=ref,
            walkers=file(f"w{len(self.events)}"), count=count, stops={}, walker_steps=10, steps=5, steps_left=steps_left,
            born=(1, 1), timing=TIMING, found=found, core_s=3.0, gpu_s=2.0,
        )  # fmt: skip

    def _select(self, request: Request) -> Selected:
        waiting, others, wanted, keep, version = self.made[request.name]
        left = [name for name in [*waiting, *others] if self.random.random() >= self.known]
        saved = len(set(waiting) - set(left))
        left = left[:keep]
        ref = file(f"p{request.round}-{len(self.events)}")
        self.shards[ref.path] = left
        return Selected(
            time=0.0, round=request.round, picks=ref, count=min(wanted, len(left)),
            dropped={}, timing=TIMING, kept=len(left), version=version, saved=saved, core_s=3.0,
        )  # fmt: skip

    def _open(self, request: Request) -> Open:
        state = self.state
        if state.flow is not None:
            return state.flow.open[request.round, request.item]
        return Open(state.first_number + request.item, None if state.selected is None else state.selected.picks)

    def _label(self, request: Request) -> Labelled | LabelFailed:
        opened = self._open(request)
        identity = f"start-{request.item}" if opened.picks is None else self.shards[opened.picks.path][request.item]
        same = {
            "time": 0.0, "round": request.round, "item": request.item, "number": opened.number, "identity": identity,
            "system": "ab"[opened.number % 2], "timing": TIMING, "core_s": 10.0,
        }  # fmt: skip
        if self.random.random() < self.failing:
            return LabelFailed(**same, reason="no", scratch="")
        split = split_in(opened.number, self.chosen)
        return Labelled(**same, split=split, file=file(f"l{len(self.events)}"), row=0)

    def _train(self, request: Request) -> Trained | Rejected:
        same = {"time": 0.0, "round": request.round, "version": request.item, "timing": TIMING, "epochs": 1}
        scores = replace(SCORES, count=8, force_rmse=self.error / request.item) if self.state.models else None
        if self.state.models and self.random.random() < self.refusing:
            return Rejected(**same, attempt=request.leg, gate=REPORT, fresh=scores, gpu_s=5.0)
        return Trained(
            **same, file=file(f"v{request.item}"), labels=self.state.learned, fresh=scores, train=None, validation=None,
            factors=(), history=(), attempt=request.leg, gpu_s=5.0,
        )  # fmt: skip
