"""The training loss (Zaverkin et al. 2024, npj Comput. Mater. 10, 83, Methods)."""

from dataclasses import replace

import torch
from torch import Tensor

from pipeline.potentials.base import Derivatives
from pipeline.potentials.geometry import pulled, swept
from pipeline.potentials.sweeps import Sweeps
from pipeline.settings.training import LossSettings
from pipeline.training.dataset import Minibatch, Targets


def loss(derivatives: Derivatives, targets: Targets, settings: LossSettings) -> Tensor:
    """L = Σ_batch [ w_E (E−E')² + w_F Σ_i |F_i−F_i'|² + w_W |W−W'|² ], sums of squares in eV and Å.

    W = −V·stress counts by its six independent components, and only for labels that have a stress.

    Returns:
        () float64.
    """
    total = settings.energy * (derivatives.energies - targets.energies).square().sum()
    total = total + settings.force * (derivatives.forces - targets.forces).square().sum()
    if derivatives.virials is not None:
        error = (derivatives.virials - targets.virials).square()
        six = error.tril().sum(dim=(1, 2))
        total = total + settings.stress * (six * targets.has_virial).sum()
    return total


def loss_gradient(sweeps: Sweeps, minibatch: Minibatch, settings: LossSettings, *, virial: bool) -> Tensor:
    """The loss of a minibatch, () float64; its derivatives are left with the weights of the potential.

    Args:
        sweeps: of the potential that is trained.
        minibatch: constants and references.
        settings: weights of the loss.
        virial: whether there is a stress to fit.
    """
    geometry = minibatch.geometry
    found, sweep = swept(sweeps, geometry, virial=virial)
    leaves = [x.detach().requires_grad_(True) for x in (found.energies, found.forces, found.virials) if x is not None]
    with torch.enable_grad():
        said = replace(found, energies=leaves[0], forces=leaves[1], virials=leaves[2] if virial else None)
        value = loss(said, minibatch.targets, settings)
    by_energies, by_forces, *by_virials = torch.autograd.grad(value, leaves)
    direction = pulled(geometry, by_forces, by_virials[0] if by_virials else None)
    share = by_energies.to(direction.dtype).index_select(0, geometry.system)
    gradients = sweeps.by_weights(sweep, direction, share)
    for name, parameter in sweeps.potential.named_parameters():
        parameter.grad = gradients[name]
    return value.detach()
