"""A model's calibrated uncertainty: one total per structure, one per atom, and the kernel for selection.

Shapes: B structures, A atoms, P features, M members. Units: eV/atom (total), eV/Å (atom-based) once calibrated.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.errors import TaskError
from pipeline.uncertainty.calibration import ELEMENTS, Calibration
from pipeline.uncertainty.committee import committee_atomic, committee_total
from pipeline.uncertainty.distance import Distance
from pipeline.uncertainty.posterior import Posterior

EstimatorKind = Literal["posterior", "distance", "committee"]
Part = Posterior | Distance


class Estimator(nn.Module):
    """Uncertainties from features (``posterior``, ``distance``) or members (``committee``), times conformal factors.

    Feature kinds answer :meth:`total` and :meth:`atomic`; a committee (``needs_forces``) answers
    :meth:`total_of_members` and :meth:`atomic_of_members`. All of them have :meth:`kernel`.

    Args:
        kind: what the uncertainty is made of.
        kernel: posterior of the training structures, for selection.
        total_part: of structure features; None for a committee.
        atomic_part: of atom features; None for a committee.
    """

    total_factor: Tensor
    atomic_factor: Tensor

    def __init__(
        self, kind: EstimatorKind, kernel: Posterior, total_part: Part | None = None, atomic_part: Part | None = None
    ) -> None:
        super().__init__()
        self.kind = kind
        self.kernel_part = kernel
        self.total_part, self.atomic_part = total_part, atomic_part
        self.register_buffer("total_factor", torch.ones((), dtype=torch.float64))
        self.register_buffer("atomic_factor", torch.ones(ELEMENTS, dtype=torch.float64))
        self.calibration = Calibration.none()

    @classmethod
    def fit(
        cls, kind: EstimatorKind, structures: Tensor, atoms: Tensor, *, sigma: float, max_references: int = 4096
    ) -> "Estimator":
        """Fit on the training set, where its features are; factors stay 1 until :meth:`calibrate`.

        Args:
            kind: what the uncertainty is made of.
            structures: (N, P) structure features of the training set.
            atoms: (ΣN_i, P) atom features of the training set.
            sigma: ridge of the posteriors.
            max_references: features kept by ``distance``.
        """
        kernel = Posterior.fit(structures, sigma=sigma)
        if kind == "committee":
            return cls(kind, kernel).to(structures.device)
        if kind == "distance":
            parts = (Distance.fit(x, max_references=max_references) for x in (structures, atoms))
            return cls(kind, kernel, *parts).to(structures.device)
        total = Posterior(kernel.transform.clone())
        return cls(kind, kernel, total, Posterior.fit(atoms, sigma=sigma)).to(structures.device)

    @property
    def needs_forces(self) -> bool:
        """Whether it is made of members' energies and forces rather than of features."""
        return self.kind == "committee"

    def calibrate(self, calibration: Calibration) -> None:
        """Take over conformal factors: one of the total uncertainty (which system a structure is of is not known here), and
        of the atom-based one by element."""
        self.calibration = calibration
        self.total_factor.fill_(calibration.factor("total").value)
        self.atomic_factor.copy_(torch.from_numpy(calibration.table()))

    def total(self, structure_features: Tensor) -> Tensor:
        """(B,) calibrated uncertainty of E/N, eV/atom, from (B, P) features; differentiable."""
        part = self._part(self.total_part)
        u: Tensor = part(structure_features)
        return u * self.total_factor.to(u.dtype)

    def atomic(self, atom_features: Tensor, numbers: Tensor) -> Tensor:
        """(A,) calibrated uncertainty of each atom's force vector, eV/Å; differentiable.

        Args:
            atom_features: (A, P).
            numbers: (A,) int64 atomic numbers.
        """
        part = self._part(self.atomic_part)
        u: Tensor = part(atom_features)
        return u * self._factors_of(numbers, u)

    def total_of_members(self, member_energies: Tensor, n_atoms: Tensor) -> Tensor:
        """(B,) calibrated, eV/atom, from (M, B) energies in eV; differentiable."""
        return committee_total(member_energies, n_atoms) * self.total_factor.to(member_energies.dtype)

    def atomic_of_members(self, member_forces: Tensor, numbers: Tensor) -> Tensor:
        """(A,) calibrated, eV/Å, from (M, A, 3) forces in eV/Å of atoms with (A,) int64 atomic numbers."""
        return committee_atomic(member_forces) * self._factors_of(numbers, member_forces)

    def kernel(self, structure_features: Tensor) -> Tensor:
        """(B, P) float64 rows x of the selection kernel K = XXᵀ; for ``posterior``, √diag(K) is the uncalibrated u."""
        return self.kernel_part.transformed(structure_features.to(torch.float64))

    def config(self) -> dict[str, Any]:
        """Plain settings that, with the state dict, rebuild the estimator."""
        return {"kind": self.kind, "calibration": self.calibration.plain()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> "Estimator":
        """Rebuild from :meth:`config` and ``state_dict()``."""
        kind: EstimatorKind = config["kind"]
        parts = [_empty_part(state, name) for name in ("total_part", "atomic_part")]
        estimator = cls(kind, Posterior(torch.empty_like(state["kernel_part.transform"])), *parts)
        # files from before there was one per element hold one factor
        factor = state["atomic_factor"].expand(ELEMENTS)
        estimator.load_state_dict({**state, "atomic_factor": factor})
        if "calibration" in config:
            estimator.calibration = Calibration.from_plain(config["calibration"])
        return estimator

    def _factors_of(self, numbers: Tensor, like: Tensor) -> Tensor:
        """(A,) conformal factors of atoms."""
        return self.atomic_factor.to(like.dtype).index_select(0, numbers)

    def _part(self, part: Part | None) -> Part:
        if part is None:
            raise TaskError("A committee has no uncertainty from features.", "Call the functions of members.")
        return part


def _empty_part(state: Mapping[str, Tensor], name: str) -> Part | None:
    """A part of the shapes and dtypes found in a state dict."""
    if (transform := state.get(f"{name}.transform")) is not None:
        return Posterior(torch.empty_like(transform))
    if (references := state.get(f"{name}.references")) is not None:
        return Distance(torch.empty_like(references), torch.empty_like(state[f"{name}.scale"]))
    return None
