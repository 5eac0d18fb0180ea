"""What a campaign knows: the fold of its events."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from pipeline.errors import StoreError
from pipeline.events import (
    Created,
    Event,
    Gathered,
    LabelFailed,
    Labelled,
    Noticed,
    Resumed,
    Selected,
    Stopped,
    Submitted,
    TaskFailed,
    Trained,
    Walked,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignState:
    """A campaign at one moment. File references are relative to its directory.

    Attributes:
        created: how it began.
        settings: the settings now in force, plain values.
        session_started: when the present driver took over, seconds since the epoch.
        earlier_wall_s: wall time of all drivers before it.
        last_time: time of the last event.
        round: the present round; 0 labels the initial frames.
        walked, selected: what the present round has so far; ``walked`` by item.
        labels, failures: all of them, in the order they came.
        gathered: one shard per round that has all its labels, oldest first.
        models: published ones, oldest first.
        walkers: batch -> shard with its walkers at the end of their last segment.
        barren: rounds in a row that brought no new label.
        failure: a task that failed and keeps the campaign from going on.
        stopped: how the last driver ended; None while one runs, or when it was killed.
    """

    created: Created
    settings: dict[str, Any]
    session_started: float
    earlier_wall_s: float = 0.0
    last_time: float
    round: int = 0
    walked: tuple[Walked, ...] = ()
    selected: Selected | None = None
    labels: tuple[Labelled, ...] = ()
    failures: tuple[LabelFailed, ...] = ()
    gathered: tuple[Gathered, ...] = ()
    models: tuple[Trained, ...] = ()
    walkers: tuple[Walked, ...] = ()
    barren: int = 0
    failure: TaskFailed | None = None
    stopped: Stopped | None = None

    @property
    def spent(self) -> int:
        """Reference calculations made, failed ones counted."""
        return len(self.labels) + len(self.failures)

    @property
    def round_labels(self) -> tuple[Labelled, ...]:
        """Labels of the present round, in the order of their items."""
        return tuple(sorted((row for row in self.labels if row.round == self.round), key=lambda row: row.item))

    @property
    def round_failures(self) -> tuple[LabelFailed, ...]:
        """Failed labels of the present round."""
        return tuple(row for row in self.failures if row.round == self.round)

    @property
    def first_number(self) -> int:
        """Number of the present round's first label: all asked for in earlier rounds."""
        return self.spent - len(self.round_labels) - len(self.round_failures)

    def wall_s(self, now: float) -> float:
        """Wall time over all drivers, seconds."""
        return self.earlier_wall_s + max(now - self.session_started, 0.0)


def begin(event: Event) -> CampaignState:
    """The state after the first event.

    Raises:
        StoreError: a campaign does not begin with this event.
    """
    if not isinstance(event, Created):
        raise StoreError(
            f"the event log begins with '{event.kind}', not with 'created'.", "Restore events.jsonl from a copy."
        )
    return CampaignState(created=event, settings=event.settings, session_started=event.time, last_time=event.time)


def apply(state: CampaignState, event: Event) -> CampaignState:
    """The state after one more event."""
    return replace(_changed(state, event), last_time=max(state.last_time, event.time))


def fold(events: Iterable[Event]) -> CampaignState:
    """The state after all events.

    Raises:
        StoreError: there is none, or the first is not ``created``.
    """
    stream = iter(events)
    first = next(stream, None)
    if first is None:
        raise StoreError("the event log is empty.", "Remove the directory and run the campaign anew.")
    state = begin(first)
    for event in stream:
        state = apply(state, event)
    return state


def _changed(state: CampaignState, event: Event) -> CampaignState:
    match event:
        case Resumed():
            return _resumed(state, event)
        case Walked():
            rest = tuple(walk for walk in state.walkers if walk.item != event.item)
            return replace(state, walked=(*state.walked, event), walkers=(*rest, event))
        case Selected():
            selected = replace(state, selected=event)
            return selected if event.count else _next_round(selected, barren=True)
        case Labelled():
            return replace(state, labels=(*state.labels, event))
        case LabelFailed():
            return _without_labels(replace(state, failures=(*state.failures, event)))
        case Gathered():
            return replace(state, gathered=(*state.gathered, event))
        case Trained():
            return _next_round(replace(state, models=(*state.models, event)), barren=False)
        case TaskFailed():
            return replace(state, failure=event)
        case Stopped():
            return replace(state, stopped=event)
        case Created():
            raise StoreError("the event log holds a second 'created'.", "Restore events.jsonl from a copy.")
        case Submitted() | Noticed():
            return state


def _resumed(state: CampaignState, event: Resumed) -> CampaignState:
    # whoever resumes has seen why it stopped and wants it to go on: failures and dry rounds count from here
    return replace(
        state,
        settings=event.settings,
        session_started=event.time,
        earlier_wall_s=state.wall_s(state.last_time),
        failure=None,
        barren=0,
        stopped=None,
    )


def _without_labels(state: CampaignState) -> CampaignState:
    """After a failed label: a round all of whose labels failed trains nothing, and the next one begins."""
    selected = state.selected
    all_failed = selected is not None and len(state.round_failures) == selected.count
    return _next_round(state, barren=True) if all_failed else state


def _next_round(state: CampaignState, *, barren: bool) -> CampaignState:
    return replace(state, round=state.round + 1, walked=(), selected=None, barren=state.barren + 1 if barren else 0)
