"""Committee uncertainty: how much models trained from different starts disagree.

Shapes: M members, B structures, A atoms. Population standard deviations (divided by M).
"""

import torch
from torch import Tensor


def committee_total(member_energies: Tensor, n_atoms: Tensor) -> Tensor:
    """(B,) standard deviation over members of E/N, eV/atom.

    Args:
        member_energies: (M, B) eV.
        n_atoms: (B,).
    """
    per_atom = member_energies / n_atoms.to(member_energies.dtype)
    deviation = per_atom - per_atom.mean(dim=0)
    spread: Tensor = torch.linalg.vector_norm(deviation, dim=0) / len(per_atom) ** 0.5
    return spread


def committee_atomic(member_forces: Tensor) -> Tensor:
    """(A,) root mean square over members of |F − F̄|, eV/Å, from (M, A, 3) forces."""
    deviation = member_forces - member_forces.mean(dim=0)
    spread: Tensor = torch.linalg.vector_norm(deviation, dim=(0, 2)) / len(member_forces) ** 0.5
    return spread
