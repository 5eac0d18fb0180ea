"""What a campaign spends, and how fast, from its events."""

import math
from array import array
from dataclasses import dataclass, replace

from pipeline.events import Event, LabelFailed, Labelled, Rejected, Requeued, Selected, Trained, Walked
from pipeline.sessions import Sessions

RECENT_LABELS = 0.25
"""The pace of a stream is that of the last labels, as a share of all."""
RECENT_MODELS = 5
"""The pace of rounds is that of so many whole ones."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What was spent at one moment: wall time of drivers, labels that came (also those tried again), core and GPU seconds."""

    wall_s: float
    labels: float
    core_s: float
    gpu_s: float


class History:
    """How much was spent when each label and each model came, folded from events; four numbers for each.

    Attributes:
        answered: labels that came, those counted that were tried again since: it never falls, so that it has a pace.
        requeued: labels that were tried again.
    """

    def __init__(self) -> None:
        self.sessions = Sessions()
        self.answered = self.requeued = 0
        self.core_s = self.gpu_s = 0.0
        self._answers = array("d")
        self._models = array("d")

    def absorb(self, event: Event) -> None:
        """Take note of an event."""
        self.sessions.absorb(event)
        if isinstance(event, Walked | Selected | Trained | Rejected):
            self.gpu_s += event.gpu_s
        match event:
            case Labelled() | LabelFailed():
                self.core_s += event.core_s
                self.answered += 1
                self._answers.extend(self._mark(event.time))
            case Walked() | Selected() | Rejected():
                self.core_s += event.core_s
            case Trained():
                self.core_s += event.core_s
                self._models.extend(self._mark(event.time))
            case Requeued():
                self.requeued += len(event.failures)
            case _:
                pass

    def _mark(self, time: float) -> tuple[float, float, float, float]:
        return self.sessions.wall_s(time), float(self.answered), self.core_s, self.gpu_s

    def present(self, time: float) -> Mark:
        """What is spent at a time of the newest driver, after its last event."""
        return Mark(*self._mark(time))

    @property
    def models(self) -> list[Mark]:
        """What was spent when each model came."""
        return [Mark(*self._models[k : k + 4]) for k in range(0, len(self._models), 4)]

    def answer(self, index: int) -> Mark:
        """One of the labels, counted from 0 or, negative, from the end."""
        index %= self.answered
        return Mark(*self._answers[4 * index : 4 * index + 4])

    @property
    def labels(self) -> int:
        """Labels that are spent: those that came, without those that are tried again."""
        return self.answered - self.requeued


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What is spent and made per second of wall time: labels, models, core and GPU seconds."""

    labels: float
    models: float
    core_s: float
    gpu_s: float


def pace_of(history: History, present: Mark, *, is_stream: bool) -> Pace | None:
    """What is spent per second lately; None while there is too little to tell.

    Of rounds, over whole ones. Of a stream, labels over the last quarter of them, up to the present: a standstill counts; not
    over the time before its first model, when walkers were not there.
    """
    models = history.models
    recent = models[-1 - min(RECENT_MODELS, len(models) - 1) :] if models else []
    if not is_stream:
        return _between(recent[0], recent[-1], len(recent) - 1) if len(recent) > 1 else None
    if history.answered < 2:
        return None
    begin = history.answer(-1 - math.ceil(RECENT_LABELS * (history.answered - 1)))
    if models and begin.wall_s < models[0].wall_s <= history.answer(-2).wall_s:
        begin = models[0]
    pace = _between(begin, present, 0)
    if pace is None or len(recent) < 2:
        return pace
    # what comes in portions is counted over whole ones, unless the next one is late
    gap = (recent[-1].wall_s - recent[0].wall_s) / (len(recent) - 1)
    is_late = present.wall_s - recent[-1].wall_s > gap
    whole = _between(recent[0], present if is_late else recent[-1], len(recent) - 1)
    return pace if whole is None else replace(whole, labels=pace.labels)


def _between(begin: Mark, end: Mark, models: int) -> Pace | None:
    seconds = end.wall_s - begin.wall_s
    if seconds <= 0:
        return None
    return Pace(
        labels=max(0.0, end.labels - begin.labels) / seconds,
        models=models / seconds,
        core_s=(end.core_s - begin.core_s) / seconds,
        gpu_s=(end.gpu_s - begin.gpu_s) / seconds,
    )
