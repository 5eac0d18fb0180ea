"""How much of everything: batches, picks, conditions, starts, shares. Pure functions of what is known and wanted."""

import math

from pipeline.events import Labelled, Walked
from pipeline.records import StopReason
from pipeline.settings.campaign import CampaignSettings
from pipeline.settings.schedule import StreamingSchedule
from pipeline.state import MAX_STARTS, CampaignState

FIRST_SHARE = 0.5
"""The first model of a stream is trained when this share of the initial labels is there: walkers need not wait for the rest."""
SMALLEST_ROUND = 8
"""Labels a selection may ask for however few there are: a round costs a walk and a training."""
LEAST_SHARE = 0.25
"""A system where the model is certain gets at least this part of an equal share of the walkers."""


def labels_asked(state: CampaignState, settings: CampaignSettings) -> int:
    """How many labels the present round asks for in all, once that is known; 0 before."""
    if state.round == 0:
        # one more for each that failed, up to as many again, unless none succeeds at all: then the reference is at fault
        return max(initial_wanted(state.ever_failed if state.labelled else 0, settings), state.spent)
    return state.selected.count if state.selected is not None else 0


def initial_wanted(failed: int, settings: CampaignSettings) -> int:
    """Labels of start structures wanted when so many of them have failed."""
    return min(settings.labels.initial + failed, 2 * settings.labels.initial, settings.labels.budget)


def first_labels(settings: CampaignSettings) -> int:
    """Labels the first model is trained on: all initial ones; in a stream half, at least 4."""
    initial = settings.labels.initial
    if not isinstance(settings.schedule, StreamingSchedule):
        return initial
    return max(4, math.ceil(FIRST_SHARE * initial))


def picks_allowed(state: CampaignState, settings: CampaignSettings) -> int:
    """How many frames a selection may pick.

    Few while there are few labels: what a poor model proposes is alike and near its start, and the next model knows it.
    """
    spent = state.flow.numbers if state.flow is not None else state.spent
    return picks_at(state.labelled, spent, settings)


def picks_at(labels: int, spent: int, settings: CampaignSettings) -> int:
    """How many frames a round may select that begins with so many labels and so many spent."""
    grown = max(SMALLEST_ROUND, math.ceil(settings.selection.growth * labels))
    return min(settings.selection.batch, grown, settings.labels.budget - spent)


def batches(settings: CampaignSettings) -> int:
    """Walk tasks side by side."""
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
    """Labels that new walkers start from: for every system its newest ones (Zaverkin et al. 2024).

    In the order of their numbers; at most 64 in all, but at least one per system.
    """
    share = max(1, MAX_STARTS // max(1, len(state.newest)))
    chosen = [row for rows in state.newest.values() for row in rows[-share:]]
    return tuple(sorted(chosen, key=lambda row: row.number))


def fresh_labels(state: CampaignState) -> tuple[Labelled, ...]:
    """Selected labels the running model has not seen, in the order of their numbers; none before the first model.

    With rounds those of the present one and those tried again in it, in a stream those gathered since; and what a model was
    trained on that the gate refused. Start structures are left out: that a model is right about them says little.
    """
    if not state.models:
        return ()
    present = () if state.flow is not None else state.round_labels
    rows = [row for row in [*state.unlearned, *present] if row.round > 0]
    return tuple(sorted(rows, key=lambda row: row.number))


def walker_shares(state: CampaignState, settings: CampaignSettings) -> dict[str, float]:
    """Shares of the systems in new walkers, summing up to 1; empty: by their number of start labels.

    Those that the settings give, else proportional to the mean bound of what walkers found there up to the newest model; a
    system where none has been counts like the least certain one.
    """
    if settings.shares or len(settings.systems) == 1:
        return settings.shares
    names = [system.name for system in settings.systems]
    bounds = {name: state.explored[name].mean_bound if name in state.explored else None for name in names}
    known = [bound for bound in bounds.values() if bound is not None and math.isfinite(bound) and bound > 0]
    if not known:
        return {}
    most = max(known)
    weights = {name: bound if bound in known else most for name, bound in bounds.items()}
    total = math.fsum(weight for weight in weights.values() if weight is not None)
    least = LEAST_SHARE / len(names)
    shares = {name: max(least, (weight or most) / total) for name, weight in weights.items()}
    whole = math.fsum(shares.values())
    return {name: share / whole for name, share in shares.items()}


def last_leg(state: CampaignState, item: int) -> Walked | None:
    """The last leg that one batch has made in the present round, or at all in a stream; None before its first."""
    if state.flow is not None:
        return state.walkers.get(item)
    return next((walk for walk in reversed(state.walked) if walk.item == item), None)


def enough_left(state: CampaignState, item: int, settings: CampaignSettings) -> int:
    """Stopped walkers after which the next leg of a batch may end its segment early."""
    enough = enough_per_batch(state, settings)
    if state.flow is not None:  # it selects again and again: what it needs at a time is what a round would
        return enough
    legs = [walk for walk in state.walked if walk.item == item]
    stopped = sum(sum(walk.stops.values()) - walk.stops.get(StopReason.COMPLETED, 0) for walk in legs)
    # a budget lowered in the middle of a segment must not turn "enough already" into 0, which means never
    return max(1, enough - stopped)
