"""A model: potential members and the calibrated uncertainty that belongs to them.

Shapes: B structures, A atoms, P features, M members. Units: eV, Å, eV/Å³.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.batching import Batch, make_batch
from pipeline.frames import FloatArray, Frame
from pipeline.potentials.base import Potential, Prediction, differentiate
from pipeline.potentials.calculator import ModelCalculator
from pipeline.potentials.evaluation import Evaluation, join, voigt
from pipeline.uncertainty.estimator import Estimator


@dataclass(frozen=True, slots=True)
class Outcome:
    """One forward pass of all members, with the graph intact.

    Attributes:
        energies: (B,) float64 mean over members, eV.
        member_energies: (M, B) float64, eV.
        features: (A, P) of the first member, or None.
        structure_features: (B, P) mean over the atoms of a structure, or None.
    """

    energies: Tensor
    member_energies: Tensor
    features: Tensor | None
    structure_features: Tensor | None


class Model(nn.Module):
    """Members of one architecture with one estimator of their uncertainty.

    Args:
        members: one potential, or a committee.
        estimator: fitted and calibrated.
        version: number the campaign gave it.
    """

    def __init__(self, members: Sequence[Potential], estimator: Estimator, version: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.estimator = estimator
        self.version = version
        self.requires_grad_(False)
        self.eval()

    @property
    def first(self) -> Potential:
        """The member whose features are used."""
        member = self.members[0]
        assert isinstance(member, Potential)
        return member

    @property
    def potentials(self) -> Iterator[Potential]:
        """The members, typed."""
        for member in self.members:
            assert isinstance(member, Potential)
            yield member

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers it knows."""
        return self.first.elements

    @property
    def cutoff_A(self) -> float:
        """Radial cutoff, Å."""
        return self.first.cutoff_A

    def forward(self, batch: Batch, *, strain: Tensor | None = None, features: bool = True) -> Outcome:
        """Energies of all members, and the features of the first."""
        predictions: list[Prediction] = [
            member(batch, strain=strain, features=features and k == 0) for k, member in enumerate(self.potentials)
        ]
        member_energies = torch.stack([p.energies for p in predictions])
        phi = predictions[0].features
        mean = None if phi is None else batch.sum_atoms(phi).to(phi.dtype) / batch.n_atoms.unsqueeze(1).to(phi.dtype)
        return Outcome(member_energies.mean(dim=0), member_energies, phi, mean)

    def total_uncertainty(self, outcome: Outcome, batch: Batch) -> Tensor:
        """(B,) calibrated total uncertainty, eV/atom; differentiable."""
        if self.estimator.needs_forces:
            return self.estimator.total_of_members(outcome.member_energies, batch.n_atoms)
        assert outcome.structure_features is not None
        return self.estimator.total(outcome.structure_features)

    def atomic_uncertainty(self, outcome: Outcome, batch: Batch) -> Tensor:
        """(A,) calibrated atom-based uncertainty, eV/Å; differentiable for feature estimators."""
        if self.estimator.needs_forces:
            forces = [differentiate(member, batch).forces for member in self.potentials]
            return self.estimator.atomic_of_members(torch.stack(forces))
        assert outcome.features is not None
        return self.estimator.atomic(outcome.features)

    def evaluate(
        self, frames: Sequence[Frame], *, stress: bool = False, uncertainty: bool = True, batch_size: int = 64
    ) -> Evaluation:
        """Energies, forces and uncertainties of structures, ``batch_size`` at a time."""
        chunks = [
            self.evaluate_batch(
                make_batch(frames[k : k + batch_size], self.cutoff_A), stress=stress, uncertainty=uncertainty
            )
            for k in range(0, len(frames), batch_size)
        ]
        return join(chunks, [len(frames[k : k + batch_size]) for k in range(0, len(frames), batch_size)])

    def evaluate_batch(self, batch: Batch, *, stress: bool = False, uncertainty: bool = True) -> Evaluation:
        """The same for one batch with its neighbour rows."""
        positions = batch.positions.detach().requires_grad_(True)
        strain = torch.zeros_like(batch.cells).requires_grad_(True) if stress else None
        moved = batch.with_positions(positions)
        outcome = self(moved, strain=strain, features=uncertainty)
        inputs = [positions] if strain is None else [positions, strain]
        gradients = torch.autograd.grad(outcome.energies.sum(), inputs, retain_graph=True)
        total = atomic = None
        if uncertainty:
            total = self.total_uncertainty(outcome, moved).detach().to(torch.float64).numpy()
            atomic = self.atomic_uncertainty(outcome, moved).detach().to(torch.float64).numpy()
        return Evaluation(
            energies=outcome.energies.detach().numpy(),
            forces=-gradients[0].numpy(),
            stress=voigt(gradients[1], batch) if stress else None,
            total_uncertainty=total,
            atomic_uncertainty=atomic,
            system=batch.system.numpy(),
        )

    def structure_features(self, frames: Sequence[Frame], batch_size: int = 64) -> Tensor:
        """(n, P) features Φ(S) = (1/N) Σ_i φ_i of structures, no graph."""
        rows = []
        with torch.no_grad():
            for k in range(0, len(frames), batch_size):
                outcome = self(make_batch(frames[k : k + batch_size], self.cutoff_A))
                assert outcome.structure_features is not None
                rows.append(outcome.structure_features)
        return torch.cat(rows)

    def kernel_features(self, frames: Sequence[Frame], batch_size: int = 64) -> FloatArray:
        """(n, P) float64 posterior-transformed features X: the selection kernel is X Xᵀ."""
        return self.estimator.kernel(self.structure_features(frames, batch_size)).to(torch.float64).numpy()

    def calculator(self) -> ModelCalculator:
        """This model as an ASE calculator."""
        return ModelCalculator(self)
