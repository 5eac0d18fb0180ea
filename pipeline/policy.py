"""What to do next: pure functions of what a campaign knows.

The ``rounds`` schedule. Round 0 labels the initial frames and trains the first model. Every later round walks, selects, labels
and trains, each after the one before is complete. Which task gets which number, seed, start and split does not depend on the
order in which results arrive, so a campaign is the same wherever its tasks run.
"""

import math
from collections.abc import Set
from dataclasses import dataclass

from pipeline.events import EndReason, Labelled, Walked, Work
from pipeline.faults import REMEDIES, systematic_fault
from pipeline.records import Split, StopReason
from pipeline.settings.campaign import CampaignSettings
from pipeline.state import MAX_STARTS, CampaignState

MAX_BARREN = 3
"""Rounds in a row without a new label after which a campaign ends."""
SMALLEST_ROUND = 8
"""Labels a round may ask for however few there are: a round costs a walk and a training."""


@dataclass(frozen=True, slots=True, order=True)
class Request:
    """A task to be made: what, in which round, which one. For training ``item`` is the model version.

    A walk is cut into legs, one task after the other: ``leg`` counts them.
    """

    work: Work
    round: int
    item: int = 0
    leg: int = 0

    @property
    def name(self) -> str:
        """Unique in the campaign, the same on every run."""
        if self.work is Work.TRAIN:
            return f"train-v{self.item:04d}"
        leg = f"-l{self.leg:02d}" if self.work is Work.WALK else ""
        return f"{self.work.value}-r{self.round:04d}-{self.item:04d}{leg}"


@dataclass(frozen=True, slots=True)
class End:
    """The campaign is over, until its settings change or a person acts.

    Attributes:
        remedy: what a person must do; empty where nothing is wrong.
        scratch: directory of an example, relative to the campaign's; empty where there is none.
    """

    reason: EndReason
    message: str
    remedy: str = ""
    scratch: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now: tasks that are not in flight yet, or gather the round's labels, or end."""

    requests: tuple[Request, ...] = ()
    gather: bool = False
    end: End | None = None


def decide(
    state: CampaignState, settings: CampaignSettings, *, now: float, in_flight: Set[str] = frozenset()
) -> Decision:
    """The next step of a campaign.

    Args:
        state: what is known.
        settings: the settings in force.
        now: seconds since the epoch.
        in_flight: names of tasks handed out by this driver and not finished.
    """
    if state.failure is not None:
        message = f"{state.failure.task} failed: {state.failure.reason}"
        return Decision(end=End(EndReason.TASK_FAILED, message, state.failure.remedy))
    if (pause := _pause(state, settings)) is not None:
        return Decision(end=pause)
    hours = settings.stop.max_wall_h
    if hours is not None and state.wall_s(now) >= hours * 3600.0:
        return Decision(end=End(EndReason.MAX_WALL, f"the campaign has run for stop.max_wall_h = {hours:g} h"))
    earlier = _earlier_labels(state)
    schedule = _initial if state.round == 0 else _round
    # what is walked and selected depends on the labels: those tried again come first
    decision = Decision(requests=earlier) if earlier else schedule(state, settings, len(in_flight))
    return Decision(
        requests=tuple(request for request in decision.requests if request.name not in in_flight),
        gather=decision.gather,
        end=decision.end,
    )


def labels_asked(state: CampaignState, settings: CampaignSettings) -> int:
    """How many labels the present round asks for in all, once that is known; 0 before."""
    if state.round == 0:
        # one more for each that failed, up to as many again, unless none succeeds at all: then the reference is at fault
        asked = settings.labels.initial + (state.ever_failed if state.labelled else 0)
        return max(min(asked, 2 * settings.labels.initial, settings.labels.budget), state.spent)
    return state.selected.count if state.selected is not None else 0


def picks_allowed(state: CampaignState, settings: CampaignSettings) -> int:
    """How many frames the present round may select.

    Few while there are few labels: what a poor model proposes is alike and near its start, and the next model knows it.
    """
    return picks_at(state.labelled, state.spent, settings)


def picks_at(labels: int, spent: int, settings: CampaignSettings) -> int:
    """How many frames a round may select that begins with so many labels and so many spent."""
    grown = max(SMALLEST_ROUND, math.ceil(settings.selection.growth * labels))
    return min(settings.selection.batch, grown, settings.labels.budget - spent)


def batches(settings: CampaignSettings) -> int:
    """Walk tasks per round."""
    return settings.walkers.count // settings.walkers.batch


def enough_per_batch(state: CampaignState, settings: CampaignSettings) -> int:
    """Stopped walkers after which one batch may end its segment early."""
    wanted = settings.walkers.enough or 4 * max(1, picks_allowed(state, settings))
    return math.ceil(wanted / batches(settings))


def conditions_of(item: int, settings: CampaignSettings) -> list[tuple[float, float]]:
    """Temperature, K, and pressure, MPa, of each slot of one batch.

    All slots of the campaign take the temperatures in turn, and with every turn the next pressure.
    """
    walkers = settings.walkers
    conditions = [
        (temperature, pressure) for pressure in walkers.pressures_MPa for temperature in walkers.temperatures_K
    ]
    slots = range(item * walkers.batch, (item + 1) * walkers.batch)
    return [conditions[slot % len(conditions)] for slot in slots]


def start_labels(state: CampaignState) -> tuple[Labelled, ...]:
    """Labels that new walkers start from: for every system its newest ones (Zaverkin et al. 2024), from one round.

    In the order of their numbers; at most 64 in all, but at least one per system.
    """
    share = max(1, MAX_STARTS // max(1, len(state.newest)))
    chosen = [row for rows in state.newest.values() for row in rows[-share:]]
    return tuple(sorted(chosen, key=lambda row: row.number))


def fresh_labels(state: CampaignState) -> tuple[Labelled, ...]:
    """Labels the running model has not seen, in the order of their numbers; none before the first model.

    They are all of the present round and of those tried again in it: a round with labels ends in a model.
    """
    return state.round_labels if state.models else ()


def last_leg(state: CampaignState, item: int) -> Walked | None:
    """The last leg that one batch has made in the present round; None before its first."""
    return next((walk for walk in reversed(state.walked) if walk.item == item), None)


def enough_left(state: CampaignState, item: int, settings: CampaignSettings) -> int:
    """Stopped walkers after which the next leg of a batch may end its segment early."""
    legs = [walk for walk in state.walked if walk.item == item]
    stopped = sum(sum(walk.stops.values()) - walk.stops.get(StopReason.COMPLETED, 0) for walk in legs)
    # a budget lowered in the middle of a segment must not turn "enough already" into 0, which means never
    return max(1, enough_per_batch(state, settings) - stopped)


def rounds_on_target(state: CampaignState, settings: CampaignSettings) -> int:
    """How many rounds in a row, up to the last, the running model was below the target on labels new to it."""
    target = settings.stop.target_force_eV_per_A
    count = 0
    for model in reversed(state.models):
        if target is None or model.fresh is None or not model.fresh.force_rmse < target:
            break
        count += 1
    return count


def _pause(state: CampaignState, settings: CampaignSettings) -> End | None:
    """Why no further labels are asked for, until a person acted."""
    fault = systematic_fault(state.recent, settings.labels.recovery)
    if fault is None:
        return None
    message = (
        f"labelling is paused: {fault.count} of the last {fault.window} labels failed for one cause, {fault.cause.value}; "
        f"the last one because {fault.example.reason}"
    )
    return End(EndReason.LABELS_PAUSED, message, REMEDIES[fault.cause], fault.example.scratch)


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
        legs = _missing_legs(state, settings)
        if legs:
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
    return Decision(requests=(Request(Work.TRAIN, state.round, len(state.models) + 1),))


def _end_of_rounds(state: CampaignState, settings: CampaignSettings) -> End | None:
    """Whether the campaign is over now that a round is complete."""
    stop = settings.stop
    if stop.target_force_eV_per_A is not None and rounds_on_target(state, settings) >= stop.consecutive:
        text = (
            f"force RMSE on new labels below {stop.target_force_eV_per_A:g} eV/Å in {stop.consecutive} rounds in a row"
        )
        return End(EndReason.TARGET, text)
    if state.spent >= settings.labels.budget:
        return _budget_spent(state, settings)
    if state.round > stop.max_rounds:
        return End(EndReason.MAX_ROUNDS, f"stop.max_rounds = {stop.max_rounds} rounds are done")
    if state.barren >= MAX_BARREN:
        return End(EndReason.NOTHING_NEW, f"nothing new found in {state.barren} rounds in a row")
    return None


def _budget_spent(state: CampaignState, settings: CampaignSettings) -> End:
    return End(EndReason.BUDGET, f"{state.spent} of labels.budget = {settings.labels.budget} labels are spent")
