"""A frame: one atomic structure, the unit of everything a campaign moves around.

Shapes: N atoms. Units: Å.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from ase import Atoms
from ase.data import chemical_symbols
from ase.neighborlist import neighbor_list
from pymatgen.core import Molecule, Structure
from pymatgen.io.ase import AseAtomsAdaptor

from pipeline.errors import StructureError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

MAX_ATOMIC_NUMBER = len(chemical_symbols) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One structure without a calculator, safe to pickle.

    Attributes:
        numbers: (N,) int64 atomic numbers.
        positions: (N, 3) float64, Å, not wrapped.
        cell: (3, 3) float64, rows are lattice vectors, Å; zeros where not periodic.
        pbc: (3,) bool, periodic directions.
        system: name of the campaign's system this frame belongs to.
    """

    numbers: IntArray
    positions: FloatArray
    cell: FloatArray
    pbc: BoolArray
    system: str

    @classmethod
    def from_atoms(cls, atoms: Atoms, *, system: str) -> "Frame":
        """Copy the geometry of ASE atoms."""
        return cls(
            numbers=np.asarray(atoms.numbers, dtype=np.int64),
            positions=np.asarray(atoms.positions, dtype=np.float64).copy(),
            cell=np.asarray(atoms.cell.array, dtype=np.float64).copy(),
            pbc=np.asarray(atoms.pbc, dtype=np.bool_).copy(),
            system=system,
        )

    @classmethod
    def from_pymatgen(cls, structure: Structure | Molecule, *, system: str) -> "Frame":
        """Copy the geometry of a pymatgen structure or molecule."""
        return cls.from_atoms(AseAtomsAdaptor.get_atoms(structure), system=system)

    def to_atoms(self) -> Atoms:
        """ASE atoms with this geometry and no calculator."""
        return Atoms(numbers=self.numbers, positions=self.positions, cell=self.cell, pbc=self.pbc)

    def to_pymatgen(self) -> Structure | Molecule:
        """A pymatgen structure when fully periodic, else a molecule."""
        adaptor: Any = AseAtomsAdaptor
        return adaptor.get_structure(self.to_atoms()) if self.pbc.all() else adaptor.get_molecule(self.to_atoms())

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def identity(self) -> str:
        """First 16 hex digits of the sha256 of the exact geometry: equal frames have equal identities."""
        digest = hashlib.sha256(self.system.encode())
        for array in (self.numbers, self.positions, self.cell, self.pbc):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]


def check_frame(frame: Frame, *, where: str, closest_A: float = 0.4) -> None:
    """Refuse a structure no reference could label.

    Args:
        frame: the structure.
        where: file and index, for the message.
        closest_A: two atoms nearer than this are on top of each other, Å.

    Raises:
        StructureError: no atoms, non-finite numbers, unknown elements, periodic without a cell, overlapping atoms.
    """
    if len(frame) == 0:
        raise StructureError(f"{where}: the structure has no atoms.", "Remove it or give the right file.")
    bad = [int(z) for z in np.unique(frame.numbers) if not 1 <= z <= MAX_ATOMIC_NUMBER]
    if bad:
        raise StructureError(f"{where}: unknown element (atomic number {bad[0]}).", "Name the elements in the file.")
    if not (np.isfinite(frame.positions).all() and np.isfinite(frame.cell).all()):
        raise StructureError(f"{where}: positions or cell hold NaN or infinity.", "Mend or remove this structure.")
    periodic = frame.cell[frame.pbc]
    if frame.pbc.any() and (
        np.linalg.matrix_rank(periodic) < len(periodic) or (np.linalg.norm(periodic, axis=1) < 0.5).any()
    ):
        raise StructureError(
            f"{where}: periodic along {frame.pbc.tolist()} but the cell is {frame.cell.tolist()}.",
            "Give the lattice vectors, or set pbc to false in the structure file.",
        )
    distance, i, j = closest_pair(frame)
    if distance < closest_A:
        names = [chemical_symbols[frame.numbers[k]] for k in (i, j)]
        raise StructureError(
            f"{where}: atoms {i} ({names[0]}) and {j} ({names[1]}) are {distance:.3f} Å apart, below {closest_A} Å.",
            "Remove the duplicate atom or check the file's length unit (Å expected).",
        )


def closest_pair(frame: Frame) -> tuple[float, int, int]:
    """Smallest distance between two atoms (images included) within 3 Å, and the two indices.

    Returns:
        (distance in Å, i, j); (inf, -1, -1) when no two atoms are within 3 Å.
    """
    i, j, d = neighbor_list("ijd", frame.to_atoms(), 3.0)
    if len(d) == 0:
        return float("inf"), -1, -1
    k = int(np.argmin(d))
    return float(d[k]), int(i[k]), int(j[k])
