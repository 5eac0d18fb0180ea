"""Factors of a model's bounds, per group, with the shift that labels selected lately have shown.

Mondrian conformal prediction (Vovk et al., Algorithmic Learning in a Random World): each group whose
points are enough has the quantile of its own scores. Atoms of a group are pooled over structures; that their bounds hold as
promised for the next structure when there are many, not when atoms are many, is known from Dunn, Wasserman and Ramdas 2023
(J. Am. Stat. Assoc. 118, 2491).

Labels that come later were selected for being uncertain, so they are not exchangeable with those that calibrate. Each of them
is scored by the model that selected it before any model is trained on it. The factor covers the quantile of these scores over
the last structures, whichever versions selected them: the idea of Gibbs and Candès 2021 (Adaptive conformal inference under
distribution shift, NeurIPS), with a sliding window in place of their step.

What this cannot see: energy errors of one model share an offset, so the structures that one model selected are worth fewer
independent scores than they are many, and a model that is suddenly off is noticed only by the labels that follow it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import numpy as np
from ase.data import atomic_numbers

from pipeline.frames import FloatArray
from pipeline.records import GroupFactor, Quantity
from pipeline.uncertainty.conformal import SMALLEST, Factor, conformal_factor
from pipeline.uncertainty.points import ALL, Points

ELEMENTS = 128
"""Length of tables by atomic number."""
WINDOW = 60
"""Structures whose scores are remembered: three times what the quantile of α = 0.05 needs, and few enough to follow a drift
and to forget what the first models, calibrated on one or two structures, have shown."""
ATOMS = 32
"""Atoms remembered of one element in one structure."""
LEAST_STRUCTURES = 5
"""Atoms count as enough for a quantile only if they are from this many structures. Of one structure all atoms may be near the
same transition, and a quantile of their scores says nothing of the next structure; with five, the chance that all of them are
below the median of structures is 3 %. An element with less is better served by the quantile of all atoms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Scores of the labels that came last, in units of the median calibration score of the model that selected them.

    Units of the median, not of the factor: models calibrated on few structures have factors that grow with every structure
    more (the largest of few), which would be counted a second time. In a simulation of ten versions that begins with one
    calibration structure, bounds by the factor's unit were up to five times too wide, by the median's unit up to twice.

    Attributes:
        total: of structures; groups are systems.
        atomic: of atoms; groups are elements.
    """

    total: Points = field(default_factory=Points.none)
    atomic: Points = field(default_factory=Points.none)

    def of(self, quantity: Quantity) -> Points:
        """Scores of a quantity."""
        return self.total if quantity == "total" else self.atomic

    def then(self, total: Points, atomic: Points) -> Self:
        """With later scores; what is not finite has no place in a quantile of a factor and is left out."""
        total, atomic = (
            Points.none().then(points.where(np.isfinite(points.scores)), WINDOW) for points in (total, atomic)
        )
        return type(self)(total=self.total.then(total, WINDOW), atomic=self.atomic.then(atomic.thinned(ATOMS), WINDOW))


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What makes bounds of uncertainties.

    Attributes:
        alpha: miscoverage that was asked for.
        factors: of all, then of each group: systems (total), elements (atomic).
        scales: median calibration score of all points; a quantity that was not calibrated has none.
        window: what the shifts were fitted on.
    """

    alpha: float
    factors: tuple[GroupFactor, ...]
    scales: Mapping[Quantity, float] = field(default_factory=dict)
    window: Window = field(default_factory=Window)

    @classmethod
    def none(cls, alpha: float = 0.05, window: Window | None = None) -> Self:
        """Factors of 1, which claim nothing."""
        return cls(
            alpha=alpha,
            factors=tuple(made_up_factor(quantity, value=1.0, count=0) for quantity in ("total", "atomic")),
            window=window or Window(),
        )

    @classmethod
    def fit(cls, *, alpha: float, total: Points, atomic: Points, window: Window) -> Self:
        """Factors from scores of labels that were not trained on.

        Args:
            alpha: miscoverage.
            total: of structures; groups are systems.
            atomic: of atoms; groups are elements.
            window: scores of the labels selected last.
        """
        if not len(total):
            return cls.none(alpha, window)
        scales: dict[Quantity, float] = {}
        factors: list[GroupFactor] = []
        for quantity, points in _quantities(total, atomic).items():
            scales[quantity] = max(float(np.median(points.scores)), SMALLEST)
            factors += _grouped(quantity, points, window.of(quantity), scales[quantity], alpha)
        return cls(alpha=alpha, factors=tuple(factors), scales=scales, window=window)

    def factor(self, quantity: Quantity, group: str = ALL) -> GroupFactor:
        """Of a group; of all, named so, where it is not known."""
        found = {one.group: one for one in self.factors if one.quantity == quantity}
        return found.get(group, found[ALL])

    def has_own_shift(self, quantity: Quantity, late: Points) -> bool:
        """Whether these scores of the window, all of one group, are enough for a shift of its own."""
        return enough(quantity, conformal_factor(late.scores, self.alpha), late)

    def table(self) -> FloatArray:
        """(ELEMENTS,) factors of the atom-based uncertainty by atomic number."""
        table = np.full(ELEMENTS, self.factor("atomic").value)
        for one in self.factors:
            if one.quantity == "atomic" and one.group != ALL:
                table[atomic_numbers[one.group]] = one.value
        return table

    def times(self, change: float) -> Self:
        """The same claims with all factors changed."""
        return replace(self, factors=tuple(replace(one, value=change * one.value) for one in self.factors))

    def plain(self) -> dict[str, Any]:
        """As numbers, strings, lists and dicts."""
        return {
            "alpha": self.alpha,
            "factors": [asdict(one) for one in self.factors],
            "scales": dict(self.scales),
            "total": self.window.total.plain(),
            "atomic": self.window.atomic.plain(),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """From :meth:`plain`."""
        return cls(
            alpha=plain["alpha"],
            factors=tuple(GroupFactor(**one) for one in plain["factors"]),
            scales=dict(plain["scales"]),
            window=Window(total=Points.from_plain(plain["total"]), atomic=Points.from_plain(plain["atomic"])),
        )


def made_up_factor(quantity: Quantity, *, value: float, count: int, group: str = ALL) -> GroupFactor:
    """A factor that comes from no scores."""
    return GroupFactor(
        quantity=quantity,
        group=group,
        value=value,
        shift=1.0,
        count=count,
        structures=count,
        exact=False,
        own=group == ALL,
    )


def enough(quantity: Quantity, factor: Factor, points: Points) -> bool:
    """Whether a quantile of these points can be relied on."""
    return factor.exact and (quantity == "total" or points.spread >= LEAST_STRUCTURES)


def _quantities(total: Points, atomic: Points) -> dict[Quantity, Points]:
    return {"total": total, "atomic": atomic}


def _grouped(quantity: Quantity, points: Points, late: Points, scale: float, alpha: float) -> list[GroupFactor]:
    """Factors of all points and of each group of them or of the window."""
    fitted: dict[str, Factor] = {}
    needed: dict[str, Factor] = {}
    factors: list[GroupFactor] = []
    for group in [ALL, *sorted({*points.names, *late.names})]:
        own, later = points.of(group), late.of(group)
        fitted[group], needed[group] = conformal_factor(own.scores, alpha), conformal_factor(later.scores, alpha)
        exact = enough(quantity, fitted[group], own)
        has_own = group == ALL or exact
        before = fitted[group if has_own else ALL].value
        # fewer late labels than the quantile needs: the largest score, which the next stays below with n / (n + 1)
        has_late = group == ALL or enough(quantity, needed[group], later)
        shift = _shift(needed[group], scale, before) if has_late else _shift(needed[ALL], scale, fitted[ALL].value)
        factors.append(
            GroupFactor(
                quantity=quantity,
                group=group,
                value=before * shift,
                shift=shift,
                count=len(own),
                structures=own.spread,
                exact=exact,
                own=has_own,
            )
        )
    return factors


def _shift(late: Factor, scale: float, factor: float) -> float:
    """By how much a factor must grow to be what late labels need. It never shrinks: labels easier than those of the
    calibration are no proof that the next ones will be."""
    return max(1.0, late.value * scale / max(factor, SMALLEST)) if late.count else 1.0
