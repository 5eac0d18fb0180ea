"""What a campaign knows, from what happened: the fold of its events."""

from collections.abc import Iterable
from dataclasses import replace
from math import fsum

from pipeline.analysis.coverage import mask_of
from pipeline.errors import StoreError
from pipeline.events import (
    Created,
    Event,
    Gathered,
    Idled,
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
)
from pipeline.flow import Flow, Open, Place, flowed, resumed
from pipeline.records import Found
from pipeline.rows import Rows
from pipeline.state import MAX_STARTS, MOST_RECENT, CampaignState, Explored, Retry


def begin(event: Event) -> CampaignState:
    """The state after the first event.

    Raises:
        StoreError: a campaign does not begin with this event.
    """
    if not isinstance(event, Created):
        raise StoreError(
            f"the event log begins with '{event.kind}', not with 'created'.", "Restore events.jsonl from a copy."
        )
    # as plain values: what is known is read also where settings have changed since
    schedule, walkers, flow = event.settings.get("schedule"), event.settings.get("walkers"), None
    if isinstance(schedule, dict) and schedule.get("kind") == "streaming" and isinstance(walkers, dict):
        flow = Flow.begin(walkers["count"] // walkers["batch"])
    return CampaignState(
        created=event, settings=event.settings, session_started=event.time, last_time=event.time, flow=flow
    )


def apply(state: CampaignState, event: Event) -> CampaignState:
    """The state after one more event."""
    if isinstance(event, Requeued):  # written while no driver runs: that time is nobody's
        return _changed(state, event)
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
    if state.flow is not None:
        retries = {retry.place: Open(retry.failure.number, retry.picks) for retry in state.retries}
        state = replace(state, flow=flowed(state.flow, event, retries))
    match event:
        case Resumed():
            return _resumed(state, event)
        case Requeued():
            return _requeued(state, event)
        case TaskLost() | TaskFailed() | Stopped():
            return _halted(state, event)
        case Created():
            raise StoreError("the event log holds a second 'created'.", "Restore events.jsonl from a copy.")
        case Submitted() | Noticed() | Idled():
            return state
        case _:
            return _advanced(state, event)


def _advanced(
    state: CampaignState, event: Walked | Selected | Labelled | LabelFailed | Gathered | Trained | Rejected
) -> CampaignState:
    """After a task, or labels gathered."""
    match event:
        case Walked():
            return _walked(state, event)
        case Selected():
            return _selected(_held(state, event), event)
        case Labelled():
            return _labelled(_held(state, event), event)
        case LabelFailed():
            return _label_failed(_held(state, event), event)
        case Gathered():
            return _gathered(state, event)
        case Trained() | Rejected():
            return _trained(_held(state, event), event)


def _held(
    state: CampaignState, event: Walked | Selected | Labelled | LabelFailed | Trained | Rejected
) -> CampaignState:
    """With the resources that a task held; labels take no GPU."""
    gpu_s = 0.0 if isinstance(event, Labelled | LabelFailed) else event.gpu_s
    return replace(state, core_s=state.core_s + event.core_s, gpu_s=state.gpu_s + gpu_s)


def _walked(state: CampaignState, event: Walked) -> CampaignState:
    explored = dict(state.explored)
    for system, found in event.found.items():
        explored[system] = _with(explored.get(system, Explored()), found)
    state = replace(
        _held(state, event), walkers=state.walkers.insert(event.item, event), explored=explored, legs=state.legs + 1
    )
    return state if state.flow is not None else replace(state, walked=state.walked.plus(event))


def _with(explored: Explored, found: Found) -> Explored:
    return replace(
        explored,
        count=explored.count + found.count,
        bounds=explored.bounds + found.count * found.mean_bound,
        cells=explored.cells | mask_of(found.cells),
    )


def _selected(state: CampaignState, event: Selected) -> CampaignState:
    if state.flow is not None:
        return replace(state, selected=event, round=event.round)
    selected = replace(state, selected=event)
    return selected if event.count or state.adopted else _next_round(selected, barren=True)


def _gathered(state: CampaignState, event: Gathered) -> CampaignState:
    state = replace(state, gathered=state.gathered.plus(event), learned=state.learned + event.count)
    if state.flow is None:
        return state
    return replace(state, unlearned=(*state.unlearned, *state.round_labels), arrived=Rows())


def _trained(state: CampaignState, event: Trained | Rejected) -> CampaignState:
    """A model was published, or refused: once it is trained anew, then it is given up until there are more labels."""
    if isinstance(event, Rejected) and event.attempt == 0:
        return replace(state, attempt=1)
    state = replace(state, versions=event.version, attempt=0)
    learned = state.unlearned if state.flow is not None else (*state.unlearned, *state.round_labels)
    if isinstance(event, Rejected):
        state = replace(state, unlearned=learned)
    else:
        state = replace(
            state,
            # histories have a row per epoch, and nothing that is decided needs them
            models=state.models.plus(replace(event, history=())),
            unlearned=(),
            newest={**state.newest, **_newest(_starts(state, learned))},
        )
        state = _mapped(state)
    if state.flow is None:
        return _next_round(state, barren=False)
    if isinstance(event, Rejected):
        return state
    return replace(state, explored=_settled(state), lost=(), recent=Rows(state.recent[-MOST_RECENT:]))


def _starts(state: CampaignState, learned: Iterable[Labelled]) -> list[Labelled]:
    """Labels that walkers may start from: a stream learns few at a time, so earlier ones stay among them."""
    earlier = [] if state.flow is None else [row for rows in state.newest.values() for row in rows]
    return [*earlier, *learned]


def _mapped(state: CampaignState) -> CampaignState:
    """With the cells visited up to now, once every batch has walked since they were noted last."""
    if state.flow is not None and state.legs < state.flow.batches:
        return state
    cells = {system: one.cells for system, one in state.explored.items()}
    return replace(state, cells=state.cells.plus(cells), legs=0)


def _settled(state: CampaignState) -> dict[str, Explored]:
    """What walkers found up to now, as the mean that shares follow."""
    walks = sorted(state.walked, key=lambda walk: (walk.item, walk.leg))
    settled = {}
    for system, one in state.explored.items():
        if state.flow is None:  # summed in an order that is not that of arrival
            found = [walk.found[system] for walk in walks if system in walk.found]
            count, bounds = sum(each.count for each in found), fsum(each.count * each.mean_bound for each in found)
        else:
            count, bounds = one.count, one.bounds
        mean = bounds / count if count else one.mean_bound
        settled[system] = replace(one, count=0, bounds=0.0, mean_bound=mean)
    return settled


def _resumed(state: CampaignState, event: Resumed) -> CampaignState:
    # whoever resumes has seen why it stopped and wants it to go on: failures and dry rounds count from here
    return replace(
        state,
        settings=event.settings,
        flow=None if state.flow is None else resumed(state.flow),
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
        labelled_of=_counted(state.labelled_of, event.system, 1),
        recent=state.recent.plus(None),
        reference=state.reference or event.reference,
        retries=_without(state.retries, event),
    )
    if state.flow is not None or event.round == state.round:
        return replace(known, arrived=state.arrived.plus(event))
    return replace(known, adopted=(*state.adopted, event))


def _label_failed(state: CampaignState, event: LabelFailed) -> CampaignState:
    known = replace(
        state,
        failed=state.failed + 1,
        failed_of=_counted(state.failed_of, event.system, 1),
        recent=state.recent.plus(event),
        retries=_without(state.retries, event),
    )
    if state.flow is not None or event.round != state.round:
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
    for retry in new:
        state = replace(state, failed_of=_counted(state.failed_of, retry.failure.system, -1))
    if state.flow is not None:
        return replace(state, retries=(*state.retries, *new), failed=state.failed - len(new), lost=())
    items = frozenset(retry.failure.item for retry in new if retry.failure.round == state.round)
    gathered = Rows(row for row in state.gathered if row.round != state.round)
    return replace(
        state,
        retries=(*state.retries, *new),
        retried=state.retried | items,
        round_failures=Rows(row for row in state.round_failures if row.item not in items),
        failed=state.failed - len(new),
        # what is tried again joins the data of the present round, which are gathered anew
        gathered=gathered,
        learned=sum(row.count for row in gathered),
        lost=(),
    )


def _counted(counts: dict[str, int], system: str, more: int) -> dict[str, int]:
    return {**counts, system: counts.get(system, 0) + more}


def _place(event: Labelled | LabelFailed) -> Place:
    return event.round, event.item


def _without(retries: tuple[Retry, ...], event: Labelled | LabelFailed) -> tuple[Retry, ...]:
    if not retries:
        return retries
    return tuple(retry for retry in retries if retry.place != _place(event))


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
        explored=_settled(state),
        lost=(),
        barren=state.barren + 1 if barren else 0,
    )


def _newest(rows: Iterable[Labelled]) -> dict[str, tuple[Labelled, ...]]:
    """The last labels of each system, by number."""
    found: dict[str, list[Labelled]] = {}
    for row in sorted(rows, key=lambda row: row.number):
        found.setdefault(row.system, []).append(row)
    return {system: tuple(several[-MAX_STARTS:]) for system, several in found.items()}
