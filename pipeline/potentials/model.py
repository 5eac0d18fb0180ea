"""A model: potential members and the calibrated uncertainty that belongs to them.

Shapes: B structures, A atoms, P features, M members. Units: eV, Å, eV/Å³.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.batching import Batch, make_batch
from pipeline.errors import ModelError
from pipeline.frames import FloatArray, Frame
from pipeline.potentials.base import Potential, Prediction, differentiate
from pipeline.potentials.calculator import ModelCalculator
from pipeline.potentials.evaluation import Evaluation, join, nothing, on_host, voigt
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

    def detached(self) -> "Outcome":
        """The same numbers without the graph."""
        atoms, means = self.features, self.structure_features
        return Outcome(
            energies=self.energies.detach(),
            member_energies=self.member_energies.detach(),
            features=None if atoms is None else atoms.detach(),
            structure_features=None if means is None else means.detach(),
        )


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
    def device(self) -> torch.device:
        """Where its numbers are."""
        return self.estimator.total_factor.device

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
            return self.estimator.atomic_of_members(torch.stack(forces), batch.numbers)
        assert outcome.features is not None
        return self.estimator.atomic(outcome.features, batch.numbers)

    def batch(self, frames: Sequence[Frame]) -> Batch:
        """Structures with their neighbours, where the model is.

        Raises:
            ModelError: an element the model was not made for.
        """
        self.check_elements(frames)
        return make_batch(frames, self.cutoff_A, self.device)

    def check_elements(self, frames: Sequence[Frame]) -> None:
        """Refuse structures with elements the model was not made for: on a GPU a step cannot look without waiting.

        Raises:
            ModelError: there is one.
        """
        found = {int(number) for frame in frames for number in np.unique(frame.numbers)}
        if unknown := sorted(found - set(self.elements)):
            raise ModelError(
                f"The model knows elements {self.elements}, the structure has {unknown}.", "Train on them first."
            )

    def evaluate(
        self, frames: Sequence[Frame], *, stress: bool = False, uncertainty: bool = True, batch_size: int = 64
    ) -> Evaluation:
        """Energies, forces and uncertainties of structures, ``batch_size`` at a time; of none, arrays without rows.

        Raises:
            ModelError: an element the model was not made for.
        """
        if not frames:
            return nothing(stress=stress, uncertainty=uncertainty)
        starts = range(0, len(frames), batch_size)
        chunks = [
            self.evaluate_batch(self.batch(frames[k : k + batch_size]), stress=stress, uncertainty=uncertainty)
            for k in starts
        ]
        return join(chunks, [len(frames[k : k + batch_size]) for k in starts])

    def evaluate_batch(self, batch: Batch, *, stress: bool = False, uncertainty: bool = True) -> Evaluation:
        """The same for one batch with its neighbour rows, which is where the model is."""
        positions = batch.positions.detach().requires_grad_(True)
        strain = torch.zeros_like(batch.cells).requires_grad_(True) if stress else None
        moved = batch.with_positions(positions)
        outcome = self(moved, strain=strain, features=uncertainty and not self.estimator.needs_forces)
        inputs = [positions] if strain is None else [positions, strain]
        gradients = torch.autograd.grad(outcome.energies.sum(), inputs)
        outcome = outcome.detached()
        return Evaluation(
            energies=on_host(outcome.energies),
            forces=-on_host(gradients[0]),
            stress=voigt(gradients[1], batch) if stress else None,
            total_uncertainty=on_host(self.total_uncertainty(outcome, batch)) if uncertainty else None,
            atomic_uncertainty=on_host(self.atomic_uncertainty(outcome, batch)) if uncertainty else None,
            system=batch.system.cpu().numpy(),
        )

    def structure_features(self, frames: Sequence[Frame], batch_size: int = 64) -> Tensor:
        """(n, P) features Φ(S) = (1/N) Σ_i φ_i of structures, where the model is; no graph.

        Raises:
            ModelError: an element the model was not made for.
        """
        if not frames:
            return torch.zeros((0, self.first.feature_dimension), dtype=torch.float64, device=self.device)
        rows = []
        with torch.no_grad():
            for k in range(0, len(frames), batch_size):
                outcome = self(self.batch(frames[k : k + batch_size]))
                assert outcome.structure_features is not None
                rows.append(outcome.structure_features)
        return torch.cat(rows)

    def kernel_features(self, frames: Sequence[Frame], batch_size: int = 64) -> FloatArray:
        """(n, P) float64 posterior-transformed features X: the selection kernel is X Xᵀ."""
        return on_host(self.estimator.kernel(self.structure_features(frames, batch_size)))

    def calculator(self) -> ModelCalculator:
        """This model as an ASE calculator."""
        return ModelCalculator(self)
