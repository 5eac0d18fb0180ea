"""What training needs of geometries that never move: everything up to the first trainable number, computed once.

In training positions are data. The pair functions, their moments and their derivatives are constants, so an optimiser step
starts at the per-atom sums P = Σ_j φ_k(r_ij) r̂_ij^{⊗L} and forces are a constant linear map of ∂E/∂P: no graph over pairs,
no second derivative of the geometry.

Shapes: B structures, A atoms, M neighbours, Q = Z·K radial functions by element. Units: eV, Å.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.batching import Batch
from pipeline.potentials.base import Derivatives
from pipeline.potentials.gmnn import GMNN
from pipeline.potentials.moments import unit_moments


@dataclass(frozen=True, slots=True)
class FixedGeometry:
    """Constants of a batch.

    Attributes:
        batch: the structures.
        species: (A,) element indices of the potential.
        sums: (A, Q, 20) P = Σ_j φ_q(r_ij) (r̂_ij)^{⊗L}.
        radial: (A, 2M, Q) φ_q(r_ij), and below them dφ_q/dr in 1/Å.
        moments: (A, M, 20); ``moment_slope``: (A, M, 20, 3) their gradient with respect to the edge vector, 1/Å.
        edges: (A, M, 3) edge vectors, Å; ``unit``: (A, M, 3) their directions.
    """

    batch: Batch
    species: Tensor
    sums: Tensor
    radial: Tensor
    moments: Tensor
    moment_slope: Tensor
    edges: Tensor
    unit: Tensor


def fix_geometry(potential: GMNN, batch: Batch) -> FixedGeometry:
    """The constants of a batch for potentials of this architecture (they do not depend on the weights)."""
    species = potential.species(batch)
    dtype = potential.radial.table.dtype
    edges = batch.edges().detach().to(dtype).requires_grad_(True)
    distance, moments = unit_moments(edges)
    moment_slope = torch.stack(
        [
            torch.zeros_like(edges)
            if k == 0  # the moment of rank 0 is constant
            else torch.autograd.grad(moments[..., k].sum(), edges, retain_graph=True)[0]
            for k in range(moments.shape[-1])
        ],
        dim=2,
    )
    distance = distance.detach().requires_grad_(True)
    basis = potential.radial.basis(distance)
    slope = torch.stack(
        [torch.autograd.grad(basis[..., k].sum(), distance, retain_graph=True)[0] for k in range(basis.shape[-1])],
        dim=2,
    )
    radial = potential.by_element(basis.detach(), species, batch)
    moments, edges, distance = moments.detach(), edges.detach(), distance.detach()
    return FixedGeometry(
        batch=batch,
        species=species,
        sums=torch.bmm(radial.transpose(1, 2), moments),
        radial=torch.cat([radial, potential.by_element(slope, species, batch)], dim=1),
        moments=moments,
        moment_slope=moment_slope,
        edges=edges,
        unit=edges / distance.unsqueeze(-1),
    )


def differentiate_fixed(
    potential: GMNN, geometry: FixedGeometry, *, virial: bool = False, create_graph: bool = False
) -> Derivatives:
    """Energies, forces and virials as :func:`pipeline.potentials.base.differentiate` gives them, from the constants."""
    sums = geometry.sums.detach().requires_grad_(True)
    moments = potential.radial.contract(sums, geometry.species)
    prediction = potential.readout(moments, geometry.species, geometry.batch, features=False)
    (slope,) = torch.autograd.grad(prediction.energies.sum(), sums, create_graph=create_graph)
    turn, stretch = torch.bmm(geometry.radial, slope).chunk(2, dim=1)
    along = (stretch * geometry.moments).sum(dim=2)
    turning = (turn.unsqueeze(3) * geometry.moment_slope).sum(dim=2)
    per_edge = along.unsqueeze(2) * geometry.unit + turning
    neighbors = geometry.batch.neighbors.reshape(-1)
    forces = per_edge.sum(dim=1).index_add(0, neighbors, per_edge.reshape(-1, 3), alpha=-1.0)
    virials = None
    if virial:
        virials = -geometry.batch.sum_atoms(torch.bmm(geometry.edges.transpose(1, 2), per_edge))
        virials = 0.5 * (virials + virials.transpose(1, 2))
    return Derivatives(prediction.energies, forces.to(torch.float64), virials, prediction)
