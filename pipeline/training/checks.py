"""Bounds against errors, one by one: what calibrates, what enters the window of late scores, what coverage is counted on.

Shapes: n structures or atoms. Units: eV/atom (total), eV/Å (atomic).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.frames import FloatArray, IntArray
from pipeline.records import GroupCoverage, Quantity
from pipeline.uncertainty.band import (
    Evidence,
    band,
    cluster_size,
    correlation_within,
    effective_count,
    mixed,
)
from pipeline.uncertainty.calibration import Calibration
from pipeline.uncertainty.conformal import conformal_scores
from pipeline.uncertainty.points import ALL, GroupArray, Points


@dataclass(frozen=True, slots=True, kw_only=True)
class Checks:
    """Errors of one quantity beside their bounds.

    Attributes:
        errors: (n,) >= 0; bounds: (n,) calibrated by the model that was scored.
        groups: (n,) system, or element; structures: (n,) which structure, from 0.
    """

    quantity: Quantity
    errors: FloatArray
    bounds: FloatArray
    groups: GroupArray
    structures: IntArray

    @property
    def held(self) -> NDArray[np.bool_]:
        """(n,) which bounds held; of what is not a number, none."""
        held: NDArray[np.bool_] = self.errors <= self.bounds
        return held

    def points(self, calibration: Calibration | None = None) -> Points:
        """Scores: errors over bounds, or with the calibration the bounds were made by, its factors taken out of them and in
        units of the median calibration score."""
        unit: FloatArray | float = 1.0
        if calibration is not None:
            names, places = np.unique(self.groups, return_inverse=True)
            # the model has one factor of total uncertainty
            used = [calibration.factor(self.quantity, ALL if self.quantity == "total" else str(name)) for name in names]
            unit = np.array([one.value for one in used])[places] / calibration.scales[self.quantity]
        scores = unit * conformal_scores(self.errors, self.bounds)
        scores[np.isnan(scores)] = np.inf  # what is not a number held no bound
        return Points(scores=scores, groups=self.groups, structures=self.structures)


def coverages(calibration: Calibration, subject: Checks) -> tuple[GroupCoverage, ...]:
    """How often bounds held, for all and for each group, beside what chance explains.

    A bound rests on calibration points and, where there is one, on the window of late scores: chance explains what it explains
    by either of them.
    """
    scored = subject.points()
    found = []
    for group in [ALL, *scored.names]:
        mask = np.ones(len(scored), dtype=np.bool_) if group == ALL else subject.groups == group
        points = scored.where(mask)
        low, high = _band(calibration, subject.quantity, points)
        found.append(
            GroupCoverage(
                quantity=subject.quantity,
                group=group,
                count=len(points),
                held=int(subject.held[mask].sum()),
                structures=points.spread,
                low=low,
                high=high,
            )
        )
    return tuple(found)


def _band(calibration: Calibration, quantity: Quantity, points: Points) -> tuple[float, float]:
    """(low, high) share that may hold by chance; anything without calibration points."""
    count, atoms = len(points), quantity == "atomic"
    correlation = correlation_within(points.scores, points.structures) if atoms else 0.0
    effective = effective_count(count, cluster_size(points.structures), correlation)
    names = points.names if atoms else [ALL]
    shares = [len(points.of(name)) / count for name in names]
    fitted, late = [], []
    for name in names:
        factor = calibration.factor(quantity, name)
        if not factor.own:
            factor = calibration.factor(quantity)
        fitted.append(_evidence(factor.count, factor.structures, calibration.alpha, correlation))
        seen = calibration.window.of(quantity)
        own = seen.of(name)
        seen = own if calibration.has_own_shift(quantity, own) else seen
        late.append(_evidence(len(seen), seen.spread, calibration.alpha, correlation))
    claim = mixed(list(zip(shares, fitted, strict=True)))
    if claim is None:
        return 0.0, 1.0
    bands = [band(count, effective, claim)]
    shown = mixed(list(zip(shares, late, strict=True)))
    if shown is not None:
        bands.append(band(count, effective, shown))
    return min(low for low, _ in bands), max(high for _, high in bands)


def _evidence(count: int, structures: int, alpha: float, correlation: float) -> Evidence | None:
    """Of a quantile of atoms or structures."""
    return Evidence.of(count, effective_count(count, count / max(structures, 1) if count else 1.0, correlation), alpha)
