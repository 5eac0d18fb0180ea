"""The ``streaming`` schedule: no barrier.

Walkers, labels, selection and training run side by side. A label is asked for when a slot falls free: the most valuable
candidate that the newest model still does not know. A new model first judges all candidates that wait; until it has, none of
them is asked for. Labels wait while the pool is empty, or many that have come are not learned; walkers pause while it is full,
until a selection has kept the better half. The order of results changes what is done next, never whether it is right.
"""

import math

from pipeline.decisions import Decision, End
from pipeline.ending import goal_reached
from pipeline.events import EndReason, Work
from pipeline.faults import REMEDIES
from pipeline.flow import Flow, Place
from pipeline.plan import SMALLEST_ROUND, first_labels, initial_wanted
from pipeline.records import Split
from pipeline.requests import Request
from pipeline.settings.campaign import CampaignSettings
from pipeline.settings.schedule import StreamingSchedule
from pipeline.state import CampaignState

BARREN_TURNS = 3
"""A campaign ends when every batch of walkers brought nothing worth a label in so many segments."""
ALL_ASKED = "all labels of the budget are asked for"
AHEAD = 1 / 8
"""Labels handed out beyond the label slots, as a share of them: the next one is at hand when a slot falls free."""


def next_of_stream(state: CampaignState, flow: Flow, settings: CampaignSettings, now: float) -> Decision:
    """What can be begun now."""
    closing = _closing(state, flow, settings)
    is_quiet = not (flow.open or flow.training or flow.pending or state.arrived or state.retries)
    if closing is not None and (is_quiet or closing.reason is EndReason.LABELS_FAILED):
        return Decision(end=closing)
    is_due, why_no_training = _training(state, flow, settings, now, closing)
    if is_due and not flow.pending:
        return Decision(gather=True)
    train = (Request(Work.TRAIN, state.versions, state.versions + 1, state.attempt),) if is_due else ()
    places, why_no_label = _labels(state, flow, settings, closing)
    earlier = {retry.place for retry in state.retries}
    new = sum(place not in flow.open and place not in earlier for place in places)
    is_spent = flow.numbers + new >= settings.labels.budget
    select = () if is_spent else _selection(state, flow, settings, closing)
    walks, why_no_walk = ((), ALL_ASKED) if is_spent and state.models else _walks(state, flow, settings, closing)
    labels = tuple(Request(Work.LABEL, round_index, item) for round_index, item in places)
    return Decision(
        requests=(*labels, *select, *train, *walks),
        idle={Work.LABEL: why_no_label, Work.WALK: why_no_walk, Work.TRAIN: why_no_training},
    )


def picks_wanted(flow: Flow, settings: CampaignSettings) -> int:
    """Candidates a selection puts in order: ``selection.batch``, but enough for every label slot twice."""
    most = max(settings.selection.batch, 2 * settings.site.label_slots)
    return min(most, settings.labels.budget - flow.numbers)


def unlearned_at_most(state: CampaignState, settings: CampaignSettings) -> int:
    """Labels that may have come before a model learns of them: as many as a round would select; others are under way then."""
    grown = math.ceil(settings.selection.growth * (state.learned - len(state.unlearned)))
    return max(SMALLEST_ROUND, grown, worth_training(state, settings))


def worth_training(state: CampaignState, settings: CampaignSettings) -> int:
    """New labels that are worth a training, however short they have waited."""
    schedule = settings.schedule
    assert isinstance(schedule, StreamingSchedule)
    return math.ceil(schedule.train_share * state.learned)


def ahead_of(slots: int) -> int:
    """Labels handed out beyond the slots."""
    return max(1, math.floor(AHEAD * slots))


def pool_size(settings: CampaignSettings) -> int:
    """Candidates that may wait: ``schedule.pool``, but four for every label slot."""
    schedule = settings.schedule
    assert isinstance(schedule, StreamingSchedule)
    return max(schedule.pool, 4 * settings.site.label_slots)


def kept_at_most(settings: CampaignSettings) -> int:
    """Candidates a selection keeps: half of the pool, so that walkers go on into the other half."""
    return pool_size(settings) // 2


def _closing(state: CampaignState, flow: Flow, settings: CampaignSettings) -> End | None:
    """Why nothing new is begun: what is in flight is finished and learned, then the campaign ends."""
    if (reached := goal_reached(state, settings)) is not None:
        return reached
    is_answered = not (flow.open or state.retries or _initial_left(state, flow, settings))
    if not state.models and is_answered and not (flow.pending or flow.training or _can_begin(state, flow, settings)):
        return _too_few(state)
    budget = settings.labels.budget
    if flow.numbers >= budget:
        return End(EndReason.BUDGET, f"{flow.numbers} of labels.budget = {budget} labels are spent")
    is_settled = not (flow.open or flow.training or flow.pending or state.arrived or flow.pool)
    if is_settled and flow.fruitless >= BARREN_TURNS * flow.batches:
        known = settings.known_eV_per_A
        text = f"nothing worth a label in {flow.fruitless} segments of walkers in a row"
        return End(
            EndReason.NOTHING_NEW, f"{text}: the force errors of what they found are bounded by {known:.3g} eV/Å"
        )
    return None


def _labels(
    state: CampaignState, flow: Flow, settings: CampaignSettings, closing: End | None
) -> tuple[list[Place], str]:
    """Labels to ask for, most urgent first, and why there are no more."""
    slots = settings.site.label_slots
    free = slots + ahead_of(slots) - (len(flow.open) - len(flow.again))
    retries = [retry.place for retry in state.retries if retry.place not in flow.open]
    places = [*flow.again, *retries][: max(0, free)]
    free = min(free - len(places), settings.labels.budget - flow.numbers)
    if flow.numbers >= settings.labels.budget:
        return places, ALL_ASKED
    if closing is not None:
        return places, "the campaign ends"
    if flow.selection is None:
        count = max(0, min(free, _initial_left(state, flow, settings)))
        places += [(0, item) for item in range(flow.asked, flow.asked + count)]
        return places, "there are no candidates before the first model and its walkers"
    # where models come faster than selections, what the last one picked goes to free slots before the next one begins
    if flow.selecting is not None or (_is_outdated(state, flow) and not flow.is_late):
        return places, "candidates are judged by the newest model"
    in_training = len(state.unlearned) if flow.pending or flow.training else 0
    if in_training + len(state.arrived) >= unlearned_at_most(state, settings):
        return places, "many labels are not learned yet: the next model may need no more of their kind"
    count = max(0, min(free, flow.waiting))
    places += [(flow.selection.round, row) for row in range(flow.asked, flow.asked + count)]
    return places, "walkers found nothing that needs a label"


def _initial_left(state: CampaignState, flow: Flow, settings: CampaignSettings) -> int:
    """Start structures still to be asked for: those of the settings, then one after the other until a model can be trained."""
    if flow.selection is not None:
        return 0
    left = _initial_wanted(state, flow, settings) - flow.asked
    if left <= 0 and state.labelled and not (state.models or flow.open or flow.pending or flow.training):
        left = 0 if _can_begin(state, flow, settings) else 1
    return max(0, min(left, settings.labels.budget - flow.numbers))


def _initial_wanted(state: CampaignState, flow: Flow, settings: CampaignSettings) -> int:
    return initial_wanted(flow.initial_failed if state.labelled else 0, settings)


def _can_begin(state: CampaignState, flow: Flow, settings: CampaignSettings) -> bool:
    """Whether a first model can be trained: labels for every purpose; unless the initial ones are complete, half of them and
    one of every system to train on."""
    if len({row.split for row in state.arrived}) < len(Split):
        return False
    if not flow.open and flow.asked >= _initial_wanted(state, flow, settings):
        return True
    taught = {row.system for row in state.arrived if row.split is Split.TRAIN}
    return len(state.arrived) >= first_labels(settings) and len(taught) == len(settings.systems)


def _too_few(state: CampaignState) -> End:
    last = next((failure for failure in reversed(state.recent) if failure is not None), None)
    reason = f"; the last one failed because {last.reason}" if last else ""
    message = f"{state.labelled} of {state.spent} initial labels succeeded, too few to train and calibrate{reason}"
    remedy = REMEDIES[last.cause] if last else "Raise labels.budget."
    return End(EndReason.LABELS_FAILED, message, remedy, last.scratch if last else "")


def _is_outdated(state: CampaignState, flow: Flow) -> bool:
    """Whether candidates wait that the newest model has not judged."""
    if flow.selection is None or not state.models:
        return False
    return flow.selection.version < state.models[-1].version and flow.pool > 0


def _selection(
    state: CampaignState, flow: Flow, settings: CampaignSettings, closing: End | None
) -> tuple[Request, ...]:
    """A selection where a new model has come, few candidates wait and there are others, or the pool is full of them."""
    if flow.selecting is not None or not state.models or closing is not None:
        return ()
    wanted = min(settings.site.label_slots + 1, settings.labels.budget - flow.numbers)
    is_low = flow.waiting < wanted and flow.pool > flow.waiting
    is_full = flow.fresh_count > 0 and flow.pool >= pool_size(settings)
    if not (is_low or is_full or _is_outdated(state, flow)):
        return ()
    return (Request(Work.SELECT, flow.selections + 1),)


def _training(
    state: CampaignState, flow: Flow, settings: CampaignSettings, now: float, closing: End | None
) -> tuple[bool, str]:
    """Whether a training is due, of labels that are gathered or will be; and why not."""
    if flow.training:
        return False, "one training at a time"
    if flow.pending:
        return True, ""
    if not state.models:
        return _can_begin(state, flow, settings), "too few labels for a first model"
    if not state.arrived:
        return False, "no new label"
    schedule = settings.schedule
    assert isinstance(schedule, StreamingSchedule)
    is_enough = len(state.arrived) >= worth_training(state, settings)
    has_waited = now - state.arrived[0].time >= schedule.train_wait_s
    is_last = closing is not None and not flow.open
    return is_enough or has_waited or is_last, "new labels are few"


def _walks(
    state: CampaignState, flow: Flow, settings: CampaignSettings, closing: End | None
) -> tuple[tuple[Request, ...], str]:
    """Batches of walkers that go on, and why not more."""
    if not state.models:
        return (), "there is no model yet"
    if closing is not None:
        return (), "the campaign ends"
    if flow.pool >= pool_size(settings):
        return (), "the pool of candidates is full"
    free = settings.site.walk_slots - (flow.batches - len(flow.idle))
    return tuple(_next_leg(state, item) for item in flow.idle[: max(0, free)]), "all batches walk"


def _next_leg(state: CampaignState, item: int) -> Request:
    last = state.walkers.get(item)
    if last is None:
        return Request(Work.WALK, 1, item)
    if last.steps_left:
        return Request(Work.WALK, last.round, item, last.leg + 1)
    return Request(Work.WALK, last.round + 1, item)
