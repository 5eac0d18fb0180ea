"""Where CP2K computes a structure: the frame's cell, or a box around what is not periodic.

Shapes: N atoms. Units: Å.
"""

from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols

from pipeline.frames import FloatArray, Frame
from pipeline.records import Cause
from pipeline.references.base import CalculationFailed

AXES = "XYZ"
VACUUM_A = 5.0
"""Empty space on every side of a molecule: its density has vanished there, which the wavelet solver asks for."""
REACH_A = 3.0
"""How far a density reaches beyond its atoms; solvers for slabs and wires ask for a box twice as wide as the density."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """A structure as CP2K gets it.

    Attributes:
        symbols: (N,) chemical symbols.
        positions: (N, 3) Å.
        cell: (3, 3) rows are lattice vectors, Å.
        periodic: the periodic directions, e.g. ``XY``; ``NONE``.
        solver: Poisson solver that fits.
    """

    symbols: tuple[str, ...]
    positions: FloatArray
    cell: FloatArray
    periodic: str
    solver: str

    @property
    def elements(self) -> tuple[str, ...]:
        """Each symbol once, in the order of their first atoms."""
        return tuple(dict.fromkeys(self.symbols))


def place(frame: Frame, free_edges: FloatArray | None = None) -> Geometry:
    """A frame in the cell it is computed in: a function of the frame and of a template's box.

    Periodic in three directions: as it is. A molecule: in the middle of a cube (the wavelet solver takes no other box) with
    ``VACUUM_A`` on every side, its edge rounded up to a whole Å, whatever the frame's cell says. A slab or a wire: in the
    directions that are not periodic, in the middle of a box twice as wide as its density, rounded up to two Å, or of the one
    that is given.

    Args:
        frame: the structure.
        free_edges: (3,) Å, of a slab's or wire's box where it is not periodic.

    Raises:
        CalculationFailed: BAD_GEOMETRY: a slab or wire whose periodic vectors do not lie along their own Cartesian axes, or
            that is larger than its box.
    """
    symbols = tuple(chemical_symbols[z] for z in frame.numbers)
    periodic = "".join(axis for axis, on in zip(AXES, frame.pbc, strict=True) if on) or "NONE"
    if frame.pbc.all():
        return Geometry(
            symbols=symbols, positions=frame.positions, cell=frame.cell, periodic=periodic, solver="PERIODIC"
        )
    free = ~frame.pbc
    low, high = frame.positions.min(axis=0), frame.positions.max(axis=0)
    if not frame.pbc.any():
        edges = np.full(3, np.ceil((high - low).max() + 2 * VACUUM_A))
        solver = "WAVELET"
    else:
        if np.abs(frame.cell[np.ix_(frame.pbc, free)]).max() > 1e-6:
            raise CalculationFailed(
                Cause.BAD_GEOMETRY,
                f"the structure is periodic along {periodic}, but its lattice vectors {frame.cell[frame.pbc].tolist()} "
                "leave these directions.",
                "Turn the structures so that vector a lies along x, b along y and c along z, or make them periodic in three "
                "directions.",
            )
        edges = 2 * np.ceil(high - low + 2 * REACH_A) if free_edges is None else free_edges
        if (high - low >= edges)[free].any():
            raise CalculationFailed(
                Cause.BAD_GEOMETRY,
                f"the structure extends over {(high - low)[free].tolist()} Å where it is not periodic, but the &CELL of the "
                f"template has {edges[free].tolist()} Å there.",
                "Enlarge the &CELL of labels.reference.template.",
            )
        # for slabs, Martyna-Tuckerman converges with the box far faster than the analytic solver, the only one for wires
        solver = "MT" if frame.pbc.sum() == 2 else "ANALYTIC"
    cell = np.where(frame.pbc[:, None], frame.cell, np.diag(edges))
    shift = np.where(free, (edges - low - high) / 2, 0.0)
    return Geometry(symbols=symbols, positions=frame.positions + shift, cell=cell, periodic=periodic, solver=solver)
