"""The uncertainty bias: forces and stress of E − τ s u from one graph.

Zaverkin et al. 2024 (npj Comput. Mater. 10, 83), Methods: F_b,i = F_i + τ_F s_F w_i ∂u/∂R_i and
σ_b = σ − τ_σ s_σ (1/V) ∂u/∂ε. The controller of s makes |F_b − F| / |F| ≈ τ_F and |σ_b − σ| / |σ| ≈ τ_σ.

Shapes: B walkers, A atoms. Units: eV, Å.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from ase.data import atomic_numbers
from torch import Tensor

from pipeline.batching import Batch
from pipeline.potentials.model import Model, Outcome
from pipeline.settings.walkers import BiasSettings

ExtraEnergy = Callable[[Batch, Tensor | None], Tensor]
"""(batch, strain) to (B,) eV: an energy added to E and differentiated with it, such as that of metadynamics hills."""


def species_weights(settings: BiasSettings, numbers: Tensor) -> Tensor:
    """(A, 1) float64 weights w_i of the bias force."""
    table = torch.ones(128, dtype=torch.float64)
    for element, weight in settings.species_weights.items():
        table[atomic_numbers[element]] = weight
    return table.to(numbers.device).index_select(0, numbers).unsqueeze(1)


@dataclass(frozen=True, slots=True)
class BiasedForces:
    """Forces that move walkers, and the virials that move their cells.

    Attributes:
        forces: (A, 3) float64 biased forces F + τ_F s_F w ∂u/∂R, eV/Å.
        plain: (A, 3) float64 forces F without the bias, or None when one fused backward pass gave ``forces``.
        gradient: (A, 3) float64 w ∂u/∂R, 1/Å times the unit of u, or None when it was not computed apart.
        virials: (B, 3, 3) float64 symmetric biased virials −∂E/∂ε + τ_σ s_σ ∂u/∂ε, eV (their impulse, see
            :func:`biased_forces`), or None when not asked for.
        plain_virials: (B, 3, 3) float64 −∂E/∂ε, eV, or None as ``plain`` and where not asked for.
        strain_gradient: (B, 3, 3) float64 ∂u/∂ε, the unit of u, or None as ``gradient`` and where not asked for.
        outcome: the forward pass; ``batch``: the batch it was made of.
    """

    forces: Tensor
    plain: Tensor | None
    gradient: Tensor | None
    virials: Tensor | None
    plain_virials: Tensor | None
    strain_gradient: Tensor | None
    outcome: Outcome
    batch: Batch


def bias_quantity(model: Model, outcome: Outcome, batch: Batch, quantity: str) -> Tensor:
    """(B,) the uncertainty u that the bias climbs: total (eV/atom), or the sum of the atom-based ones (eV/Å)."""
    if quantity == "total":
        return model.total_uncertainty(outcome, batch)
    return batch.sum_atoms(model.atomic_uncertainty(outcome, batch).unsqueeze(1)).squeeze(1)


def stress_impulse(settings: BiasSettings, clock: int) -> int:
    """How many steps' bias stress the virials carry at step ``clock``: the ``stress_impulse`` of :func:`biased_forces`."""
    if settings.every > 1:  # the steps where the bias acts are impulses already
        return 1
    return settings.stress_every if clock % settings.stress_every == 0 else 0


def biased_forces(
    model: Model,
    batch: Batch,
    *,
    settings: BiasSettings,
    strength: Tensor | None,
    stress_strength: Tensor | None = None,
    weights: Tensor,
    split: bool,
    features: bool = True,
    virial: bool = False,
    stress_impulse: int = 1,
    extra: ExtraEnergy | None = None,
) -> BiasedForces:
    """Forces and virials of E − τ s u. Nothing here waits for the device: what to compute is said by the arguments.

    One backward pass of the scalar Σ (E − τ s u) does it where all weights are 1 and the virials may carry the strength a of
    the forces; else E and u are differentiated one after the other through the same graph. Virials of another strength b need
    both passes, for one pass carries one number back along each edge. They are spared by a multiple time step (Tuckerman, Berne
    and Martyna 1992, J. Chem. Phys. 97, 1990): the virials carry a at every step, and a + n (b − a) at every n-th, so that b
    acts on the cell in the mean, with an error of second order in n Δt.

    Args:
        model: the model.
        batch: walkers.
        settings: which uncertainty is climbed, and the weights of elements.
        strength: (B,) float64 product τ_F s_F of each walker; None: no bias acts.
        stress_strength: (B,) float64 product τ_σ s_σ; None: the virials are unbiased. The very tensor that is ``strength``
            allows one pass at every step.
        weights: (A, 1) from :func:`species_weights` with the same settings.
        split: return E's and u's derivatives apart (samples for the controller of s).
        features: compute features (needed for the bias, and by stop checks).
        virial: also virials.
        stress_impulse: 1: virials of strength b; n > 1: a + n (b − a); 0: a. Where the weights are not 1 two passes are made
            anyway, and the virials have strength b at every step.
        extra: an energy added to E.
    """
    positions = batch.positions.detach().requires_grad_(True)
    strain = torch.zeros_like(batch.cells).requires_grad_(True) if virial else None
    inputs = [positions] if strain is None else [positions, strain]
    moved = batch.with_positions(positions)
    alike = _is_one(settings)
    impulse = stress_impulse if alike else 1
    active = split or strength is not None or (virial and impulse > 0 and stress_strength is not None)
    # a committee answers from its members: nothing reads features
    outcome = model(moved, strain=strain, features=(features or active) and not model.estimator.needs_forces)
    energies = outcome.energies if extra is None else outcome.energies + extra(moved, strain)
    if not active:
        plain, plain_virials = _downhill(energies.sum(), inputs, keep=False)
        return BiasedForces(plain, plain, None, plain_virials, plain_virials, None, outcome, moved)
    u = bias_quantity(model, outcome, moved, settings.quantity).to(torch.float64)
    one_strength = not virial or impulse == 0 or stress_strength is strength
    if strength is not None and not split and alike and one_strength:
        forces, virials = _downhill((energies - strength * u).sum(), inputs, keep=False)
        return BiasedForces(forces, None, None, virials, None, None, outcome, moved)
    plain, plain_virials = _downhill(energies.sum(), inputs, keep=True)
    uphill, strain_uphill = _downhill(-u.sum(), inputs, keep=False)
    gradient = weights * uphill
    forces, virials = plain, plain_virials
    if strength is not None:
        forces = plain + strength.index_select(0, batch.system).unsqueeze(1) * gradient
    if plain_virials is not None and strain_uphill is not None:
        carried = _carried(strength, stress_strength, impulse)
        virials = plain_virials if carried is None else plain_virials + carried.view(-1, 1, 1) * strain_uphill
    return BiasedForces(forces, plain, gradient, virials, plain_virials, strain_uphill, outcome, moved)


def _carried(strength: Tensor | None, stress_strength: Tensor | None, impulse: int) -> Tensor | None:
    """(B,) strength a + n (b − a) of the bias in the virials; None is zero."""
    if impulse == 1 or strength is stress_strength:
        return stress_strength
    if strength is None:
        assert stress_strength is not None
        return impulse * stress_strength
    if stress_strength is None:
        return (1 - impulse) * strength
    return strength + impulse * (stress_strength - strength)


def _is_one(settings: BiasSettings) -> bool:
    """Whether the weights of all elements are 1."""
    return all(weight == 1.0 for weight in settings.species_weights.values())


def _downhill(scalar: Tensor, inputs: list[Tensor], *, keep: bool) -> tuple[Tensor, Tensor | None]:
    """Minus the gradient of a scalar: (A, 3) by positions, and (B, 3, 3), symmetric, by strain where that is an input."""
    by_position, *by_strain = torch.autograd.grad(scalar, inputs, retain_graph=keep)
    if not by_strain:
        return -by_position, None
    return -by_position, -0.5 * (by_strain[0] + by_strain[0].transpose(1, 2))
