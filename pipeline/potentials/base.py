"""The potential contract: energies and per-atom features from one graph; everything else is derived outside.

Shapes: B structures, A atoms, P features. Units: eV, Å, eV/Å³.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.batching import Batch


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one forward pass gives, with the graph intact.

    Attributes:
        energies: (B,) float64 potential energies, eV.
        atomic_energies: (A,) energies of atoms without their constant shifts, eV.
        features: (A, P) gradient features φ_i = ∂E_i/∂w, or None when not asked for.
    """

    energies: Tensor
    atomic_energies: Tensor
    features: Tensor | None


class Potential(nn.Module, ABC):
    """A machine-learned potential that sums atomic energies.

    Attributes:
        elements: atomic numbers it knows, ascending.
        cutoff_A: neighbours within this radius are seen, Å.
        feature_dimension: length P of a feature vector.
    """

    elements: tuple[int, ...]
    cutoff_A: float
    feature_dimension: int

    @abstractmethod
    def forward(self, batch: Batch, *, strain: Tensor | None = None, features: bool = False) -> Prediction:
        """Energies of a batch.

        Args:
            batch: structures with neighbour rows of at least ``cutoff_A``.
            strain: (B, 3, 3) zero tensor that gradients give the virial of, or None.
            features: also return per-atom features.
        """


@dataclass(frozen=True, slots=True)
class Derivatives:
    """Energies (B,) eV, forces (A, 3) eV/Å, virials (B, 3, 3) W = −∂E/∂ε in eV (None without strain), and the prediction."""

    energies: Tensor
    forces: Tensor
    virials: Tensor | None
    prediction: Prediction


def differentiate(
    potential: Potential, batch: Batch, *, virial: bool = False, features: bool = False, create_graph: bool = False
) -> Derivatives:
    """Energies and forces (and virials) by automatic differentiation of one graph.

    Args:
        potential: the model.
        batch: structures.
        virial: also W = −∂E/∂ε (equals −V·stress).
        features: also per-atom features.
        create_graph: keep the graph for a loss on forces.
    """
    positions = batch.positions.detach().requires_grad_(True)
    strain = torch.zeros_like(batch.cells).requires_grad_(True) if virial else None
    prediction = potential(batch.with_positions(positions), strain=strain, features=features)
    inputs = [positions] if strain is None else [positions, strain]
    gradients = torch.autograd.grad(
        prediction.energies.sum(), inputs, create_graph=create_graph, retain_graph=create_graph or features
    )
    return Derivatives(
        energies=prediction.energies,
        forces=-gradients[0],
        virials=-gradients[1] if virial else None,
        prediction=prediction,
    )
