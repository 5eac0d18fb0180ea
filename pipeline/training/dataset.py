"""Labels as tensors, with everything that never changes while training computed once.

Shapes: n structures of the set, B of a minibatch, A atoms, M neighbours. Units: eV, Å.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from pipeline.batching import batch_from_rows
from pipeline.frames import IntArray
from pipeline.neighbors import NeighborRows, neighbor_rows
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

    def to(self, device: torch.device | str) -> "Targets":
        """The references on another device."""
        return Targets(*(getattr(self, field.name).to(device) for field in fields(self)))

    def take(self, chosen: Tensor, atoms: Tensor) -> "Targets":
        """Those of some structures (B,) with their atoms (A,)."""
        by_structure = (self.energies, self.virials, self.has_virial)
        energies, virials, has_virial = (values.index_select(0, chosen) for values in by_structure)
        return Targets(energies, self.forces.index_select(0, atoms), virials, has_virial)


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
        cache_bytes: keep the constants when they fit, per rank; None: :func:`room` of the device.
        ranks: who shares the minibatches.
        device: where minibatches are wanted.
    """

    def __init__(
        self,
        labels: Sequence[Label],
        potential: GMNN,
        cache_bytes: int | None = None,
        ranks: Ranks = ALONE,
        device: str = "cpu",
    ) -> None:
        self.ranks, self.device = ranks, torch.device(device)
        self.n_atoms = sum(len(label.frame) for label in labels)
        """Atoms of all structures together."""
        self.has_virials = any(map(_has_virial, labels))
        self._count, self._potential = len(labels), potential
        self._frames = [label.frame for label in labels]
        self._rows: list[NeighborRows] = [
            neighbor_rows(f.positions, f.cell, f.pbc, potential.cutoff_A) for f in self._frames
        ]
        size = self._constant_bytes()
        most = room(self.device) if cache_bytes is None else cache_bytes
        self._dealt = most < size <= most * ranks.size and len(labels) >= ranks.size
        kept = slice(ranks.rank, None, ranks.size) if self._dealt else slice(None)
        self._frames, self._rows = self._frames[kept], self._rows[kept]
        self._sizes: IntArray = np.array([len(f) for f in self._frames], dtype=np.int64)
        self._starts: IntArray = np.cumsum(self._sizes) - self._sizes
        self._targets = _targets(labels[kept]).to(self.device)
        self._constants: FixedGeometry | None = None
        if self._dealt or size <= most:
            self._constants = self._fixed(range(len(self._frames)))

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
        sizes, starts = self._sizes[indices], self._starts[indices]
        system = np.repeat(np.arange(len(indices)), sizes)
        shift = (np.cumsum(sizes) - sizes - starts)[system]
        places = _sent(np.stack([np.arange(len(system)) - shift, shift, system]), self.device)
        chosen = _sent(indices, self.device)
        geometry = self._fixed(indices) if self._constants is None else _take(self._constants, chosen, places)
        return Minibatch(geometry, self._targets.take(chosen, places[0]))

    def _fixed(self, indices: Iterable[int]) -> FixedGeometry:
        """The constants of structures of this rank, computed where the potential is."""
        which = list(indices)
        batch = batch_from_rows([self._frames[k] for k in which], [self._rows[k] for k in which])
        return fix_geometry(self._potential, batch.to(self._potential.radial.table.device)).to(self.device)

    def _constant_bytes(self) -> int:
        """Estimate of the memory of the whole set's constants."""
        width = max(row.neighbors.shape[1] for row in self._rows)
        settings, itemsize = self._potential.settings, self._potential.radial.table.element_size()
        radial = settings.gaussians * len(self._potential.elements)
        per_atom = width * (2 * radial + 4 * 20 + 6) + radial * 20
        return int(self.n_atoms * (per_atom * itemsize + 16 * width))


def room(device: torch.device) -> int:
    """Bytes of constants to keep: on a GPU half of what is free, 1 GiB elsewhere."""
    return int(torch.cuda.mem_get_info(device)[0]) // 2 if device.type == "cuda" else CACHE_BYTES


def _sent(indices: IntArray, device: torch.device) -> Tensor:
    """Indices on a device; a GPU fetches them when it comes to need them, and nobody waits."""
    here = torch.from_numpy(indices)
    return (here.pin_memory() if device.type == "cuda" else here).to(device, non_blocking=True)


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


def _take(whole: FixedGeometry, chosen: Tensor, places: Tensor) -> FixedGeometry:
    """The constants of some structures, with neighbours counted within them.

    Args:
        whole: of all structures.
        chosen: (B,) structures.
        places: (3, A) of their atoms: where each stands in the whole, by how much its index changes, and its new structure.
    """
    atoms, shift, system = places
    width = whole.neighbors.shape[1]
    incoming = whole.incoming.index_select(0, atoms)
    return FixedGeometry(
        species=whole.species.index_select(0, atoms),
        system=system,
        n_atoms=whole.n_atoms.index_select(0, chosen),
        neighbors=whole.neighbors.index_select(0, atoms) + shift.unsqueeze(1),
        incoming=torch.where(incoming < 0, incoming, incoming + width * shift.unsqueeze(1)),
        sums=whole.sums.index_select(0, atoms),
        radial=whole.radial.index_select(0, atoms),
        moments=whole.moments.index_select(0, atoms),
        moment_slope=whole.moment_slope.index_select(1, atoms),
        edges=whole.edges.index_select(1, atoms),
        unit=whole.unit.index_select(1, atoms),
    )
