"""What to do next: pure functions of what a campaign knows.

The ``rounds`` schedule. Round 0 labels the initial frames and trains the first model. Every later round walks, selects, labels
and trains, each after the one before is complete. Which task gets which number, seed, start and split does not depend on the
order in which results arrive, so a campaign is the same wherever its tasks run.
"""

import math
from dataclasses import dataclass

from pipeline.events import EndReason, Labelled, Work
from pipeline.records import Split
from pipeline.settings.campaign import CampaignSettings
from pipeline.state import CampaignState

MAX_BARREN = 3
"""Rounds in a row without a new label after which a campaign ends."""
SMALLEST_ROUND = 8
"""Labels a round may ask for however few there are: a round costs a walk and a training."""
MAX_STARTS = 64
"""Labelled structures handed to a batch of walkers to start from."""


@dataclass(frozen=True, slots=True, order=True)
class Request:
    """A task to be made: what, in which round, which one. For training ``item`` is the model version."""

    work: Work
    round: int
    item: int = 0

    @property
    def name(self) -> str:
        """Unique in the campaign, the same on every run."""
        if self.work is Work.TRAIN:
            return f"train-v{self.item:04d}"
        return f"{self.work.value}-r{self.round:04d}-{self.item:04d}"


@dataclass(frozen=True, slots=True)
class End:
    """The campaign is over, until its settings change."""

    reason: EndReason
    message: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now: tasks that are not in flight yet, or gather the round's labels, or end."""

    requests: tuple[Request, ...] = ()
    gather: bool = False
    end: End | None = None


def decide(
    state: CampaignState, settings: CampaignSettings, *, now: float, in_flight: frozenset[str] = frozenset()
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
        return Decision(end=End(EndReason.TASK_FAILED, message))
    hours = settings.stop.max_wall_h
    if hours is not None and state.wall_s(now) >= hours * 3600.0:
        return Decision(end=End(EndReason.MAX_WALL, f"the campaign has run for stop.max_wall_h = {hours:g} h"))
    decision = _initial(state, settings) if state.round == 0 else _round(state, settings)
    return Decision(
        requests=tuple(request for request in decision.requests if request.name not in in_flight),
        gather=decision.gather,
        end=decision.end,
    )


def labels_asked(state: CampaignState, settings: CampaignSettings) -> int:
    """How many labels the present round asks for in all, once that is known; 0 before."""
    if state.round == 0:
        # one more for each that failed, up to as many again, unless none succeeds at all: then the reference is at fault
        labels, failures = len(state.labels), len(state.failures)
        asked = settings.labels.initial + (failures if labels else 0)
        return max(min(asked, 2 * settings.labels.initial, settings.labels.budget), labels + failures)
    return state.selected.count if state.selected is not None else 0


def picks_allowed(state: CampaignState, settings: CampaignSettings) -> int:
    """How many frames the present round may select.

    Few while there are few labels: what a poor model proposes is alike and near its start, and the next model knows it.
    """
    return picks_at(len(state.labels), state.spent, settings)


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


def temperatures_of(item: int, settings: CampaignSettings) -> tuple[float, ...]:
    """Temperatures of the slots of one batch, K: all slots of the campaign take them in turn."""
    listed, size = settings.walkers.temperatures_K, settings.walkers.batch
    return tuple(listed[slot % len(listed)] for slot in range(item * size, (item + 1) * size))


def start_labels(state: CampaignState) -> tuple[Labelled, ...]:
    """Labels that new walkers start from: for every system its newest ones (Zaverkin et al. 2024), from one round.

    In the order of their numbers; at most 64 in all, but at least one per system.
    """
    done = sorted((row for row in state.labels if row.round < state.round), key=lambda row: row.number)
    systems = sorted({row.system for row in done})
    chosen: list[Labelled] = []
    for system in systems:
        rows = [row for row in done if row.system == system]
        newest = [row for row in rows if row.round == rows[-1].round]
        chosen += newest[-max(1, MAX_STARTS // len(systems)) :]
    return tuple(sorted(chosen, key=lambda row: row.number))


def fresh_labels(state: CampaignState) -> tuple[Labelled, ...]:
    """Labels the running model has not seen, in the order of their numbers; none before the first model."""
    if not state.models:
        return ()
    return tuple(
        sorted((row for row in state.labels if row.round > state.models[-1].round), key=lambda row: row.number)
    )


def rounds_on_target(state: CampaignState, settings: CampaignSettings) -> int:
    """How many rounds in a row, up to the last, the running model was below the target on labels new to it."""
    target = settings.stop.target_force_eV_per_A
    count = 0
    for model in reversed(state.models):
        if target is None or model.fresh is None or not model.fresh.force_rmse < target:
            break
        count += 1
    return count


def _initial(state: CampaignState, settings: CampaignSettings) -> Decision:
    labels = _missing_labels(state, settings)
    if labels:
        return Decision(requests=labels)
    present = {row.split for row in state.labels}
    if len(present) == len(Split):
        return _train(state)
    if state.labels and state.spent < settings.labels.budget:
        return Decision(requests=(Request(Work.LABEL, 0, state.spent),))
    last = state.failures[-1] if state.failures else None
    reason = f"; the last one failed because {last.reason}" if last else ""
    message = f"{len(state.labels)} of {state.spent} initial labels succeeded, too few to train and calibrate{reason}"
    return Decision(end=End(EndReason.LABELS_FAILED, message))


def _round(state: CampaignState, settings: CampaignSettings) -> Decision:
    if state.selected is None:
        walked = {walk.item for walk in state.walked}
        # a round that has begun is finished, so that a changed stop rule never leaves half of one behind
        end = None if walked else _end_of_rounds(state, settings)
        if end is not None:
            return Decision(end=end)
        missing = [item for item in range(batches(settings)) if item not in walked]
        if missing:
            return Decision(requests=tuple(Request(Work.WALK, state.round, item) for item in missing))
        if picks_allowed(state, settings) < 1:  # the budget was lowered in the middle of the round
            return Decision(end=_budget_spent(state, settings))
        return Decision(requests=(Request(Work.SELECT, state.round),))
    labels = _missing_labels(state, settings)
    return Decision(requests=labels) if labels else _train(state)


def _missing_labels(state: CampaignState, settings: CampaignSettings) -> tuple[Request, ...]:
    known = {row.item for row in state.round_labels} | {row.item for row in state.round_failures}
    asked = range(labels_asked(state, settings))
    return tuple(Request(Work.LABEL, state.round, item) for item in asked if item not in known)


def _train(state: CampaignState) -> Decision:
    if not any(gathered.round == state.round for gathered in state.gathered):
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
