"""What a person wants to know of a running campaign, folded from its events."""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from apps.cli.console import duration
from pipeline.events import (
    Created,
    EndReason,
    Event,
    LabelFailed,
    Labelled,
    Noticed,
    Rejected,
    Requeued,
    Resumed,
    Selected,
    Stopped,
    Submitted,
    TaskFailed,
    TaskLost,
    Trained,
    Walked,
    Work,
)
from pipeline.flow import Flow
from pipeline.fold import apply, begin
from pipeline.forecast import Forecast, forecast
from pipeline.pace import History
from pipeline.plan import batches
from pipeline.settings import CampaignSettings
from pipeline.state import CampaignState

MOST_NOTICES = 5
"""So many of the newest notices are remembered."""
MOST_REFUSALS = 3
"""So many of the newest models that the gate refused are remembered."""
BUDGET = "labels.budget"
PHASES = {
    Work.LABEL: "labelling",
    Work.TRAIN: "training",
    Work.WALK: "walking",
    Work.SELECT: "selecting",
}


@dataclass(slots=True)
class Board:
    """The state of a campaign in a few numbers.

    Attributes:
        state: all that the policy knows; history: what was spent when.
        settings: those in force.
        budget: reference calculations allowed; labels: made; failed: of these, without a result, by cause.
        is_paused: whether labelling paused since one cause hit too many labels.
        round: current round; stage: the newest kind of task that was asked for.
        done, total: tasks of the stage; of walks, which are cut into legs, MD steps of each slot, over all batches. Both mean
            nothing in a stream, where several kinds are in flight.
        version: newest model; validation, fresh: force RMSE in eV/Å of the newest model on its validation labels, and of
            the one before on labels that were new to it.
        first_time, last_time: of the events, seconds since the epoch.
        notices: the newest ones, as time and line.
        dropped: candidates that selections dropped, by reason; saved: that were waiting for a label then.
        refused: models that the gate refused; refusals: the newest of them.
    """

    state: CampaignState | None = None
    history: History = field(default_factory=History)
    settings: CampaignSettings | None = None
    budget: int = 0
    labels: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    is_paused: bool = False
    round: int = 0
    stage: str = "starting"
    done: int = 0
    total: int = 0
    version: int = 0
    validation: float | None = None
    fresh: float | None = None
    walker_steps: int = 0
    ended: str = ""
    first_time: float = 0.0
    last_time: float = 0.0
    wall_s: dict[str, float] = field(default_factory=dict)
    notices: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=MOST_NOTICES))
    dropped: Counter[str] = field(default_factory=Counter)
    saved: int = 0
    refused: int = 0
    refusals: deque[Rejected] = field(default_factory=lambda: deque(maxlen=MOST_REFUSALS))
    _segment: int = 0
    _batches: int = 0
    _phase: tuple[Work, int] | None = None
    _outstanding: int = 0
    _made: dict[int, int] = field(default_factory=dict)

    def absorb(self, events: Iterable[Event]) -> None:
        """Take note of events, in their order."""
        for event in events:
            self.first_time = self.first_time or event.time
            self.last_time = event.time
            self.state = begin(event) if self.state is None else apply(self.state, event)
            self.history.absorb(event)
            self._absorb(event)

    def _absorb(self, event: Event) -> None:
        match event:
            case Created() | Resumed():
                self._begin(CampaignSettings.model_validate(event.settings))
            case Submitted():
                self._submit(event)
            case Walked():
                self._made[event.item] = self._segment - event.steps_left  # also when it ended early
                self.done = sum(self._made.values())
                self.walker_steps += event.walker_steps
                self._add_time(Work.WALK, event.timing.wall_s)
            case Labelled() | LabelFailed():
                self.done += 1
                self._outstanding -= 1
                self.labels += 1
                if isinstance(event, LabelFailed):
                    self.failed[event.cause.value] += 1
                self._add_time(Work.LABEL, event.timing.wall_s if event.timing else 0.0)
            case Requeued():
                self.labels -= len(event.failures)  # they are asked for again
                self.failed -= Counter(failure.cause.value for failure in event.failures)
            case Selected() | Rejected():
                self._judge(event)
            case Trained():
                self.version = event.version
                self.validation = event.validation.force_rmse if event.validation else None
                self.fresh = event.fresh.force_rmse if event.fresh else None
                self._add_time(Work.TRAIN, event.timing.wall_s)
            case TaskFailed():
                self.ended = f"{event.work.value} failed: {event.reason}"
            case TaskLost() | Noticed():
                self.notices.append((event.time, notice_line(event)))
            case Stopped():
                self.ended = event.message or event.reason.value
                self.is_paused = event.reason is EndReason.LABELS_PAUSED
                self.stage = "stopped"

    def _judge(self, event: Selected | Rejected) -> None:
        """Candidates or a model were found wanting."""
        if isinstance(event, Selected):
            self.dropped.update(event.dropped)
            self.saved += event.saved
            self._add_time(Work.SELECT, event.timing.wall_s if event.timing else 0.0)
        else:
            self.refused += 1
            self.refusals.append(event)
            self._add_time(Work.TRAIN, event.timing.wall_s)

    def _begin(self, settings: CampaignSettings) -> None:
        self.settings = settings
        self.budget = settings.labels.budget
        self._segment, self._batches = settings.walkers.segment_steps, batches(settings)
        self._outstanding = 0
        self.ended, self.is_paused = "", False

    def _submit(self, event: Submitted) -> None:
        if self._phase != (event.work, event.round):
            self._phase = (event.work, event.round)
            self.done = self._outstanding = 0
            self._made.clear()
        self.stage, self.round = PHASES[event.work], event.round
        self._outstanding += len(event.tasks)
        self.total = self._segment * self._batches if event.work is Work.WALK else self.done + self._outstanding

    def _add_time(self, work: Work, seconds: float) -> None:
        self.wall_s[work.value] = self.wall_s.get(work.value, 0.0) + seconds

    @property
    def flow(self) -> Flow | None:
        """What is under way in a stream; None with rounds."""
        return self.state.flow if self.state is not None else None

    @property
    def phase(self) -> str:
        """What is being done; in a stream, all that is."""
        if self.flow is None or self.stage in ("starting", "stopped"):
            return self.stage
        return f"streaming: {self._in_flight(self.flow)}"

    @property
    def is_training(self) -> bool:
        """Whether a training is asked for that is not over."""
        return self.stage == PHASES[Work.TRAIN] if self.flow is None else self.flow.training

    def _in_flight(self, flow: Flow) -> str:
        assert self.state is not None
        labels, walks = len(flow.open), flow.batches - len(flow.idle)
        tasks = [_count(labels, "label"), _count(walks, "walk task")]
        several = " and ".join(text for text in tasks if text)
        parts = [f"{several} in flight"] if several else []
        if flow.training:
            anew = " anew" if self.state.attempt else ""
            parts.append(f"training v{self.state.versions + 1}{anew}")
        if flow.selecting is not None:
            parts.append("selecting")
        waiting = f"{_count(flow.pool, 'candidate')} wait{'s' if flow.pool == 1 else ''}" if flow.pool else ""
        return "; ".join(text for text in (", ".join(parts) or "nothing in flight", waiting) if text)

    def recent_notices(self, now: float, within_s: float) -> list[tuple[float, str]]:
        """Time and line of the newest notices, oldest first."""
        return [(when, line) for when, line in self.notices if now - when <= within_s]

    def summary(self) -> str:
        """One line: round, labels, model and its errors."""
        parts = [f"round {self.round}"] if self.flow is None else []
        parts.append(f"{self.labels}/{self.budget} labels")
        if self.failed:
            causes = ", ".join(f"{count} {cause}" for cause, count in self.failed.most_common())
            parts.append(f"{self.failed.total()} failed ({causes})")
        if self.version:
            parts.append(f"model {self.version}")
        if self.validation is not None:
            parts.append(f"force error {self.validation:.3g} eV/Å (validation)")
        if self.fresh is not None:
            parts.append(f"{self.fresh:.3g} eV/Å (new structures, previous model)")
        return ", ".join(parts)

    def forecast(self, now: float | None) -> Forecast | None:
        """When each limit of the stop rule is reached; None before the first event.

        Args:
            now: seconds since the epoch where a driver runs; None: none does.
        """
        if self.state is None or self.settings is None:
            return None
        # the clock of another machine may be behind
        moment = self.last_time if now is None else max(now, self.last_time)
        return forecast(self.history, self.state, self.settings, moment)

    def remaining(self, now: float) -> str:
        """Time to the first limit at the present pace; empty while there is no pace yet."""
        found = self.forecast(now)
        first = found.first if found is not None else None
        if first is None or not first.left_s:
            return ""
        return f"about {duration(first.left_s)} to {'the budget' if first.key == BUDGET else first.key}"


def _count(number: int, noun: str) -> str:
    """``1 label``, ``2 labels``; empty for none."""
    return f"{number} {noun}{'s' if number != 1 else ''}" if number else ""


def refusal_line(event: Rejected, state: CampaignState) -> str:
    """Which model the gate refused, why, and what became of it."""
    name = f"v{event.version}" + (" from scratch" if event.attempt else "")
    published = any(model.version == event.version for model in state.models)
    if event.attempt:
        then = "given up, the model before it stays until there are more labels"
    elif published:
        then = "trained anew from scratch and published"
    else:
        then = "it is trained anew from scratch" if state.attempt else "trained anew from scratch"
    return f"{name} refused: {event.gate.reason}; {then}"


def notice_line(event: Noticed | TaskLost) -> str:
    """What happened to the machine, and what to do where a person must act: one line."""
    text = event.text if isinstance(event, Noticed) else f"{event.task}: {event.reason.rstrip('.')}; it is made again"
    line = f"{text.rstrip('.')}. {event.remedy}" if event.remedy else text
    return " ".join(line.split())
