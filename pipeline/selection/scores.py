"""Candidates looked at with the newest model, in batches that do not depend on how many ranks there are."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from pipeline.frames import BoolArray, FloatArray, IntArray
from pipeline.potentials import Model
from pipeline.ranks import Ranks, gpus
from pipeline.records import Candidate
from pipeline.selection.spread import BLOCK

ATOM_BYTES = 2**18
"""Of GPU memory for an atom whose energy, forces and features are computed, ample."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Candidates with the newest model's uncertainties.

    Attributes:
        candidates: n of them.
        largest_force: (n,) the largest force the model predicts on an atom, eV/Å; infinite where it has no finite answer.
        bounds: (n,) the largest calibrated bound on an atom's force error, eV/Å; NaN where one is not finite.
    """

    candidates: list[Candidate]
    largest_force: FloatArray
    bounds: FloatArray

    @classmethod
    def joined(cls, parts: Sequence["Scored"]) -> "Scored":
        """Several, one after another."""
        return cls(
            list(itertools.chain.from_iterable(part.candidates for part in parts)),
            np.concatenate([np.zeros(0), *(part.largest_force for part in parts)]),
            np.concatenate([np.zeros(0), *(part.bounds for part in parts)]),
        )

    def known_below(self, bound_eV_per_A: float | None) -> BoolArray:
        """(n,) whose bound is below this on every atom; without one, or where a bound is not finite, nothing is known."""
        if bound_eV_per_A is None:
            return np.zeros(len(self.candidates), dtype=np.bool_)
        return np.asarray(self.bounds < bound_eV_per_A)


def rescore(model: Model, candidates: Sequence[Candidate]) -> Scored:
    """Candidates with the uncertainties a model gives them."""
    if not candidates:
        return Scored([], np.zeros(0), np.zeros(0))
    frames = [candidate.frame for candidate in candidates]
    result = model.evaluate(frames, batch_size=len(frames))
    assert result.total_uncertainty is not None
    assert result.atomic_uncertainty is not None
    ends = np.cumsum([len(candidate.frame) for candidate in candidates])[:-1]
    uncertainties = np.split(result.atomic_uncertainty.astype(np.float32), ends)
    largest = np.array([np.linalg.norm(part, axis=1).max() for part in np.split(result.forces, ends)], dtype=np.float64)
    bounds = np.array([part.max() for part in uncertainties], dtype=np.float64)
    finite = np.isfinite(result.energies) & np.isfinite(result.total_uncertainty)
    scored = [
        replace(candidate, total_uncertainty=float(total), atomic_uncertainty=atomic)
        for candidate, total, atomic in zip(candidates, result.total_uncertainty, uncertainties, strict=True)
    ]
    return Scored(scored, np.where(finite, largest, np.inf), np.where(np.isfinite(bounds), bounds, np.nan))


def blocks_together(device: torch.device, largest: int, ranks: Ranks) -> int:
    """Blocks of structures of at most ``largest`` atoms that are computed at a time: a GPU is kept busy by many.

    What the rank with least memory can; ranks that share a GPU divide what is free on it.
    """
    own, blocks = gpus(str(device), ranks), 1
    if device.type == "cuda":
        free = int(torch.cuda.mem_get_info(device)[0]) // own.count(own[ranks.rank])
        blocks = free // (2 * ATOM_BYTES * largest * BLOCK)
    return max(1, min(ranks.gather(blocks)))


def in_blocks(items: IntArray, together: int) -> list[IntArray]:
    """Places of items (n,), ascending numbers: those of ``together`` consecutive blocks together."""
    edges = np.flatnonzero(np.diff(items // (BLOCK * together))) + 1
    return np.split(np.arange(len(items)), edges) if len(items) else []
