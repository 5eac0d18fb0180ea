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
from pipeline.plan import batches
from pipeline.settings import CampaignSettings

MOST_NOTICES = 5
"""So many of the newest notices are remembered."""
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
        budget: reference calculations allowed; labels: made; failed: of these, without a result, by cause.
        is_paused: whether labelling paused since one cause hit too many labels.
        round: current round; phase: what is being done.
        done, total: tasks of the phase; of walks, which are cut into legs, MD steps of each slot, over all batches.
        version: newest model; validation, fresh: force RMSE in eV/Å of the newest model on its validation labels, and of
            the one before on labels that were new to it.
        first_time, last_time: of the events, seconds since the epoch.
        notices: the newest ones, as time and line.
    """

    budget: int = 0
    labels: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    is_paused: bool = False
    round: int = 0
    phase: str = "starting"
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
            case Selected():
                self._add_time(Work.SELECT, event.timing.wall_s if event.timing else 0.0)
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
                self.phase = "stopped"

    def _begin(self, settings: CampaignSettings) -> None:
        self.budget = settings.labels.budget
        self._segment, self._batches = settings.walkers.segment_steps, batches(settings)
        self._outstanding = 0
        self.ended, self.is_paused = "", False

    def _submit(self, event: Submitted) -> None:
        if self._phase != (event.work, event.round):
            self._phase = (event.work, event.round)
            self.done = self._outstanding = 0
            self._made.clear()
        self.phase, self.round = PHASES[event.work], event.round
        self._outstanding += len(event.tasks)
        self.total = self._segment * self._batches if event.work is Work.WALK else self.done + self._outstanding

    def _add_time(self, work: Work, seconds: float) -> None:
        self.wall_s[work.value] = self.wall_s.get(work.value, 0.0) + seconds

    def recent_notices(self, now: float, within_s: float) -> list[tuple[float, str]]:
        """Time and line of the newest notices, oldest first."""
        return [(when, line) for when, line in self.notices if now - when <= within_s]

    def summary(self) -> str:
        """One line: round, labels, model and its errors."""
        parts = [f"round {self.round}", f"{self.labels}/{self.budget} labels"]
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

    def remaining(self, elapsed_s: float, labels_before: int) -> str:
        """Time to the end of the budget at the present pace; empty while there is no pace yet.

        Args:
            elapsed_s: seconds since the pace is measured.
            labels_before: labels there were then.
        """
        made = self.labels - labels_before
        if made <= 0:
            return ""
        return f"about {duration(elapsed_s * (self.budget - self.labels) / made)} to the budget"


def notice_line(event: Noticed | TaskLost) -> str:
    """What happened to the machine, and what to do where a person must act: one line."""
    text = event.text if isinstance(event, Noticed) else f"{event.task}: {event.reason.rstrip('.')}; it is made again"
    line = f"{text.rstrip('.')}. {event.remedy}" if event.remedy else text
    return " ".join(line.split())
