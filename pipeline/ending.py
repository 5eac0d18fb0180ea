"""When a campaign is over: pure functions of what is known and of the stop rule."""

import math

from pipeline.analysis.coverage import value_of_mask
from pipeline.decisions import End
from pipeline.events import EndReason
from pipeline.plan import SMALLEST_ROUND
from pipeline.settings.campaign import CampaignSettings
from pipeline.state import CampaignState


def spent_resources(state: CampaignState, settings: CampaignSettings, now: float) -> End | None:
    """Whether wall time, core hours or GPU hours are spent: nothing more is begun then."""
    stop = settings.stop
    limits = (
        (EndReason.MAX_WALL, "stop.max_wall_h", stop.max_wall_h, state.wall_s(now), "the campaign has run for"),
        (EndReason.MAX_CPU, "stop.max_cpu_h", stop.max_cpu_h, state.core_s, "tasks have held"),
        (EndReason.MAX_GPU, "stop.max_gpu_h", stop.max_gpu_h, state.gpu_s, "tasks have held"),
    )
    units = {EndReason.MAX_WALL: "h", EndReason.MAX_CPU: "core hours", EndReason.MAX_GPU: "GPU hours"}
    for reason, key, hours, seconds, text in limits:
        if hours is not None and seconds >= hours * 3600.0:
            return End(reason, f"{text} {seconds / 3600.0:.2f} {units[reason]}, {key} is {hours:g}")
    return None


def goal_reached(state: CampaignState, settings: CampaignSettings) -> End | None:
    """Whether the model is good enough, or there is nothing left to explore."""
    stop = settings.stop
    on_target = batches_on_target(state, settings)
    if stop.target_force_eV_per_A is not None and len(on_target) >= stop.consecutive:
        # told with its figures: a person decides whether to believe it
        errors = ", ".join(f"{error:.3f}" for error in reversed(on_target[: stop.consecutive]))
        text = (
            f"force RMSE below {stop.target_force_eV_per_A:g} eV/Å on {stop.consecutive} batches of new labels in a row"
        )
        return End(EndReason.TARGET, f"{text} ({errors})")
    return _explored(state, settings)


def batches_on_target(state: CampaignState, settings: CampaignSettings) -> list[float]:
    """Force RMSE, eV/Å, of batches of new labels that were below the target in a row, newest first.

    A batch holds the labels that were new to one model, or to several in a row until there are enough of them: one label that
    a model happens to be right about is no proof.
    """
    target = settings.stop.target_force_eV_per_A
    least = min(SMALLEST_ROUND, settings.selection.batch)
    errors: list[float] = []
    labels, squares = 0, 0.0
    for model in reversed(state.models):
        if target is None or len(errors) >= settings.stop.consecutive:
            break
        if model.fresh is None:
            continue
        labels += model.fresh.count
        squares += model.fresh.count * model.fresh.force_rmse**2
        if labels < least:
            continue
        error = math.sqrt(squares / labels)
        if not error < target:
            break
        errors.append(error)
        labels, squares = 0, 0.0
    return errors


def coverages(state: CampaignState, settings: CampaignSettings) -> dict[str, list[float]]:
    """Coverage of the variables of each system that has some by walkers, when each model came; oldest first."""
    return {
        system.name: [value_of_mask(cells.get(system.name, 0), len(system.variables)) for cells in state.cells]
        for system in settings.systems
        if system.variables
    }


def _explored(state: CampaignState, settings: CampaignSettings) -> End | None:
    rule = settings.stop.coverage
    if rule is None or len(state.cells) <= rule.models:
        return None
    # only what is compared is computed: the list grows with the models
    recent = tuple(state.cells[-rule.models - 1 :])
    followed = [system for system in settings.systems if system.variables]
    values = {}
    for system in followed:
        first, last = (value_of_mask(c.get(system.name, 0), len(system.variables)) for c in (recent[0], recent[-1]))
        if last == 0.0 or last - first >= rule.gain:  # walkers have yet to go there, or still find something
            return None
        values[system.name] = last
    text = ", ".join(f"{value:.2f} of {name}" for name, value in values.items())
    return End(EndReason.COVERAGE, f"coverage ({text}) grew by less than {rule.gain:g} over {rule.models} models")
