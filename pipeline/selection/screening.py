"""Candidates that no reference should be asked about: not finite, or atoms on top of each other."""

import numpy as np
from ase.data import covalent_radii

from pipeline.frames import BoolArray, Frame, IntArray
from pipeline.neighbors import neighbor_rows
from pipeline.records import StopReason

CLOSEST_FRACTION = 0.4
"""Of the sum of covalent radii: closer atoms make most references fail, and what they say there is of no use."""


def unphysical(frame: Frame) -> str:
    """Why a structure cannot be labelled: ``not_finite``, ``too_close``, or empty."""
    if not (np.isfinite(frame.positions).all() and np.isfinite(frame.cell).all()):
        return StopReason.NOT_FINITE.value
    radii = covalent_radii[frame.numbers]
    reach = 2 * CLOSEST_FRACTION * float(radii.max())
    rows = neighbor_rows(frame.positions, frame.cell, frame.pbc, reach)
    vectors = frame.positions[rows.neighbors] + rows.offsets - frame.positions[:, None, :]
    limits = CLOSEST_FRACTION * (radii[:, None] + radii[rows.neighbors])
    return StopReason.TOO_CLOSE.value if (np.linalg.norm(vectors, axis=2) < limits).any() else ""


def thinned(stopped: BoolArray, most: int) -> IntArray:
    """Which candidates stay when there may be at most ``most``: those a walker stopped at before others, evenly spaced.

    Args:
        stopped: (n,) of candidates in visiting order, whether a walker stopped there.
        most: how many may stay.

    Returns:
        Their numbers, ascending.
    """
    if len(stopped) <= most:
        return np.arange(len(stopped))
    first = _evenly(np.flatnonzero(stopped), most)
    return np.sort(np.concatenate([first, _evenly(np.flatnonzero(~stopped), most - len(first))]))


def _evenly(items: IntArray, most: int) -> IntArray:
    if len(items) <= most:
        return items
    return items[np.arange(most) * len(items) // most]
