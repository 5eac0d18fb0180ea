"""The ``rounds`` schedule: a barrier per iteration.

Round 0 labels the initial frames and trains the first model. Every later round walks, selects, labels and trains, each after
the one before is complete. Which task gets which number, seed, start and split does not depend on the order in which results
arrive, so a campaign is the same wherever its tasks run.
"""

from pipeline.decisions import Decision, End
from pipeline.ending import goal_reached
from pipeline.events import EndReason, Work
from pipeline.faults import REMEDIES
from pipeline.plan import batches, labels_asked, picks_allowed
from pipeline.records import Split
from pipeline.requests import Request
from pipeline.settings.campaign import CampaignSettings
from pipeline.state import CampaignState

MAX_BARREN = 3
"""Rounds in a row without a new label after which a campaign ends."""
BARRIER = {
    Work.WALK: "walkers wait for the round's labels and training",
    Work.LABEL: "labels wait for the round's walkers",
    Work.TRAIN: "training waits for the round's labels",
    Work.SELECT: "selection waits for the round's walkers",
}
"""Why workers are idle."""


def next_of_round(state: CampaignState, settings: CampaignSettings, in_flight: int) -> Decision:
    """The next step of a campaign in rounds; what is in flight already may be among its requests."""
    # what is walked and selected depends on the labels: those tried again come first
    if earlier := _earlier_labels(state):
        return Decision(requests=earlier)
    return (_initial if state.round == 0 else _round)(state, settings, in_flight)


def _earlier_labels(state: CampaignState) -> tuple[Request, ...]:
    """Quarantined labels of earlier rounds that are to be tried again, under their old names."""
    earlier = (retry.failure for retry in state.retries if retry.failure.round < state.round)
    return tuple(sorted(Request(Work.LABEL, failure.round, failure.item) for failure in earlier))


def _initial(state: CampaignState, settings: CampaignSettings, in_flight: int) -> Decision:
    if state.answered < labels_asked(state, settings):
        return Decision(requests=_missing_labels(state, settings, in_flight))
    present = {row.split for row in state.arrived}
    if len(present) == len(Split):
        return _train(state)
    if state.labelled and state.spent < settings.labels.budget:
        return Decision(requests=(Request(Work.LABEL, 0, state.spent),))
    last = state.round_failures[-1] if state.round_failures else None
    reason = f"; the last one failed because {last.reason}" if last else ""
    message = f"{state.labelled} of {state.spent} initial labels succeeded, too few to train and calibrate{reason}"
    remedy = REMEDIES[last.cause] if last else "Raise labels.budget."
    return Decision(end=End(EndReason.LABELS_FAILED, message, remedy, last.scratch if last else ""))


def _round(state: CampaignState, settings: CampaignSettings, in_flight: int) -> Decision:
    if state.selected is None:
        # a round that has begun is finished, so that a changed stop rule never leaves half of one behind
        end = None if state.walked else _end_of_rounds(state, settings)
        if end is not None:
            return _train(state) if state.adopted else Decision(end=end)
        unfinished = batches(settings) - sum(not walk.steps_left for walk in state.walked)
        if 0 < unfinished <= in_flight:
            return Decision()  # each has its task: while a round walks, nothing else is in flight
        if legs := _missing_legs(state, settings):
            return Decision(requests=legs)
        if picks_allowed(state, settings) < 1:  # the budget was lowered in the middle of the round
            return _train(state) if state.adopted else Decision(end=_budget_spent(state, settings))
        return Decision(requests=(Request(Work.SELECT, state.round),))
    if state.answered < state.selected.count:
        return Decision(requests=_missing_labels(state, settings, in_flight))
    return _train(state)


def _missing_legs(state: CampaignState, settings: CampaignSettings) -> tuple[Request, ...]:
    """The next leg of every batch that has not made all of its segment."""
    last = {walk.item: walk for walk in state.walked}
    next_leg = {item: walk.leg + 1 if walk.steps_left else None for item, walk in last.items()}
    legs = ((item, next_leg.get(item, 0)) for item in range(batches(settings)))
    return tuple(Request(Work.WALK, state.round, item, leg) for item, leg in legs if leg is not None)


def _missing_labels(state: CampaignState, settings: CampaignSettings, in_flight: int) -> tuple[Request, ...]:
    """Labels of the present round that are neither there nor in flight; looks for them only when the count says so."""
    asked = labels_asked(state, settings)
    if state.answered + in_flight >= asked:
        return ()  # while a round labels, nothing else is in flight
    known = {row.item for row in state.arrived} | {row.item for row in state.round_failures}
    return tuple(Request(Work.LABEL, state.round, item) for item in range(asked) if item not in known)


def _train(state: CampaignState) -> Decision:
    if not state.is_gathered:
        return Decision(gather=True)
    return Decision(requests=(Request(Work.TRAIN, state.round, state.versions + 1, state.attempt),))


def _end_of_rounds(state: CampaignState, settings: CampaignSettings) -> End | None:
    """Whether the campaign is over now that a round is complete."""
    if (reached := goal_reached(state, settings)) is not None:
        return reached
    if state.spent >= settings.labels.budget:
        return _budget_spent(state, settings)
    if state.round > settings.stop.max_rounds:
        return End(EndReason.MAX_ROUNDS, f"stop.max_rounds = {settings.stop.max_rounds} rounds are done")
    if state.barren >= MAX_BARREN:
        return End(EndReason.NOTHING_NEW, f"nothing new found in {state.barren} rounds in a row")
    return None


def _budget_spent(state: CampaignState, settings: CampaignSettings) -> End:
    return End(EndReason.BUDGET, f"{state.spent} of labels.budget = {settings.labels.budget} labels are spent")
