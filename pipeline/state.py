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
from pipeline.records import FileRef
from pipeline.rows import Rows

MAX_STARTS = 64
"""Labelled structures handed to a batch of walkers to start from."""
MOST_RECENT = 1000
"""Labels of finished rounds that are looked at for a fault that hits them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """A quarantined label that is tried again.

    Attributes:
        failure: as it was recorded.
        picks: the shard of the frames selected in its round; None in round 0.
    """

    failure: LabelFailed
    picks: FileRef | None


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
        retries: quarantined labels, of any round, that are to be tried again.
        retried: items of the present round that were ever tried again.
        adopted: labels of earlier rounds that succeeded at last in the present one, whose data they join.
        labelled, failed: how many there are of both in the whole campaign.
        recent: labels that came since the last resume, in their order: the failure, or None for a good one.
        reference: digest of the level of theory, fixed by the first label; empty before.
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
    retries: tuple[Retry, ...] = ()
    retried: frozenset[int] = frozenset()
    adopted: tuple[Labelled, ...] = ()
    labelled: int = 0
    failed: int = 0
    recent: Rows[LabelFailed | None] = field(default_factory=Rows)
    reference: str = ""
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
        """Reference calculations asked for and answered at least once, failed ones counted."""
        return self.labelled + self.failed + len(self.retries)

    @property
    def answered(self) -> int:
        """Labels of the present round that are there, or failed."""
        return len(self.arrived) + len(self.round_failures)

    @property
    def ever_failed(self) -> int:
        """Labels of the present round that failed at least once, whatever came of them since."""
        return len({row.item for row in self.round_failures} | self.retried)

    @property
    def round_labels(self) -> tuple[Labelled, ...]:
        """The data of the present round, in the order of their numbers: its labels, and earlier ones tried again."""
        return tuple(sorted([*self.arrived, *self.adopted], key=lambda row: row.number))

    def retry_of(self, round_index: int, item: int) -> Retry | None:
        """The label of a round that is to be tried again; None where it is not one."""
        of = (round_index, item)
        return next((retry for retry in self.retries if _place(retry.failure) == of), None)

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
            return selected if event.count or state.adopted else _next_round(selected, barren=True)
        case Requeued():
            return _requeued(state, event)
        case Labelled():
            return _labelled(state, event)
        case LabelFailed():
            return _label_failed(state, event)
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
        recent=Rows(),
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


def _labelled(state: CampaignState, event: Labelled) -> CampaignState:
    known = replace(
        state,
        labelled=state.labelled + 1,
        recent=state.recent.plus(None),
        reference=state.reference or event.reference,
        retries=_without(state.retries, event),
    )
    if event.round == state.round:
        return replace(known, arrived=state.arrived.plus(event))
    return replace(known, adopted=(*state.adopted, event))


def _label_failed(state: CampaignState, event: LabelFailed) -> CampaignState:
    known = replace(
        state,
        failed=state.failed + 1,
        recent=state.recent.plus(event),
        retries=_without(state.retries, event),
    )
    if event.round != state.round:
        return known
    return _without_labels(replace(known, round_failures=state.round_failures.plus(event)))


def _without_labels(state: CampaignState) -> CampaignState:
    """After a failed label: a round that brought no label trains nothing, and the next one begins."""
    selected = state.selected
    all_failed = selected is not None and len(state.round_failures) == selected.count and not state.adopted
    return _next_round(state, barren=True) if all_failed else state


def _requeued(state: CampaignState, event: Requeued) -> CampaignState:
    """Failures taken back: those of the present round are missing again, those of earlier ones are asked for first."""
    new = tuple(
        Retry(failure=failure, picks=picks)
        for failure, picks in zip(event.failures, event.picks, strict=True)
        if state.retry_of(*_place(failure)) is None
    )
    items = frozenset(retry.failure.item for retry in new if retry.failure.round == state.round)
    return replace(
        state,
        retries=(*state.retries, *new),
        retried=state.retried | items,
        round_failures=Rows(row for row in state.round_failures if row.item not in items),
        failed=state.failed - len(new),
        # what is tried again joins the data of the present round, which are gathered anew
        gathered=Rows(row for row in state.gathered if row.round != state.round),
        lost=(),
    )


def _place(event: Labelled | LabelFailed) -> tuple[int, int]:
    return event.round, event.item


def _without(retries: tuple[Retry, ...], event: Labelled | LabelFailed) -> tuple[Retry, ...]:
    if not retries:
        return retries
    return tuple(retry for retry in retries if _place(retry.failure) != _place(event))


def _next_round(state: CampaignState, *, barren: bool) -> CampaignState:
    return replace(
        state,
        round=state.round + 1,
        walked=Rows(),
        selected=None,
        arrived=Rows(),
        round_failures=Rows(),
        retried=frozenset(),
        adopted=(),
        recent=Rows(state.recent[-MOST_RECENT:]),
        first_number=state.spent,
        newest={**state.newest, **_newest(state.round_labels)},
        lost=(),
        barren=state.barren + 1 if barren else 0,
    )


def _newest(rows: Iterable[Labelled]) -> dict[str, tuple[Labelled, ...]]:
    """The last labels of each system, by number."""
    found: dict[str, list[Labelled]] = {}
    for row in sorted(rows, key=lambda row: row.number):
        found.setdefault(row.system, []).append(row)
    return {system: tuple(several[-MAX_STARTS:]) for system, several in found.items()}
