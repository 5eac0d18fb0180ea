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
from pipeline.ranks import ALONE, Ranks, gpus
from pipeline.records import Label

CACHE_BYTES = 2**30
"""Constants of a whole set are kept in memory up to this size; above it every minibatch computes its own."""

TOGETHER_BYTES = 2**28
"""Constants of a set that is kept are made in parts of about this size: while they are made they take three times as much."""

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
        cache_bytes: keep the constants when they fit, per rank; None: :func:`room` of the devices. The same on all.
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
        most = room(self.device, ranks) if cache_bytes is None else cache_bytes
        self._dealt = most < size <= most * ranks.size and len(labels) >= ranks.size
        kept = slice(ranks.rank, None, ranks.size) if self._dealt else slice(None)
        self._frames, self._rows = self._frames[kept], self._rows[kept]
        self._sizes: IntArray = np.array([len(f) for f in self._frames], dtype=np.int64)
        self._starts: IntArray = np.cumsum(self._sizes) - self._sizes
        self._targets = _targets(labels[kept]).to(self.device)
        self._constants: FixedGeometry | None = None
        if self._dealt or size <= most:
            self._constants = self._whole(size // self.n_atoms)

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

    def _whole(self, atom_bytes: int) -> FixedGeometry:
        """The constants of all structures of this rank, made part by part and written to where they stay.

        Args:
            atom_bytes: of the constants of an atom.
        """
        parts = (self._starts * atom_bytes) // TOGETHER_BYTES
        blocks = np.split(np.arange(len(parts)), np.flatnonzero(np.diff(parts)) + 1)
        width = max(row.neighbors.shape[1] for row in self._rows)
        ends = max(map(_most_ends, self._rows))
        whole: FixedGeometry | None = None
        for block in blocks:
            part = self._fixed(block)
            if whole is None:
                whole = _laid_out(part, len(self._frames), int(self._sizes.sum()), width, ends)
            _put(whole, part, int(block[0]), int(self._starts[block[0]]))
        assert whole is not None
        return whole

    def _constant_bytes(self) -> int:
        """Estimate of the memory of the whole set's constants."""
        width = max(row.neighbors.shape[1] for row in self._rows)
        settings, itemsize = self._potential.settings, self._potential.radial.table.element_size()
        radial = settings.gaussians * len(self._potential.elements)
        per_atom = width * (2 * radial + 4 * 20 + 6) + radial * 20
        return int(self.n_atoms * (per_atom * itemsize + 16 * width))


def room(device: torch.device, ranks: Ranks) -> int:
    """Bytes of constants that each rank may keep: what the one with least can.

    All must have the same answer, or they would not agree on who keeps what. Each looks before any keeps something, so those
    that share a GPU find the same memory free, and divide it.
    """
    found = gpus(str(device), ranks)
    own = found[ranks.rank]
    return min(ranks.gather(own_room(device) // (1 if own is None else found.count(own))))


def own_room(device: torch.device) -> int:
    """Bytes of constants that a device may keep: on a GPU half of what is free, 1 GiB elsewhere."""
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


def _most_ends(rows: NeighborRows) -> int:
    """Edges that end at the atom of a structure where most do."""
    return int(np.bincount(rows.neighbors[~rows.padding], minlength=1).max())


def _laid_out(part: FixedGeometry, structures: int, atoms: int, width: int, ends: int) -> FixedGeometry:
    """Room for the constants of many structures, of which ``part`` are some.

    Neighbours that are not there are the atom itself, with functions that are zero.

    Args:
        part: says of which kind the numbers are.
        structures: of all together; ``atoms``: theirs.
        width: M, the most neighbours of an atom.
        ends: N, the most edges that end at an atom.
    """
    functions, components = part.sums.shape[1:]
    return FixedGeometry(
        species=part.species.new_empty(atoms),
        system=part.system.new_empty(atoms),
        n_atoms=part.n_atoms.new_empty(structures),
        neighbors=torch.arange(atoms, device=part.neighbors.device).unsqueeze(1).repeat(1, width),
        incoming=part.incoming.new_full((atoms, max(1, ends)), -1),
        sums=part.sums.new_empty(atoms, functions, components),
        radial=part.radial.new_zeros(atoms, functions, 2 * width),
        moments=part.moments.new_zeros(atoms, components, width),
        moment_slope=part.moment_slope.new_zeros(3, atoms, components, width),
        edges=part.edges.new_zeros(3, atoms, width),
        unit=part.unit.new_zeros(3, atoms, width),
    )


def _put(whole: FixedGeometry, part: FixedGeometry, structure: int, atom: int) -> None:
    """Write the constants of consecutive structures to where they begin, with indices counted within the whole."""
    atoms = slice(atom, atom + len(part.species))
    (width, m), n = (whole.neighbors.shape[1], part.neighbors.shape[1]), part.incoming.shape[1]
    whole.species[atoms] = part.species
    whole.system[atoms] = part.system + structure
    whole.n_atoms[structure : structure + len(part.n_atoms)] = part.n_atoms
    whole.neighbors[atoms, :m] = part.neighbors + atom
    start = torch.div(part.incoming, m, rounding_mode="floor")
    moved = part.incoming + atom * width + start * (width - m)
    whole.incoming[atoms, :n] = torch.where(part.incoming < 0, part.incoming, moved)
    whole.sums[atoms] = part.sums
    for kind in (0, 1):  # functions and slopes
        whole.radial[atoms, :, kind * width : kind * width + m] = part.radial[:, :, kind * m : (kind + 1) * m]
    whole.moments[atoms, :, :m] = part.moments
    whole.moment_slope[:, atoms, :, :m] = part.moment_slope
    whole.edges[:, atoms, :m] = part.edges
    whole.unit[:, atoms, :m] = part.unit
