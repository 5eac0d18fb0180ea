"""The uncertainty bias: forces of E − τ s u from one graph.

Zaverkin et al. 2024 (npj Comput. Mater. 10, 83), Methods: F_b,i = F_i + τ s w_i ∂u/∂R_i with
s = √(Σ_window |F|²) / √(Σ_window |w ∂u/∂R|²), so that |F_b − F| / |F| ≈ τ.

Shapes: B walkers, A atoms, W samples of the window. Units: eV, Å.
"""

from dataclasses import dataclass

import torch
from ase.data import atomic_numbers
from torch import Tensor

from pipeline.batching import Batch
from pipeline.potentials.model import Model, Outcome
from pipeline.settings.walkers import BiasSettings


def species_weights(settings: BiasSettings, numbers: Tensor) -> Tensor:
    """(A, 1) float64 weights w_i of the bias force."""
    table = torch.ones(128, dtype=torch.float64)
    for element, weight in settings.species_weights.items():
        table[atomic_numbers[element]] = weight
    return table.index_select(0, numbers).unsqueeze(1)


@dataclass(frozen=True, slots=True)
class BiasedForces:
    """Forces that move walkers.

    Attributes:
        forces: (A, 3) float64 biased forces F + τ s w ∂u/∂R, eV/Å.
        plain: (A, 3) float64 forces F without the bias, or None when one fused backward pass gave ``forces``.
        gradient: (A, 3) float64 w ∂u/∂R, 1/Å times the unit of u, or None when fused.
        outcome: the forward pass; ``batch``: the batch it was made of.
    """

    forces: Tensor
    plain: Tensor | None
    gradient: Tensor | None
    outcome: Outcome
    batch: Batch


def bias_quantity(model: Model, outcome: Outcome, batch: Batch, quantity: str) -> Tensor:
    """(B,) the uncertainty u that the bias climbs: total (eV/atom), or the sum of the atom-based ones (eV/Å)."""
    if quantity == "total":
        return model.total_uncertainty(outcome, batch)
    return batch.sum_atoms(model.atomic_uncertainty(outcome, batch).unsqueeze(1)).squeeze(1)


def biased_forces(
    model: Model,
    batch: Batch,
    *,
    settings: BiasSettings,
    strength: Tensor,
    weights: Tensor,
    split: bool,
    features: bool = True,
) -> BiasedForces:
    """Forces of E − τ s u.

    With all weights 1 and ``split`` off one backward pass of the scalar Σ (E − τ s u) does it; else F and ∂u/∂R come from two
    passes through the same graph.

    Args:
        model: the model.
        batch: walkers.
        settings: which uncertainty is climbed.
        strength: (B,) float64 product τ s of each walker; all zero skips the bias.
        weights: (A, 1) from :func:`species_weights`.
        split: return F and w ∂u/∂R apart.
        features: compute features (needed for the bias, and by stop checks).
    """
    positions = batch.positions.detach().requires_grad_(True)
    moved = batch.with_positions(positions)
    active = split or bool((strength != 0).any())
    outcome = model(moved, features=features or active)
    energy = outcome.energies.sum()
    if not active:
        (gradient,) = torch.autograd.grad(energy, positions, retain_graph=False)
        return BiasedForces(-gradient, -gradient, None, outcome, moved)
    u = bias_quantity(model, outcome, moved, settings.quantity).to(torch.float64)
    if not split and bool((weights == 1).all()):
        (gradient,) = torch.autograd.grad(energy - (strength * u).sum(), positions)
        return BiasedForces(-gradient, None, None, outcome, moved)
    (energy_gradient,) = torch.autograd.grad(energy, positions, retain_graph=True)
    (gradient,) = torch.autograd.grad(u.sum(), positions)
    weighted = weights * gradient
    per_atom = strength.index_select(0, batch.system).unsqueeze(1)
    return BiasedForces(-energy_gradient + per_atom * weighted, -energy_gradient, weighted, outcome, moved)
