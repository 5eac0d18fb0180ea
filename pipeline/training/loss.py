"""The training loss (Zaverkin et al. 2024, npj Comput. Mater. 10, 83, Methods)."""

from torch import Tensor

from pipeline.potentials.base import Derivatives
from pipeline.settings.training import LossSettings
from pipeline.training.dataset import Targets


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
