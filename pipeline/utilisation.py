"""How much of their time workers had something to do, and why they had not, from the events of a campaign.

Busy is what tasks say themselves: from their start to their end on the worker. Idle is what the driver saw: workers for which
it had no task, and why. The rest is the way of tasks and results between driver and workers, workers that were not there yet,
and tasks that were lost.
"""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.events import (
    Created,
    Event,
    Idled,
    LabelFailed,
    Labelled,
    Rejected,
    Resumed,
    Selected,
    Submitted,
    TaskFailed,
    TaskLost,
    Trained,
    Walked,
    Work,
)
from pipeline.records import Timing
from pipeline.requests import Request
from pipeline.sessions import Session, Sessions
from pipeline.settings.campaign import CampaignSettings
from pipeline.settings.site import InlineSite, SlurmSite


@dataclass(frozen=True, slots=True)
class Workers:
    """Workers that carry out the same kinds of tasks."""

    name: str
    kinds: tuple[Work, ...]
    slots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What workers did over some time. All in seconds, summed over them.

    Attributes:
        workers: which ones, with the slots in force last.
        slot_s: there were.
        busy_s: with tasks that ended, by kind.
        handed_out_s: with tasks that are not over; some of these may still wait in the machine's queue.
        idle_s: without a task, by reason.
    """

    workers: Workers
    slot_s: float
    busy_s: dict[Work, float]
    handed_out_s: float
    idle_s: dict[str, float]

    @property
    def busy(self) -> float:
        """Share of the time with tasks that ended."""
        return sum(self.busy_s.values()) / self.slot_s if self.slot_s else 0.0

    @property
    def rest_s(self) -> float:
        """Neither busy nor idle: between tasks, without workers, or with tasks that were lost."""
        known = sum(self.busy_s.values()) + self.handed_out_s + sum(self.idle_s.values())
        return max(0.0, self.slot_s - known)


@dataclass(frozen=True, slots=True)
class Utilisation:
    """Of all workers, over all the time that drivers ran, and between the first and the last label."""

    whole: tuple[Use, ...]
    labelling: tuple[Use, ...]


def workers_of(settings: CampaignSettings) -> tuple[Workers, ...]:
    """The workers of a site; kinds of work may share some."""
    site = settings.site
    if isinstance(site, InlineSite):
        return (Workers("inline", tuple(Work), 1),)
    groups: dict[str, list[Work]] = {}
    for work in Work:
        groups.setdefault(site.routes[work], []).append(work)
    if isinstance(site, SlurmSite):
        slots = {label: site.slots(label) for label in groups}
    else:
        slots = {"walk": site.walk_slots, "label": site.label_slots}
    return tuple(Workers(label, tuple(kinds), slots.get(label, 1)) for label, kinds in groups.items())


class _Spans:
    """Many stretches of time, each with a weight."""

    def __init__(self) -> None:
        self._rows = array("d")

    def add(self, started: float, ended: float, weight: float = 1.0) -> None:
        self._rows.extend((started, ended, weight))

    def within(self, started: float, ended: float) -> float:
        """Seconds of all, times their weights, that lie in a window."""
        rows = np.frombuffer(self._rows).reshape(-1, 3) if self._rows else np.zeros((0, 3))
        inside = np.minimum(rows[:, 1], ended) - np.maximum(rows[:, 0], started)
        return float(np.clip(inside, 0.0, None) @ rows[:, 2])

    def newest_ends(self, count: int) -> list[float]:
        """The last ``count`` ends, rising; fewer where there are not so many."""
        return sorted(self._rows[1::3], reverse=True)[:count][::-1]


@dataclass(slots=True)
class Activity:
    """What tasks and workers did, folded from events. Holds three numbers per task.

    Attributes:
        sessions: when drivers ran.
        asked: tasks of the newest driver that are not over, and when they were asked for.
        labels_from, labels_to: start of the first label and end of the last, seconds since the epoch.
    """

    sessions: Sessions = field(default_factory=Sessions)
    asked: dict[str, tuple[Work, float]] = field(default_factory=dict)
    labels_from: float = float("inf")
    labels_to: float = float("-inf")
    _busy: dict[Work, _Spans] = field(default_factory=lambda: {work: _Spans() for work in Work})
    _idle: dict[tuple[Work, str], _Spans] = field(default_factory=dict)

    def absorb(self, event: Event) -> None:
        """Take note of an event."""
        self.sessions.absorb(event)
        match event:
            case Created() | Resumed():
                self.asked.clear()
            case Submitted():
                self.asked.update(dict.fromkeys(event.tasks, (event.work, event.time)))
            case TaskLost() | TaskFailed():
                self.asked.pop(event.task, None)
            case Walked():
                self._over(Request(Work.WALK, event.round, event.item, event.leg), event.timing)
            case Selected():
                self._over(Request(Work.SELECT, event.round), event.timing)
            case Trained() | Rejected():
                self._over(Request(Work.TRAIN, event.round, event.version, event.attempt), event.timing)
            case Labelled() | LabelFailed():
                self._over(Request(Work.LABEL, event.round, event.item), event.timing)
            case Idled():
                length = event.time - event.since
                if length > 0:
                    spans = self._idle.setdefault((event.work, event.reason), _Spans())
                    spans.add(event.since, event.time, event.slot_s / length)
            case _:
                pass

    def _over(self, request: Request, timing: Timing | None) -> None:
        self.asked.pop(request.name, None)
        if timing is None:
            return
        self._busy[request.work].add(timing.started, timing.ended)
        if request.work is Work.LABEL:
            self.labels_from = min(self.labels_from, timing.started)
            self.labels_to = max(self.labels_to, timing.ended)

    def utilisation(self, now: float | None) -> Utilisation:
        """What became of the time of all workers.

        Args:
            now: seconds since the epoch where a driver runs; None: none does.
        """
        sessions = self.sessions.all(now)
        cut = [
            Session(max(one.started, self.labels_from), min(one.ended, self.labels_to), one.settings)
            for one in sessions
            if one.ended > self.labels_from and one.started < self.labels_to
        ]
        return Utilisation(self._uses(sessions, now), self._uses(cut, now))

    def _uses(self, sessions: Sequence[Session], now: float | None) -> tuple[Use, ...]:
        """One row per group of workers that the newest of these drivers had."""
        if not sessions:
            return ()
        return tuple(self._use(workers, sessions, now) for workers in workers_of(sessions[-1].settings))

    def _use(self, workers: Workers, sessions: Sequence[Session], now: float | None) -> Use:
        slot_s, busy, idle = 0.0, dict.fromkeys(workers.kinds, 0.0), defaultdict[str, float](float)
        for session in sessions:
            slot_s += _slots(workers, session.settings) * (session.ended - session.started)
            for work in workers.kinds:
                busy[work] += self._busy[work].within(session.started, session.ended)
            for (work, reason), spans in self._idle.items():
                if work in workers.kinds:
                    idle[reason] += spans.within(session.started, session.ended)
        last = sessions[-1]
        return Use(
            workers=workers,
            slot_s=slot_s,
            busy_s=busy,
            handed_out_s=0.0 if now is None else self._handed_out(workers, last.started, last.ended),
            idle_s={reason: idle[reason] for reason in sorted(idle, key=lambda one: -idle[one]) if idle[reason] > 0},
        )

    def _handed_out(self, workers: Workers, started: float, ended: float) -> float:
        """Seconds in a window with tasks that are not over.

        Of those asked for the first ones have the slots, each from when it was asked for or a slot last fell free.
        """
        asked = sorted(time for work, time in self.asked.values() if work in workers.kinds)[: workers.slots]
        free = sorted(end for work in workers.kinds for end in self._busy[work].newest_ends(len(asked)))[-len(asked) :]
        free = [started] * (len(asked) - len(free)) + free if asked else []
        return sum(max(0.0, ended - max(*pair, started)) for pair in zip(asked, free, strict=True))


def _slots(workers: Workers, settings: CampaignSettings) -> int:
    """How many workers another site has for any of these kinds of work."""
    return sum(one.slots for one in workers_of(settings) if not set(workers.kinds).isdisjoint(one.kinds))


def activity(events: Iterable[Event]) -> Activity:
    """Of a campaign, its events read once."""
    found = Activity()
    for event in events:
        found.absorb(event)
    return found
