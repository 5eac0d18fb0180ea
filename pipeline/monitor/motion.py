"""How collective variables move along walkers: series, and a row of statistics per condition. Reads only.

A walker's frames are stored at an interval of MD steps; between rounds it goes on with the next model. Units: ps; values of a
variable in its own unit (degrees, Å, Å³).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.analysis.autocorrelation import (
    autocorrelation,
    dominant_period,
    integrated_time,
    is_resolved,
    standard_error,
)
from pipeline.analysis.coverage import Coverage
from pipeline.analysis.variables import evaluate_all, periodic
from pipeline.events import Walked
from pipeline.frames import FloatArray, Frame, IntArray
from pipeline.monitor.tables import system_variables
from pipeline.records import Candidate
from pipeline.settings.campaign import CampaignSettings
from pipeline.settings.variables import Variable
from pipeline.shards import read_candidates
from pipeline.store import Store

NOISE = 2.0
"""A peak of the autocorrelation counts as an oscillation above so many standard deviations of its noise."""
SHORTEST = 3
"""Frames in a row that tell something of motion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One variable along one walker.

    Attributes:
        system, walker: names.
        variable: which one.
        temperature_K, pressure_MPa: of the walker.
        steps: (n,) ages in MD steps, rising.
        values: (n,) of the variable.
        spacing: MD steps between frames that are stored at an interval; where a walker stopped lies anywhere.
        step_ps: length of an MD step.
    """

    system: str
    walker: str
    variable: Variable
    temperature_K: float
    pressure_MPa: float
    steps: IntArray
    values: FloatArray
    spacing: int
    step_ps: float

    @property
    def condition(self) -> tuple[float, float]:
        """Temperature and pressure."""
        return self.temperature_K, self.pressure_MPa

    @property
    def times_ps(self) -> FloatArray:
        """(n,) ages, ps."""
        return np.asarray(self.steps * self.step_ps, dtype=np.float64)

    def pieces(self) -> list[FloatArray]:
        """Stretches of at least three evenly spaced values; (m,), or (m, 2) cosine and sine of a periodic variable."""
        cuts = np.flatnonzero(np.diff(self.steps) != self.spacing) + 1
        values = self.values
        if periodic(self.variable):
            values = np.stack([np.cos(np.radians(values)), np.sin(np.radians(values))], axis=1)
        return [piece for piece in np.split(values, cuts) if len(piece) >= SHORTEST]


@dataclass(frozen=True, slots=True, kw_only=True)
class MotionRow:
    """One variable of one system at one condition, over all walkers and rounds.

    Attributes:
        system, variable: names; temperature_K, pressure_MPa: the condition.
        walkers: that left frames; frames: of all of them.
        mean: of all frames, for angles the direction of the mean vector; error: standard error of the mean from evenly spaced
            frames; NaN, not known, for angles and where there are fewer than ten.
        low, high: smallest and largest value.
        coverage: share of the variable's range that was visited, as in Zaverkin et al. 2024.
        correlation_ps: integrated correlation time, at least half the interval between frames, NaN where nothing is evenly
            spaced; is_resolved: whether the series are long enough for it, else it is too short.
        period_ps: of an oscillation; None where the autocorrelation shows none above its noise.
    """

    system: str
    variable: str
    temperature_K: float
    pressure_MPa: float
    walkers: int
    frames: int
    mean: float
    error: float
    low: float
    high: float
    coverage: float
    correlation_ps: float
    is_resolved: bool
    period_ps: float | None


def walker_series(store: Store) -> list[Series]:
    """The variables along all walkers of a campaign, by system, variable, condition and walker.

    Raises:
        StoreError: the log or a shard is missing or changed.
    """
    variables = system_variables(store)
    if not variables:
        return []
    settings = CampaignSettings.model_validate(store.state().settings)
    walked = (
        read_candidates(store.absolute(event.candidates)) for event in store.reading() if isinstance(event, Walked)
    )
    step_ps = settings.walkers.timestep_fs / 1000.0
    return series_of(walked, variables, spacing=settings.walkers.store_every, step_ps=step_ps)


def series_of(
    portions: Iterable[Sequence[Candidate]],
    variables: Mapping[str, Sequence[Variable]],
    *,
    spacing: int,
    step_ps: float,
) -> list[Series]:
    """Series from candidates in portions, of which one is held at a time.

    Args:
        portions: candidates of one leg after the other.
        variables: of each system.
        spacing: MD steps between stored frames.
        step_ps: length of an MD step.
    """
    found: dict[tuple[str, float, float, str], list[tuple[int, FloatArray]]] = defaultdict(list)
    for candidates in portions:
        frames: dict[tuple[str, float, float, str], list[tuple[int, Frame]]] = defaultdict(list)
        for one in candidates:
            if one.frame.system in variables:
                frames[one.frame.system, one.temperature_K, one.pressure_MPa, one.walker].append((one.step, one.frame))
        for key, rows in frames.items():
            values = evaluate_all(variables[key[0]], [frame for _, frame in rows])
            found[key] += [(step, value) for (step, _), value in zip(rows, values, strict=True)]
    series = []
    for system, several in variables.items():
        walkers = sorted(key for key in found if key[0] == system)
        for column, variable in enumerate(several):
            for key in walkers:
                # a walker that left physics proposes the last frame that had not, which may be stored already
                by_step = dict(sorted(found[key], key=lambda row: row[0]))
                _, temperature_K, pressure_MPa, walker = key
                series.append(
                    Series(
                        system=system,
                        walker=walker,
                        variable=variable,
                        temperature_K=temperature_K,
                        pressure_MPa=pressure_MPa,
                        steps=np.array(list(by_step), dtype=np.int64),
                        values=np.array([row[column] for row in by_step.values()]),
                        spacing=spacing,
                        step_ps=step_ps,
                    )
                )
    return series


def by_condition(series: Iterable[Series]) -> dict[tuple[str, str, float, float], list[Series]]:
    """Series by system, name of the variable, temperature and pressure, in the order of their first ones."""
    groups: dict[tuple[str, str, float, float], list[Series]] = defaultdict(list)
    for one in series:
        groups[one.system, one.variable.name, *one.condition].append(one)
    return dict(groups)


def correlation_of(series: Iterable[Series]) -> FloatArray:
    """(L,) autocorrelation of one variable over its series, about their common mean; empty where none is evenly spaced."""
    return autocorrelation([piece for one in series for piece in one.pieces()])


def motion_rows(series: Iterable[Series]) -> list[MotionRow]:
    """A row per system, variable and condition."""
    return [_row(group) for group in by_condition(series).values()]


def _row(group: Sequence[Series]) -> MotionRow:
    first = group[0]
    values = np.concatenate([one.values for one in group])
    pieces = [piece for one in group for piece in one.pieces()]
    interval_ps = first.spacing * first.step_ps
    correlation, time, period = autocorrelation(pieces), float("nan"), None
    if len(correlation):
        time = integrated_time(correlation)
        noise = np.sqrt(2.0 * time / sum(len(piece) for piece in pieces))
        period = dominant_period(correlation, least=NOISE * noise)
    angles = np.radians(values)
    turns = periodic(first.variable)
    mean = (
        float(np.degrees(np.arctan2(np.sin(angles).mean(), np.cos(angles).mean()))) if turns else float(values.mean())
    )
    return MotionRow(
        system=first.system,
        variable=first.variable.name,
        temperature_K=first.temperature_K,
        pressure_MPa=first.pressure_MPa,
        walkers=len(group),
        frames=len(values),
        mean=mean,
        error=float("nan") if turns else standard_error(pieces),
        low=float(values.min()),
        high=float(values.max()),
        coverage=Coverage.of([first.variable]).with_points(values[:, None]).value,
        correlation_ps=time * interval_ps,
        is_resolved=bool(len(correlation)) and is_resolved(correlation),
        period_ps=None if period is None else period * interval_ps,
    )
