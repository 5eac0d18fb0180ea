"""When a campaign will be over: for each limit of its stop rule, at the present pace. Pure functions of what happened.

Budgets are taken to be spent on as they were lately. The error on new labels is taken to fall as a power of the number of
labels, which learning curves of machine-learned potentials do until they run into their noise; how fast coverage still grows,
to fall off exponentially with the models. Both lines are of Theil and Sen: medians, which single models that went wrong do not
move.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import theilslopes

from pipeline.ending import batches_on_target, coverages
from pipeline.pace import History, Pace, pace_of
from pipeline.settings.campaign import CampaignSettings
from pipeline.settings.schedule import StreamingSchedule
from pipeline.state import CampaignState

LEAST = 4
"""Points of a line that is believed."""
MOST = 100
"""Newest points that a line is drawn through."""
CONFIDENCE = 0.9
"""Of the interval of a slope."""
FAR = 10.0
"""Nothing is told of more labels than so many times those there are, or of more models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """One limit of the stop rule, and when it will be reached.

    Attributes:
        key: of the settings.
        limit, present: in ``unit``; present is None where it is not known.
        left_s: seconds of wall time from now; None: ``why`` it is not known.
        low_s, high_s: interval of it (90 % of the slope of the line), ``inf`` where it may never be; None without a line.
        labels: how many there will be then, where that is a result.
    """

    key: str
    limit: float
    present: float | None
    unit: str
    left_s: float | None
    why: str = ""
    low_s: float | None = None
    high_s: float | None = None
    labels: float | None = None


@dataclass(frozen=True, slots=True)
class Forecast:
    """When a campaign will be over.

    Attributes:
        prospects: a row per limit that is set.
        pace: what they are from; None: nothing is known yet.
    """

    prospects: tuple[Prospect, ...]
    pace: Pace | None

    @property
    def first(self) -> Prospect | None:
        """The limit that is reached first; None: of none is known when."""
        known = [one for one in self.prospects if one.left_s is not None]
        return min(known, key=lambda one: one.left_s or 0.0, default=None)


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where a falling line meets a level: abscissa and its interval, whose end may be ``inf``."""

    at: float
    low: float
    high: float


def forecast(history: History, state: CampaignState, settings: CampaignSettings, now: float) -> Forecast:
    """When each limit is reached.

    Args:
        history: of the same events as ``state``.
        state: what is known.
        settings: the settings in force.
        now: seconds since the epoch; of a campaign that no driver works on, the time of its last event.
    """
    present = history.present(now)
    is_stream = isinstance(settings.schedule, StreamingSchedule)
    pace = pace_of(history, present, is_stream=is_stream)
    stop = settings.stop
    labels_s, models_s = (pace.labels, pace.models) if pace else (None, None)
    core_s, gpu_s = (pace.core_s, pace.gpu_s) if pace else (None, None)
    rows = [_spending("labels.budget", settings.labels.budget, float(history.labels), "labels", 1.0, labels_s)]
    for key, limit, spent_s, unit, rate in (
        ("stop.max_cpu_h", stop.max_cpu_h, present.core_s, "core h", core_s),
        ("stop.max_gpu_h", stop.max_gpu_h, present.gpu_s, "GPU h", gpu_s),
        ("stop.max_wall_h", stop.max_wall_h, present.wall_s, "h", 1.0),
    ):
        if limit is not None:
            rows.append(_spending(key, limit, spent_s, unit, 3600.0, rate))
    if not is_stream:
        rounds = max(0, state.round - 1)
        rows.append(_spending("stop.max_rounds", stop.max_rounds, rounds, "rounds", 1.0, models_s))
    if stop.target_force_eV_per_A is not None:
        rows.append(_target(state, settings, stop.target_force_eV_per_A, pace))
    if stop.coverage is not None:
        rows.append(_coverage(state, settings, stop.coverage.gain, stop.coverage.models, pace))
    return Forecast(tuple(rows), pace)


def _spending(key: str, limit: float, spent: float, unit: str, scale: float, rate: float | None) -> Prospect:
    """A budget in units of ``scale`` that are spent at ``rate`` per second."""
    left = limit * scale - spent
    why = "reached" if left <= 0 else "no pace yet" if rate is None else "not at the present pace"
    left_s = 0.0 if left <= 0 else left / rate if rate else None
    return Prospect(key=key, limit=limit, present=spent / scale, unit=unit, left_s=left_s, why="" if left_s else why)


def errors_on_new(state: CampaignState) -> tuple[list[float], list[float]]:
    """Labels that a model knows, and its force RMSE on those that came later, eV/Å; oldest first."""
    pairs = [
        (float(model.labels), following.fresh.force_rmse)
        for model, following in zip(state.models, state.models[1:], strict=False)
        if following.fresh is not None and following.fresh.force_rmse > 0 and model.labels > 0
    ]
    return [labels for labels, _ in pairs], [error for _, error in pairs]


def _target(state: CampaignState, settings: CampaignSettings, target: float, pace: Pace | None) -> Prospect:
    labels, errors = errors_on_new(state)
    key, unit, present = "stop.target_force_eV_per_A", "eV/Å", errors[-1] if errors else None

    def unknown(why: str) -> Prospect:
        return Prospect(key=key, limit=target, present=present, unit=unit, left_s=None, why=why)

    done, wanted = len(batches_on_target(state, settings)), settings.stop.consecutive
    if done >= wanted:
        return Prospect(key=key, limit=target, present=present, unit=unit, left_s=0.0, why="reached")
    if len(errors) < LEAST:
        return unknown(f"needs {LEAST + 1} models")
    if pace is None or not (pace.labels and pace.models):
        return unknown("no pace yet" if pace is None else "not at the present pace")
    known = float(state.models[-1].labels)
    found = crossing(np.log(labels).tolist(), np.log(errors).tolist(), math.log(target), limit=math.log(FAR * known))
    if found is None:
        return unknown("not in sight")

    def seconds(log_labels: float) -> float:
        ahead = math.exp(log_labels) - known if log_labels < math.log(1e12) else math.inf
        # below the line already: what is missing are more models in a row
        models = wanted - done if ahead <= 0 else wanted
        return max(0.0, ahead) / pace.labels + models / pace.models

    left_s = seconds(found.at)
    return Prospect(
        key=key,
        limit=target,
        present=present,
        unit=unit,
        left_s=left_s,
        low_s=seconds(found.low),
        high_s=seconds(found.high),
        labels=known + left_s * pace.labels,
    )


def _coverage(state: CampaignState, settings: CampaignSettings, gain: float, over: int, pace: Pace | None) -> Prospect:
    """The system that is explored last counts."""
    followed = coverages(state, settings)
    count = len(state.cells)
    gains = {name: [b - a for a, b in zip(values, values[over:], strict=False)] for name, values in followed.items()}
    present = max((several[-1] for several in gains.values() if several), default=None)

    def prospect(
        left_s: float | None, why: str = "", low_s: float | None = None, high_s: float | None = None
    ) -> Prospect:
        return Prospect(
            key="stop.coverage",
            limit=gain,
            present=present,
            unit=f"in {over} models",
            left_s=left_s,
            why=why,
            low_s=low_s,
            high_s=high_s,
        )

    if count <= over or not followed:
        return prospect(None, f"needs {over + 1} models")
    if any(values[-1] == 0.0 for values in followed.values()):
        return prospect(None, "not in sight")
    growing = [several for several in gains.values() if several[-1] >= gain]
    if not growing:
        return prospect(0.0, "reached")
    if any(sum(value > 0 for value in several) < LEAST for several in growing):
        return prospect(None, f"needs {over + LEAST} models")
    found = [_settling(several, gain) for several in growing]
    if pace is None or not pace.models:
        return prospect(None, "no pace yet")
    crossings = [one for one in found if one is not None]
    if len(crossings) < len(found):
        return prospect(None, "not in sight")
    ends = (max(one.at for one in crossings), max(one.low for one in crossings), max(one.high for one in crossings))
    left, low, high = (max(1.0, at - (len(growing[0]) - 1)) / pace.models for at in ends)
    return prospect(left, low_s=low, high_s=high)


def _settling(gains: Sequence[float], level: float) -> Crossing | None:
    """At which index gains fall below a level."""
    rows = [(float(k), math.log(value)) for k, value in enumerate(gains) if value > 0]
    return crossing([k for k, _ in rows], [value for _, value in rows], math.log(level), limit=FAR * len(gains))


def crossing(x: Sequence[float], y: Sequence[float], level: float, *, limit: float) -> Crossing | None:
    """Where the line through the newest points falls to a level; None: it does not fall, or not before ``limit``.

    Args:
        x: rising abscissas, at least four.
        y: ordinates.
        level: to which the line falls.
        limit: beyond this nothing is told.
    """
    rows, values = np.array(x[-MOST:]), np.array(y[-MOST:])
    slope, _, steep, flat = (float(one) for one in theilslopes(values, rows, CONFIDENCE))

    def meets(slope: float) -> float:
        """Where the line of this slope that has half of the points above it meets the level."""
        return (level - float(np.median(values - slope * rows))) / slope if slope < 0 else math.inf

    if math.isinf(at := meets(slope)) or at > limit:
        return None
    ends = (at, meets(steep), meets(flat))
    return Crossing(at, min(ends), max(ends))
