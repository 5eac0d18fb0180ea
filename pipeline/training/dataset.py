"""Labels as tensors, with everything that never changes while training computed once.

Shapes: n structures of the set, B of a minibatch, A atoms, M neighbours. Units: eV, Å.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pipeline.batching import Batch, NeighborRows, batch_from_rows, neighbor_rows
from pipeline.frames import IntArray
from pipeline.potentials.geometry import FixedGeometry, fix_geometry
from pipeline.potentials.gmnn import GMNN
from pipeline.ranks import ALONE, Ranks
from pipeline.records import Label

CACHE_BYTES = 2**30
"""Constants of a whole set are kept in memory up to this size; above it every minibatch computes its own."""

VOIGT_INDEX = ((0, 5, 4), (5, 1, 3), (4, 3, 2))
"""Where the components of a 3×3 stress stand in ASE's Voigt order."""


@dataclass(frozen=True, slots=True)
class Targets:
    """References of a minibatch.

    Attributes:
        energies: (B,) float64 eV.
        forces: (A, 3) float64 eV/Å.
        virials: (B, 3, 3) float64 W = −V·stress, eV; zero where there is none.
        has_virial: (B,) float64, 1 where the label has a stress.
    """

    energies: Tensor
    forces: Tensor
    virials: Tensor
    has_virial: Tensor


@dataclass(frozen=True, slots=True)
class Minibatch:
    """Constants of the structures and their references."""

    geometry: FixedGeometry
    targets: Targets


class LabelSet:
    """Labels ready to be cut into minibatches for potentials of one architecture.

    With several ranks, each computes a part of every minibatch. As long as the constants of the whole set fit into the memory
    of one, all ranks keep all of them and the parts are equally large. A larger set that fits into all ranks together is dealt
    out once: parts are then uneven by chance (for 8 structures on 2 ranks a quarter of the time is waited for), which costs
    less than to compute the constants again in every epoch.

    Args:
        labels: at least one; the same on every rank.
        potential: of the architecture (the constants do not depend on its weights).
        cache_bytes: keep the constants when they fit, per rank.
        ranks: who shares the minibatches.
    """

    def __init__(
        self, labels: Sequence[Label], potential: GMNN, cache_bytes: int = CACHE_BYTES, ranks: Ranks = ALONE
    ) -> None:
        self.ranks = ranks
        self.n_atoms = sum(len(label.frame) for label in labels)
        """Atoms of all structures together."""
        self.has_virials = any(map(_has_virial, labels))
        self._count, self._potential = len(labels), potential
        self._frames = [label.frame for label in labels]
        self._rows: list[NeighborRows] = [
            neighbor_rows(f.positions, f.cell, f.pbc, potential.cutoff_A) for f in self._frames
        ]
        size = self._constant_bytes()
        self._dealt = cache_bytes < size <= cache_bytes * ranks.size and len(labels) >= ranks.size
        kept = slice(ranks.rank, None, ranks.size) if self._dealt else slice(None)
        self._frames, self._rows = self._frames[kept], self._rows[kept]
        self._sizes: IntArray = np.array([len(f) for f in self._frames], dtype=np.int64)
        self._starts: IntArray = np.cumsum(self._sizes) - self._sizes
        self._targets = _targets(labels[kept])
        self._constants: FixedGeometry | None = None
        if self._dealt or size <= cache_bytes:
            self._constants = fix_geometry(potential, batch_from_rows(self._frames, self._rows))

    def __len__(self) -> int:
        return self._count

    def minibatch(self, indices: IntArray) -> Minibatch | None:
        """This rank's part of the structures ``indices`` (B,), in that order; None where it has no part."""
        if self._dealt:
            own = indices[indices % self.ranks.size == self.ranks.rank] // self.ranks.size
        else:
            own = self.ranks.mine(indices)
        return self._constants_of(own) if len(own) else None

    def _constants_of(self, indices: IntArray) -> Minibatch:
        chosen = torch.from_numpy(indices)
        atoms = torch.from_numpy(np.concatenate([np.arange(s, s + m) for s, m in self._spans(indices)]))
        if self._constants is None:
            batch = batch_from_rows([self._frames[k] for k in indices], [self._rows[k] for k in indices])
            geometry = fix_geometry(self._potential, batch)
        else:
            geometry = _take(self._constants, chosen, atoms, torch.from_numpy(self._starts))
        t = self._targets
        return Minibatch(
            geometry, Targets(t.energies[chosen], t.forces[atoms], t.virials[chosen], t.has_virial[chosen])
        )

    def _spans(self, indices: IntArray) -> list[tuple[int, int]]:
        return list(zip(self._starts[indices].tolist(), self._sizes[indices].tolist(), strict=True))

    def _constant_bytes(self) -> int:
        """Estimate of the memory of the whole set's constants."""
        width = max(row.neighbors.shape[1] for row in self._rows)
        settings, itemsize = self._potential.settings, self._potential.radial.table.element_size()
        radial = settings.gaussians * len(self._potential.elements)
        per_atom = width * (2 * radial + 4 * 20 + 6) + radial * 20
        return int(self.n_atoms * (per_atom * itemsize + 32 * width))


def _has_virial(label: Label) -> bool:
    return label.stress is not None and bool(label.frame.pbc.all())


def _targets(labels: Sequence[Label]) -> Targets:
    virials = np.zeros((len(labels), 3, 3))
    has_virial = np.zeros(len(labels))
    for k, label in enumerate(labels):
        if label.stress is not None and _has_virial(label):
            volume = abs(np.linalg.det(label.frame.cell))
            virials[k] = -volume * label.stress[np.array(VOIGT_INDEX)]
            has_virial[k] = 1.0
    return Targets(
        energies=torch.tensor([label.energy for label in labels], dtype=torch.float64),
        forces=torch.from_numpy(np.concatenate([label.forces for label in labels])).to(torch.float64),
        virials=torch.from_numpy(virials),
        has_virial=torch.from_numpy(has_virial),
    )


def _take(whole: FixedGeometry, chosen: Tensor, atoms: Tensor, starts: Tensor) -> FixedGeometry:
    """The constants of some structures, with neighbours counted within them."""
    sizes = whole.batch.n_atoms[chosen]
    system = torch.repeat_interleave(torch.arange(len(chosen)), sizes)
    shift = (torch.cumsum(sizes, 0) - sizes - starts[chosen])[system]
    source = whole.batch
    batch = Batch(
        numbers=source.numbers[atoms],
        positions=source.positions[atoms],
        cells=source.cells[chosen],
        pbc=source.pbc[chosen],
        system=system,
        n_atoms=sizes,
        neighbors=source.neighbors[atoms] + shift.unsqueeze(1),
        offsets=source.offsets[atoms],
        shifts=source.shifts[atoms],
        padding=source.padding[atoms],
        largest=source.largest,
    )
    return replace(
        whole,
        batch=batch,
        species=whole.species[atoms],
        sums=whole.sums.index_select(0, atoms),
        radial=whole.radial.index_select(0, atoms),
        moments=whole.moments.index_select(0, atoms),
        moment_slope=whole.moment_slope.index_select(0, atoms),
        edges=whole.edges.index_select(0, atoms),
        unit=whole.unit.index_select(0, atoms),
    )
