"""The second file of a calculation: energy, cell, positions and forces once more, in the format of CP2K's SCINE interface."""

import re
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from pipeline.frames import FloatArray
from pipeline.references.cp2k_geometry import AXES, Geometry
from pipeline.references.cp2k_tables import NUMBER, bad_output, real, require_same_structure

_TRIPLE = rf"\[ +({NUMBER}), +({NUMBER}), +({NUMBER}) \]"
_ROW = re.compile(rf" +- ([A-Z][a-z]?):? +{_TRIPLE}")
_ROUNDING = 1e-12
"""Decimals that it has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """What the file says.

    Attributes:
        energy: hartree, as text; stars where it was wider than its field, from -10000 hartree on.
        periodic: as in :class:`Geometry`.
        cell: (3, 3) Å.
        symbols: (N,) chemical symbols.
        positions: (N, 3) Å.
        forces: (N, 3) hartree/bohr, of either sign: the file calls them a gradient, and holds forces until 2024 at least.
    """

    energy: str
    periodic: str
    cell: FloatArray
    symbols: list[str]
    positions: FloatArray
    forces: FloatArray

    def check(self, geometry: Geometry, energy: str, forces: FloatArray) -> None:
        """Against the first printing, and against what was asked for.

        Args:
            geometry: what was asked for.
            energy: hartree, as it was printed.
            forces: (N, 3) hartree/bohr.

        Raises:
            CalculationFailed: BAD_OUTPUT: they differ by more than the rounding.
        """
        require_same_structure(self.symbols, self.positions, geometry, tolerance_A=1e-8)
        if geometry.periodic != "NONE" and (
            self.periodic != geometry.periodic or np.abs(self.cell - geometry.cell).max() > 1e-8
        ):
            raise bad_output("it is of another cell than was asked for")
        if "*" not in self.energy and abs(Decimal(self.energy) - Decimal(energy)) > Decimal(2 * _ROUNDING):
            raise bad_output(f"it gives two energies, {energy} and {self.energy} hartree")
        apart = min(np.abs(self.forces - forces).max(), np.abs(self.forces + forces).max())
        if apart > 2 * _ROUNDING:
            raise bad_output("it gives two different forces of one atom")


def read_interface(text: str) -> Interface:
    """The file as a whole.

    Raises:
        CalculationFailed: BAD_OUTPUT: it is torn or of an unknown format.
    """
    match = re.fullmatch(
        r"title: 'SCINE Interface File'\n"
        rf"energy: \[ *({NUMBER}|\*+), 'hartree' \]\n"
        r"system:\n unit: 'angstrom'\n cell: *\n((?: +- [ABC]: .*\n){3})"
        r" periodicity: +\[ ([TF]), ([TF]), ([TF]) \]\n"
        r" coordinates: *\n((?: +- .*\n)+)"
        r"gradient:\n unit: 'hartree/bohr'\n values: *\n((?: +- .*\n)+)",
        text,
    )
    if match is None:
        raise bad_output("its second file is torn or of an unknown format")
    periodic = "".join(axis for axis, on in zip(AXES, match.groups()[2:5], strict=True) if on == "T")
    symbols, positions = _rows(match[6])
    names, forces = _rows(match[7])
    vectors, cell = _rows(match[2])
    if names != symbols or vectors != ["A", "B", "C"]:
        raise bad_output("its second file contradicts itself")
    return Interface(
        energy=match[1],
        periodic=periodic or "NONE",
        cell=cell,
        symbols=symbols,
        positions=positions,
        forces=forces,
    )


def _rows(block: str) -> tuple[list[str], FloatArray]:
    matches = [_ROW.fullmatch(row) for row in block.splitlines()]
    whole = [match for match in matches if match is not None]
    if len(whole) < len(matches):
        raise bad_output("a line of its second file cannot be read")
    return [match[1] for match in whole], np.array([[real(text) for text in match.groups()[1:]] for match in whole])
