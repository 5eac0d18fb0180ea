"""Candidates that no reference should be asked about: not finite, or atoms on top of each other."""

import numpy as np
from ase.data import covalent_radii

from pipeline.batching import neighbor_rows
from pipeline.frames import Frame
from pipeline.records import Candidate, StopReason

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


def thinned(candidates: list[Candidate], most: int) -> list[Candidate]:
    """At most ``most`` candidates in visiting order: frames a walker stopped at before others, evenly spaced."""
    if len(candidates) <= most:
        return candidates
    stopped = [k for k, candidate in enumerate(candidates) if candidate.reason is not StopReason.RUNNING]
    passing = [k for k, candidate in enumerate(candidates) if candidate.reason is StopReason.RUNNING]
    first = _evenly(stopped, most)
    return [candidates[k] for k in sorted([*first, *_evenly(passing, most - len(first))])]


def _evenly(items: list[int], most: int) -> list[int]:
    if len(items) <= most:
        return items
    return [items[k * len(items) // most] for k in range(most)]
