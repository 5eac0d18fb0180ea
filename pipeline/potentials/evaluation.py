"""What a model says of some structures, as numpy arrays.

Shapes: B structures, A atoms. Units: eV, Å, eV/Å³.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.batching import Batch
from pipeline.frames import FloatArray, IntArray

VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything a model says of some structures, as numpy arrays.

    Attributes:
        energies: (B,) eV.
        forces: (A, 3) eV/Å.
        stress: (B, 6) Voigt (xx, yy, zz, yz, xz, xy), eV/Å³, ASE's sign; NaN rows where not periodic; None if not asked for.
        total_uncertainty: (B,) calibrated, eV/atom; None if not asked for.
        atomic_uncertainty: (A,) calibrated, eV/Å; None if not asked for.
        system: (A,) which structure an atom belongs to.
    """

    energies: FloatArray
    forces: FloatArray
    stress: FloatArray | None
    total_uncertainty: FloatArray | None
    atomic_uncertainty: FloatArray | None
    system: IntArray


def on_host(values: Tensor) -> FloatArray:
    """Numbers of a tensor on any device as float64, without its graph."""
    array: FloatArray = values.detach().to("cpu", torch.float64).numpy()
    return array


def voigt(gradient: Tensor, batch: Batch) -> FloatArray:
    """(B, 6) stress (1/V) ∂E/∂ε from (B, 3, 3) gradients in eV, NaN where the structure has no volume."""
    symmetric = 0.5 * (gradient + gradient.transpose(1, 2))
    components = torch.stack([symmetric[:, i, j] for i, j in VOIGT], dim=1)
    volumes = batch.volumes.unsqueeze(1)
    return on_host(torch.where(volumes > 0, components / volumes, torch.nan))


def nothing(*, stress: bool, uncertainty: bool) -> Evaluation:
    """What is said of no structures at all."""
    return Evaluation(
        energies=np.zeros(0),
        forces=np.zeros((0, 3)),
        stress=np.zeros((0, 6)) if stress else None,
        total_uncertainty=np.zeros(0) if uncertainty else None,
        atomic_uncertainty=np.zeros(0) if uncertainty else None,
        system=np.zeros(0, dtype=np.int64),
    )


def join(chunks: Sequence[Evaluation], sizes: Sequence[int]) -> Evaluation:
    """Evaluations of consecutive chunks of ``sizes`` structures as one."""

    def together(name: str) -> FloatArray | None:
        parts = [getattr(chunk, name) for chunk in chunks]
        return None if parts[0] is None else np.concatenate(parts)

    first = np.cumsum([0, *sizes[:-1]])
    energies, forces = together("energies"), together("forces")
    assert energies is not None
    assert forces is not None
    return Evaluation(
        energies=energies,
        forces=forces,
        stress=together("stress"),
        total_uncertainty=together("total_uncertainty"),
        atomic_uncertainty=together("atomic_uncertainty"),
        system=np.concatenate([chunk.system + offset for chunk, offset in zip(chunks, first, strict=True)]),
    )
