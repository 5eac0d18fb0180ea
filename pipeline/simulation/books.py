"""The books of a simulation: tasks that only take time, and events without files."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import cast

from pipeline.estimate import Share, share_of
from pipeline.events import (
    Event,
    Gathered,
    LabelFailed,
    Labelled,
    Rejected,
    Selected,
    TaskFailed,
    Trained,
    Walked,
    Work,
)
from pipeline.plan import picks_allowed
from pipeline.recording import Finished
from pipeline.records import Cause, GateReport, Split, Task, Timing
from pipeline.requests import Request
from pipeline.settings.campaign import CampaignSettings
from pipeline.simulation.durations import Durations, Segment
from pipeline.simulation.made_up import NOWHERE, Fate, MadeUpResult, MadeUpTask
from pipeline.simulation.measured import epochs_of, known_labels
from pipeline.splits import split_in
from pipeline.state import CampaignState
from pipeline.streaming import kept_at_most, picks_wanted
from pipeline.tasks import Job


@dataclass(slots=True)
class SimulatedBooks:
    """Makes tasks and events; writes nothing.

    Args:
        settings: of the campaign.
        durations: how long tasks take and what they bring.
        seed: each task has its own random numbers, from this and its name: campaigns on machines that differ share them.

    Attributes:
        lost: how often a worker was lost with a task, by its name.
        counts: events by their kind.
        segments: of each batch of walkers the present segment, and how much of it is over, 0 to 1.
    """

    settings: CampaignSettings
    durations: Durations
    seed: int
    lost: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    segments: dict[int, tuple[Segment, float]] = field(default_factory=dict)
    _shares: dict[Work, Share] = field(init=False)

    def __post_init__(self) -> None:
        self._shares = {work: share_of(work.value, self.settings.site) for work in Work}

    def make(self, request: Request, state: CampaignState) -> Job:
        """A task that takes as long as one of its kind, and how it will end."""
        # neither the driver nor the simulated workers look into a task: what stands for one need not be one
        return Job(request, cast(Task, self._made(request, state)))

    def record(self, finished: Sequence[Finished], state: CampaignState, *, now: float) -> list[Event]:
        """Events of jobs that ended, in the order of the real ones: labels first."""
        ordered = sorted(finished, key=lambda one: (one.job.request.work is not Work.LABEL, one.job.request))
        return [self._event(one, state, now) for one in ordered]

    def gather(self, state: CampaignState, *, now: float) -> Gathered:
        """Labels that no model knows, counted."""
        number = state.round if state.flow is None else state.versions
        return Gathered(time=now, round=number, file=NOWHERE, count=len(state.arrived) + len(state.adopted))

    def append(self, events: Sequence[Event]) -> None:
        """Count them."""
        self.counts.update(event.kind for event in events)

    def tidy(self, state: CampaignState) -> None:
        """There is nothing to remove."""

    def clear(
        self, finished: Sequence[Finished], events: Sequence[Event], before: CampaignState, *, now: float
    ) -> None:
        """There is nothing to remove."""

    def check_room(self) -> None:
        """There is always room."""

    def _made(self, request: Request, state: CampaignState) -> MadeUpTask:
        durations, learned, name = self.durations, known_labels(state), request.name
        random = Random(f"{self.seed} {name} {self.lost[name]}")  # another try is not lost as the one before
        version = state.models[-1].version if state.models else 0
        fate = Fate.LOST if durations.lost and random.random() < durations.lost else Fate.DONE
        if fate is Fate.LOST:
            self.lost[name] += 1
        match request.work:
            case Work.WALK:
                return self._walk(request, learned, version, fate, random)
            case Work.SELECT:
                return self._select(request, state, version, fate, random)
            case Work.LABEL:
                if fate is Fate.DONE and durations.failed and random.random() < durations.failed:
                    fate = Fate.FAILED
                seconds = durations.label.seconds(random, labels=learned, epochs=0)
                return MadeUpTask(request=request, seconds=seconds, fate=fate)
            case Work.TRAIN:
                chance = durations.rejected.draw(random, state.learned)
                if fate is Fate.DONE and state.models and random.random() < chance:
                    fate = Fate.FAILED
                epochs = epochs_of(self.settings, is_first=not state.models, attempt=request.leg)
                seconds = durations.train.seconds(random, labels=state.learned, epochs=epochs)
                return MadeUpTask(request=request, seconds=seconds, fate=fate, version=request.item)

    def _walk(self, request: Request, learned: int, version: int, fate: Fate, random: Random) -> MadeUpTask:
        if not request.leg:
            self.segments[request.item] = self.durations.walk.draw(random, learned), 0.0
        segment, over = self.segments[request.item]
        left_s = (1.0 - over) * segment.seconds
        leg_s = min(left_s, self.settings.site.walk_task_s)
        part = (1.0 - over) * (leg_s / left_s if left_s else 1.0)
        before, after = (round(segment.candidates * share) for share in (over, over + part))
        return MadeUpTask(
            request=request, seconds=leg_s, fate=fate, version=version, candidates=after - before, part=part
        )

    def _select(self, request: Request, state: CampaignState, version: int, fate: Fate, random: Random) -> MadeUpTask:
        flow = state.flow
        if flow is None:
            candidates, left, waiting = sum(walk.count for walk in state.walked), 0, 0
            wanted = keep = picks_allowed(state, self.settings)
        else:
            candidates, waiting = flow.reading_count, flow.waiting
            left = flow.pool - flow.fresh_count - flow.reading_count
            wanted, keep = picks_wanted(flow, self.settings), kept_at_most(self.settings)
        learned = known_labels(state)
        return MadeUpTask(
            request=request,
            seconds=self.durations.select.seconds(random, labels=learned, epochs=0),
            known=self.durations.known.draw(random, learned),
            fate=fate,
            version=version,
            candidates=candidates,
            left=left,
            waiting=waiting,
            wanted=wanted,
            keep=keep,
        )

    def _event(self, one: Finished, state: CampaignState, now: float) -> Event:
        task, result = cast(MadeUpTask, one.job.task), cast(MadeUpResult | None, one.result)
        request = task.request
        timing = None if result is None else _timing(result)
        if request.work is Work.LABEL:
            return self._label(task, timing, one.cause, state, now)
        if timing is None:
            return TaskFailed(time=now, work=request.work, round=request.round, task=request.name, reason=one.reason)
        share = self._shares[request.work]
        core_s, gpu_s = share.cores * timing.wall_s, share.gpus * timing.wall_s
        match request.work:
            case Work.WALK:
                return self._walked(task, timing, core_s, gpu_s, now)
            case Work.SELECT:
                return self._selected(task, timing, core_s, gpu_s, now)
            case _:
                return _trained(task, timing, core_s, gpu_s, state, now)

    def _label(
        self, task: MadeUpTask, timing: Timing | None, cause: Cause, state: CampaignState, now: float
    ) -> Labelled | LabelFailed:
        request = task.request
        if state.flow is not None:
            number = state.flow.open[request.round, request.item].number
        else:
            number = state.first_number + request.item
        system = self.settings.systems[number % len(self.settings.systems)].name
        core_s = 0.0 if timing is None else self._shares[Work.LABEL].cores * timing.wall_s
        if timing is None or task.fate is Fate.FAILED:
            return LabelFailed(
                time=now,
                round=request.round,
                item=request.item,
                number=number,
                identity=request.name,
                system=system,
                reason="a simulated failure",
                scratch="",
                timing=timing,
                cause=cause if timing is None else Cause.NOT_CONVERGED,
                core_s=core_s,
            )
        # nothing but the beginning of the first training looks at it
        is_early = not state.models
        split = split_in(number, self.settings) if is_early else Split.TRAIN
        return Labelled(
            time=now,
            round=request.round,
            item=request.item,
            number=number,
            identity=request.name,
            system=system,
            split=split,
            file=NOWHERE,
            row=0,
            timing=timing,
            core_s=core_s,
        )

    def _walked(self, task: MadeUpTask, timing: Timing, core_s: float, gpu_s: float, now: float) -> Walked:
        request, walkers = task.request, self.settings.walkers
        segment, over = self.segments[request.item]
        over = over + task.part
        steps = round(task.part * walkers.segment_steps)
        left = 0 if over > 1.0 - 1e-9 else max(1, walkers.segment_steps - round(over * walkers.segment_steps))
        self.segments[request.item] = segment, over
        return Walked(
            time=now,
            round=request.round,
            item=request.item,
            leg=request.leg,
            version=task.version,
            candidates=NOWHERE,
            walkers=NOWHERE,
            count=task.candidates,
            stops={},
            walker_steps=steps * walkers.batch,
            steps=steps,
            steps_left=left,
            born=(),
            timing=timing,
            core_s=core_s,
            gpu_s=gpu_s,
        )

    def _selected(self, task: MadeUpTask, timing: Timing, core_s: float, gpu_s: float, now: float) -> Selected:
        random = Random(f"{self.seed} {task.request.name} dropped")
        known = _part(task.known, task.candidates, random)
        stale = _part(self.durations.stale, task.left, random)
        worth = task.candidates - known + task.left - stale
        kept = min(worth, task.keep)
        return Selected(
            time=now,
            round=task.request.round,
            picks=NOWHERE,
            count=min(kept, task.wanted),
            dropped={"known": known + stale, "surplus": worth - kept},
            timing=timing,
            kept=kept,
            version=task.version,
            saved=min(stale, task.waiting),
            core_s=core_s,
            gpu_s=gpu_s,
        )


def _part(share: float, count: int, random: Random) -> int:
    """So many of them, rounded at random so that the mean is right."""
    whole = share * count
    return min(count, int(whole) + (random.random() < whole - int(whole)))


def _timing(result: MadeUpResult) -> Timing:
    return Timing(started=result.started, ended=result.ended, cpu_s=0.0, host="simulated")


def _trained(
    task: MadeUpTask, timing: Timing, core_s: float, gpu_s: float, state: CampaignState, now: float
) -> Trained | Rejected:
    request = task.request
    if task.fate is Fate.FAILED:
        gate = GateReport(
            passed=False,
            reason="a simulated refusal",
            parent=None,
            model=None,
            walks=0,
            parent_unsound=0,
            model_unsound=0,
        )
        return Rejected(
            time=now,
            round=request.round,
            version=request.item,
            attempt=request.leg,
            gate=gate,
            fresh=None,
            epochs=0,
            timing=timing,
            core_s=core_s,
            gpu_s=gpu_s,
        )
    return Trained(
        time=now,
        round=request.round,
        version=request.item,
        file=NOWHERE,
        labels=state.learned,
        fresh=None,
        train=None,
        validation=None,
        factors=(),
        epochs=0,
        history=(),
        timing=timing,
        attempt=request.leg,
        core_s=core_s,
        gpu_s=gpu_s,
    )
