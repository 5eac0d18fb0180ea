"""Contracted moments of the pairs around every atom, with their derivative by hand.

Zaverkin et al. 2024 (npj Comput. Mater. 10, 83), Methods: Ψ_s = Σ_j R_s(r_ij) (r̂_ij)^{⊗L}. Automatic differentiation of the
same expressions keeps and reads some thirty tables over pairs; by hand there are six, and neighbours stand last in all of them.

Shapes: A atoms, M neighbours, K Gaussians, Z elements, S channels, 20 components of moments. Units: Å.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.potentials.moments import COMPONENTS


@dataclass(frozen=True, slots=True)
class Radial:
    """What the radial functions are made of: φ_k(r) = f_c(r) exp(−β (r − r_k)²) · prefactor, f_c a cosine cutoff.

    Attributes:
        centres: (K,) r_k; ``beta``: β in 1/Å²; ``prefactor``; ``cutoff_A``.
        table: (A, S, Z·K) weights of each centre's element.
        kinds: (A, M) element index of each neighbour.
    """

    centres: Tensor
    beta: float
    prefactor: float
    cutoff_A: float
    table: Tensor
    kinds: Tensor


def pair_moments(edges: Tensor, radial: Radial, plain: Callable[[Tensor], Tensor]) -> Tensor:
    """Ψ (A, S, 20) of edges (A, M, 3), differentiable once by hand and beyond that by ``plain``.

    Args:
        edges: vectors to neighbours in any floating type; the result has that of the table.
        radial: the radial functions, constants.
        plain: the same function by differentiable operations, for derivatives that are differentiated again.
    """
    moments: Tensor = _PairMoments.apply(edges, radial, plain)  # type: ignore[no-untyped-call] # torch leaves it untyped
    return moments


class _PairMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, edges: Tensor, radial: Radial, plain: Callable[[Tensor], Tensor]) -> Tensor:  # noqa: ANN401 # torch says no more of it
        vectors = torch.empty_like(
            edges.transpose(1, 2), dtype=radial.table.dtype, memory_format=torch.contiguous_format
        )
        vectors.copy_(edges.transpose(1, 2))
        distance = vectors.square().sum(dim=1, keepdim=True).sqrt_()
        inverse = distance.reciprocal()
        powers = _powers(vectors * inverse)
        basis, slope = _basis(distance, radial)
        rows = torch.bmm(radial.table, _by_element(basis, radial))
        ctx.radial, ctx.plain = radial, plain
        ctx.save_for_backward(edges, inverse, powers, slope, rows)
        return torch.bmm(rows, powers.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401 # torch says no more of it
        edges, inverse, powers, slope, rows = ctx.saved_tensors
        if torch.is_grad_enabled():
            (by_edge,) = torch.autograd.grad(ctx.plain(edges), edges, gradient, create_graph=True)
            return by_edge, None, None
        radial: Radial = ctx.radial
        a, k, m = slope.shape
        by_basis = torch.bmm(radial.table.transpose(1, 2), torch.bmm(gradient, powers))
        chosen = by_basis.view(a, -1, k, m).gather(1, _rows(radial.kinds, k)).squeeze(1)
        along = (chosen * slope).sum(dim=1, keepdim=True)
        across = _slope_of_powers(torch.bmm(gradient.transpose(1, 2), rows), powers) * inverse
        unit = powers[:, 1:4]
        along -= (across * unit).sum(dim=1, keepdim=True)
        across += along * unit
        return across.transpose(1, 2).to(edges.dtype), None, None


def _rows(kinds: Tensor, k: int) -> Tensor:
    """(A, 1, K, M): the element of each neighbour for every Gaussian, without a copy."""
    a, m = kinds.shape
    return kinds.view(a, 1, 1, m).expand(a, 1, k, m)


def _by_element(basis: Tensor, radial: Radial) -> Tensor:
    """(A, Z·K, M): the basis (A, K, M) in the rows of the neighbour's element, zero elsewhere."""
    a, k, m = basis.shape
    spread = basis.new_zeros(a, radial.table.shape[2] // k, k, m)
    return spread.scatter_(1, _rows(radial.kinds, k), basis.unsqueeze(1)).flatten(1, 2)


def _basis(distance: Tensor, radial: Radial) -> tuple[Tensor, Tensor]:
    """φ_k(r) and dφ_k/dr in 1/Å, (A, K, M), of distances (A, 1, M)."""
    phase = torch.clamp(distance * (torch.pi / radial.cutoff_A), max=torch.pi)
    half = 0.5 * radial.prefactor
    envelope = half + half * torch.cos(phase)
    fall = torch.sin(phase) * (-half * torch.pi / radial.cutoff_A)
    offset = distance - radial.centres.to(distance.dtype).unsqueeze(1)
    gaussians = torch.exp(offset.square() * -radial.beta)
    slope = torch.addcmul(fall, offset, envelope, value=-2.0 * radial.beta).mul_(gaussians)
    return gaussians.mul_(envelope), slope


def _powers(unit: Tensor) -> Tensor:
    """The 20 components of r̂^{⊗L}, L = 0…3, as (A, 20, M) of unit vectors (A, 3, M)."""
    x, y, z = torch.split(unit, 1, dim=1)
    square = torch.cat([x * unit, y * unit[:, 1:], z * z], dim=1)
    return torch.cat([torch.ones_like(x), unit, square, x * square, y * square[:, 3:], z * square[:, 5:]], dim=1)


def _slope_of_powers(coefficients: Tensor, powers: Tensor) -> Tensor:
    """(A, 3, M) gradient of Σ_c coefficient_c · power_c with respect to the unit vector; (A, 20, M) each."""
    unit, square = powers[:, 1:4], powers[:, 4:10]
    by_square, cubic = coefficients[:, 4:10], coefficients[:, 10:COMPONENTS]
    for start, stop, first, axis in ((0, 6, 0, 0), (6, 9, 3, 1), (9, 10, 5, 2)):
        by_square[:, first:].addcmul_(cubic[:, start:stop], unit[:, axis : axis + 1])
    slope = coefficients[:, 1:4]
    for start, stop, first, axis in ((0, 6, 0, 0), (6, 9, 3, 1), (9, 10, 5, 2)):
        slope[:, axis] += (cubic[:, start:stop] * square[:, first:]).sum(dim=1)
    for start, stop, first in ((0, 3, 0), (3, 5, 1), (5, 6, 2)):
        one = slice(first, first + 1)
        along = (by_square[:, start:stop] * unit[:, first:]).sum(dim=1)
        slope[:, first:].addcmul_(by_square[:, start:stop], unit[:, one])
        slope[:, first] += along
    return slope
