"""Which energies are plausible for a composition, from the labels of finished rounds.

Energies per atom are fitted to the fractions of the elements: e ≈ Σ x_Z ε_Z, least squares over all labels.
"""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from pipeline.frames import FloatArray, IntArray
from pipeline.shards import read_energies
from pipeline.state import CampaignState
from pipeline.store import Store

TOLERANCE = 1e-6
"""Of what must vanish, or be 1, for a composition that is known."""

Composition = tuple[tuple[int, int], ...]
"""Atomic number and count of each element, by atomic number."""


def composition_of(numbers: IntArray) -> Composition:
    """The composition of (N,) atomic numbers."""
    return tuple(sorted(Counter(int(z) for z in numbers).items()))


class EnergyFit:
    """Least squares of energies per atom over fractions of elements; what it keeps grows with compositions, not labels."""

    def __init__(self) -> None:
        self._sums: dict[Composition, tuple[int, float]] = {}
        self._solved: tuple[tuple[int, ...], FloatArray, FloatArray] | None = None

    def add(self, labels: Iterable[tuple[Composition, float]]) -> None:
        """Take in labels: composition and energy in eV."""
        for composition, energy in labels:
            count, total = self._sums.get(composition, (0, 0.0))
            self._sums[composition] = (count + 1, total + energy / _size(composition))
            self._solved = None

    def energy(self, composition: Composition) -> float | None:
        """The energy of a composition by the fit, eV; None where it would be an extrapolation, or there are no labels."""
        if not self._sums:
            return None
        elements, offsets, inverse = self._solution()
        if any(z not in elements for z, _ in composition):
            return None
        x = _fractions(composition, elements)
        # the projection on the span of what is known must be x itself, its leverage at most that of a known composition
        known = self._matrix(elements)
        if np.abs(x - x @ inverse @ known.T @ known).max() > TOLERANCE or x @ inverse @ x > 1.0 + TOLERANCE:
            return None
        return float(x @ offsets) * _size(composition)

    def _matrix(self, elements: tuple[int, ...]) -> FloatArray:
        """(C, Z) fractions of the known compositions."""
        return np.array([_fractions(composition, elements) for composition in self._sums])

    def _solution(self) -> tuple[tuple[int, ...], FloatArray, FloatArray]:
        """Elements, their energies ε in eV, and the pseudoinverse of (Z, Z) XᵀX over known compositions."""
        if self._solved is None:
            elements = tuple(sorted({z for composition in self._sums for z, _ in composition}))
            x = self._matrix(elements)
            counts = np.array([count for count, _ in self._sums.values()], dtype=np.float64)
            means = np.array([total / count for count, total in self._sums.values()])
            weights = np.sqrt(counts)
            offsets: FloatArray = np.linalg.lstsq(weights[:, None] * x, weights * means, rcond=None)[0]
            inverse = np.linalg.pinv(x.T @ x, rcond=TOLERANCE**2, hermitian=True).astype(np.float64)
            self._solved = elements, offsets, inverse
        return self._solved


class EnergyWindow:
    """The plausible energies of frames in a campaign: the same whatever order the labels of a round came in.

    Each shard of a finished round is read once.

    Args:
        store: the campaign directory.
        width_eV_per_atom: how far from the fit an energy may be; None: as far as it likes.
    """

    def __init__(self, store: Store, width_eV_per_atom: float | None) -> None:
        self._store, self._width = store, width_eV_per_atom
        self._fit = EnergyFit()
        self._next = 0

    def limits(self, numbers: IntArray, state: CampaignState) -> tuple[float, float] | None:
        """Lowest and highest plausible energy of a structure, eV; None where none can be told.

        Args:
            numbers: (N,) its atomic numbers.
            state: what is known; labels of the present round do not count.

        Raises:
            StoreError: a shard is missing or changed.
        """
        if self._width is None:
            return None
        for gathered in state.gathered[self._next :]:
            if state.flow is not None or gathered.round < state.round:
                rows = read_energies(self._store.absolute(gathered.file))
                self._fit.add((composition_of(z), energy) for z, energy in rows)
                self._next += 1
        middle = self._fit.energy(composition_of(numbers))
        half = self._width * len(numbers)
        return None if middle is None else (middle - half, middle + half)


def _size(composition: Composition) -> int:
    return sum(count for _, count in composition)


def _fractions(composition: Composition, elements: tuple[int, ...]) -> FloatArray:
    counts = dict(composition)
    return np.array([counts.get(z, 0) for z in elements]) / _size(composition)
