"""What a campaign knows: the fold of its events."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.errors import StoreError
from pipeline.events import (
    Created,
    Event,
    Gathered,
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
)
from pipeline.rows import Rows

MAX_STARTS = 64
"""Labelled structures handed to a batch of walkers to start from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignState:
    """A campaign at one moment. File references are relative to its directory.

    Labels of finished rounds are counted, not kept: what it holds grows with the rounds, not with the labels.

    Attributes:
        created: how it began.
        settings: the settings now in force, plain values.
        session_started: when the present driver took over, seconds since the epoch.
        earlier_wall_s: wall time of all drivers before it.
        last_time: time of the last event.
        round: the present round; 0 labels the initial frames.
        walked, selected: what the present round has so far; ``walked`` holds every leg, a batch's in their order.
        arrived, round_failures: labels of the present round and those that failed, in the order they came.
        labelled, failed: how many there are of both in the whole campaign.
        first_number: number of the present round's first label: all asked for in earlier rounds.
        newest: system -> its newest labels before the present round, all of one round, at most 64, by number.
        gathered: one shard per round that has all its labels, oldest first.
        models: published ones, oldest first, without their training histories.
        walkers: of each batch its last leg, which names the shard with its walkers.
        barren: rounds in a row that brought no new label.
        lost: tasks of the present round whose worker was lost for good, once for each time.
        failure: a task that failed and keeps the campaign from going on.
        stopped: how the last driver ended; None while one runs, or when it was killed.
    """

    created: Created
    settings: dict[str, Any]
    session_started: float
    earlier_wall_s: float = 0.0
    last_time: float
    round: int = 0
    walked: Rows[Walked] = field(default_factory=Rows)
    selected: Selected | None = None
    arrived: Rows[Labelled] = field(default_factory=Rows)
    round_failures: Rows[LabelFailed] = field(default_factory=Rows)
    labelled: int = 0
    failed: int = 0
    first_number: int = 0
    newest: dict[str, tuple[Labelled, ...]] = field(default_factory=dict)
    gathered: Rows[Gathered] = field(default_factory=Rows)
    models: Rows[Trained] = field(default_factory=Rows)
    walkers: tuple[Walked, ...] = ()
    barren: int = 0
    lost: tuple[str, ...] = ()
    failure: TaskFailed | None = None
    stopped: Stopped | None = None

    @property
    def spent(self) -> int:
        """Reference calculations made, failed ones counted."""
        return self.labelled + self.failed

    @property
    def round_labels(self) -> tuple[Labelled, ...]:
        """Labels of the present round, in the order of their items."""
        return tuple(sorted(self.arrived, key=lambda row: row.item))

    @property
    def is_gathered(self) -> bool:
        """Whether the labels of the present round lie in one shard."""
        return bool(self.gathered) and self.gathered[-1].round == self.round

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
    """The state after all events, of which there is at least one.

    Raises:
        StoreError: the first is not ``created``.
    """
    stream = iter(events)
    state = begin(next(stream))
    for event in stream:
        state = apply(state, event)
    return state


def _changed(state: CampaignState, event: Event) -> CampaignState:
    match event:
        case Resumed():
            return _resumed(state, event)
        case Walked():
            rest = tuple(walk for walk in state.walkers if walk.item != event.item)
            return replace(state, walked=state.walked.plus(event), walkers=(*rest, event))
        case Selected():
            selected = replace(state, selected=event)
            return selected if event.count else _next_round(selected, barren=True)
        case Requeued():
            return state
        case Labelled():
            return replace(state, arrived=state.arrived.plus(event), labelled=state.labelled + 1)
        case LabelFailed():
            failures = state.round_failures.plus(event)
            return _without_labels(replace(state, round_failures=failures, failed=state.failed + 1))
        case Gathered():
            return replace(state, gathered=state.gathered.plus(event))
        case Trained():
            # histories have a row per epoch, and nothing that is decided needs them
            return _next_round(replace(state, models=state.models.plus(replace(event, history=()))), barren=False)
        case TaskLost() | TaskFailed() | Stopped():
            return _halted(state, event)
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
        lost=() if state.failure is not None else state.lost,
        barren=0,
        stopped=None,
    )


def _halted(state: CampaignState, event: TaskLost | TaskFailed | Stopped) -> CampaignState:
    match event:
        case TaskLost():
            return replace(state, lost=(*state.lost, event.task))
        case TaskFailed():
            return replace(state, failure=event)
        case Stopped():
            return replace(state, stopped=event)


def _without_labels(state: CampaignState) -> CampaignState:
    """After a failed label: a round all of whose labels failed trains nothing, and the next one begins."""
    selected = state.selected
    all_failed = selected is not None and len(state.round_failures) == selected.count
    return _next_round(state, barren=True) if all_failed else state


def _next_round(state: CampaignState, *, barren: bool) -> CampaignState:
    return replace(
        state,
        round=state.round + 1,
        walked=Rows(),
        selected=None,
        arrived=Rows(),
        round_failures=Rows(),
        first_number=state.spent,
        newest={**state.newest, **_newest(state.arrived)},
        lost=(),
        barren=state.barren + 1 if barren else 0,
    )


def _newest(rows: Iterable[Labelled]) -> dict[str, tuple[Labelled, ...]]:
    """The last labels of each system, by number."""
    found: dict[str, list[Labelled]] = {}
    for row in sorted(rows, key=lambda row: row.number):
        found.setdefault(row.system, []).append(row)
    return {system: tuple(several[-MAX_STARTS:]) for system, several in found.items()}
