"""Scores of structures or atoms, each with its group and the structure it is from.

Shapes: n points.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.frames import FloatArray, IntArray

GroupArray = NDArray[np.str_]
ALL = "all"
"""The group of all points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Conformal scores.

    Attributes:
        scores: (n,) errors over uncertainties, >= 0.
        groups: (n,) names: the system of a structure, the element of an atom.
        structures: (n,) which structure it is from, in the order they came: atoms of one are not independent.
    """

    scores: FloatArray
    groups: GroupArray
    structures: IntArray

    @classmethod
    def none(cls) -> Self:
        """No points."""
        return cls(scores=np.zeros(0), groups=np.zeros(0, dtype=np.str_), structures=np.zeros(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """Groups that have points, sorted."""
        return [str(name) for name in np.unique(self.groups)]

    @property
    def spread(self) -> int:
        """How many structures they are from."""
        return len(np.unique(self.structures))

    def of(self, group: str) -> Self:
        """The points of a group."""
        return self if group == ALL else self.where(self.groups == group)

    def where(self, mask: NDArray[np.bool_]) -> Self:
        """Some of them."""
        return type(self)(scores=self.scores[mask], groups=self.groups[mask], structures=self.structures[mask])

    def then(self, later: Self, keep: int) -> Self:
        """These and later ones, of the last ``keep`` structures; structures are numbered from 0.

        Of more later ones than that, every so many: what was picked first, being worth most, would be missing otherwise.
        """
        newest = np.unique(later.structures)
        if len(newest) > keep:
            newest = newest[((np.arange(keep) + 0.5) * len(newest) / keep).astype(np.int64)]
            later = later.where(np.isin(later.structures, newest))
        shift = int(self.structures.max()) + 1 if len(self) else 0
        numbers = np.concatenate([self.structures, later.structures + shift])
        known, numbers = np.unique(numbers, return_inverse=True)
        first = max(0, len(known) - keep)
        together = type(self)(
            scores=np.concatenate([self.scores, later.scores]),
            groups=np.concatenate([self.groups, later.groups]).astype(np.str_),
            structures=numbers - first,
        )
        return together.where(together.structures >= 0)

    def thinned(self, most: int) -> Self:
        """At most ``most`` of each group in each structure, evenly spaced in the order of scores: their distribution stays."""
        kept = np.ones(len(self), dtype=np.bool_)
        for number in np.unique(self.structures):
            for name in np.unique(self.groups[self.structures == number]):
                rows = np.flatnonzero((self.structures == number) & (self.groups == name))
                if len(rows) > most:
                    places = ((np.arange(most) + 0.5) * len(rows) / most).astype(np.int64)
                    kept[rows] = False
                    kept[rows[np.argsort(self.scores[rows], kind="stable")[places]]] = True
        return self.where(kept)

    def plain(self) -> dict[str, Any]:
        """As lists of numbers and strings."""
        return {
            "scores": self.scores.tolist(),
            "groups": self.groups.tolist(),
            "structures": self.structures.tolist(),
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Sequence[Any]]) -> Self:
        """From :meth:`plain`."""
        return cls(
            scores=np.array(plain["scores"], dtype=np.float64),
            groups=np.array(plain["groups"], dtype=np.str_),
            structures=np.array(plain["structures"], dtype=np.int64),
        )
