"""What training needs of geometries that never move: everything up to the first trainable number, computed once.

In training positions are data. The pair functions, their moments and their derivatives are constants, so an optimiser step
starts at the per-atom sums P = Σ_j φ_k(r_ij) r̂_ij^{⊗L} and forces are a constant linear map of ∂E/∂P: no graph over pairs,
no second derivative of the geometry.

Shapes: B structures, A atoms, M neighbours, N incoming edges, Q = Z·K radial functions by element. Units: eV, Å.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from pipeline.batching import Batch
from pipeline.potentials.base import Derivatives, Prediction
from pipeline.potentials.gmnn import GMNN
from pipeline.potentials.moments import unit_moments
from pipeline.potentials.sweeps import Sweep, Sweeps


@dataclass(frozen=True, slots=True)
class FixedGeometry:
    """Constants of a batch. Neighbours stand last: sums over the components before them then run along memory.

    Attributes:
        species: (A,) element indices of the potential.
        system: (A,) which structure an atom belongs to; ``n_atoms``: (B,) atoms of each.
        neighbors: (A, M) indices of atoms.
        incoming: (A, N) indices atom·M + neighbour of the edges that end at an atom; −1 where there is none.
        sums: (A, Q, 20) P = Σ_j φ_q(r_ij) (r̂_ij)^{⊗L}.
        radial: (A, Q, 2M) φ_q(r_ij), and beside them dφ_q/dr in 1/Å.
        moments: (A, 20, M); ``moment_slope``: (3, A, 20, M) their gradient with respect to the edge vector, 1/Å.
        edges: (3, A, M) edge vectors, Å; ``unit``: (3, A, M) their directions.
    """

    species: Tensor
    system: Tensor
    n_atoms: Tensor
    neighbors: Tensor
    incoming: Tensor
    sums: Tensor
    radial: Tensor
    moments: Tensor
    moment_slope: Tensor
    edges: Tensor
    unit: Tensor

    def to(self, device: torch.device | str) -> "FixedGeometry":
        """The constants on another device."""
        return FixedGeometry(*(getattr(self, field.name).to(device) for field in fields(self)))

    def sum_atoms(self, values: Tensor) -> Tensor:
        """Sum over the atoms of each structure: (A, n) to (B, n), in float64 and in the same order every time."""
        structures = torch.arange(len(self.n_atoms), device=values.device)
        return (structures.unsqueeze(1) == self.system).to(torch.float64) @ values.to(torch.float64)


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
    both = torch.cat([radial, potential.by_element(slope, species, batch)], dim=1)
    return FixedGeometry(
        species=species,
        system=batch.system,
        n_atoms=batch.n_atoms,
        neighbors=batch.neighbors,
        incoming=_incoming(batch.neighbors, batch.padding),
        sums=torch.bmm(radial.transpose(1, 2), moments),
        radial=both.transpose(1, 2).contiguous(),
        moments=moments.transpose(1, 2).contiguous(),
        moment_slope=moment_slope.permute(3, 0, 2, 1).contiguous(),
        edges=edges.permute(2, 0, 1).contiguous(),
        unit=(edges / distance.unsqueeze(-1)).permute(2, 0, 1).contiguous(),
    )


def differentiate_fixed(potential: GMNN, geometry: FixedGeometry, *, virial: bool = False) -> Derivatives:
    """Energies, forces and virials as :func:`pipeline.potentials.base.differentiate` gives them, without a graph."""
    return swept(Sweeps(potential), geometry, virial=virial)[0]


def swept(sweeps: Sweeps, geometry: FixedGeometry, *, virial: bool) -> tuple[Derivatives, Sweep]:
    """The derivatives, and the sweep that gave them: what the derivative of a loss goes on with."""
    sweep = sweeps.both_ways(geometry.sums, geometry.species)
    offsets = sweeps.potential.offsets.index_select(0, geometry.species)
    atomic = sweep.atomic_energies.to(torch.float64) + offsets
    energies = geometry.sum_atoms(atomic.unsqueeze(1)).squeeze(1)
    forces, virials = pushed(geometry, sweep.slope, virial=virial)
    return Derivatives(energies, forces, virials, Prediction(energies, sweep.atomic_energies, None)), sweep


def pushed(geometry: FixedGeometry, slope: Tensor, *, virial: bool) -> tuple[Tensor, Tensor | None]:
    """Forces (A, 3) and virials (B, 3, 3), float64, from ∂E/∂P (A, Q, 20)."""
    turn, stretch = torch.bmm(slope.transpose(1, 2), geometry.radial).chunk(2, dim=2)
    along = (stretch * geometry.moments).sum(dim=1)
    per_edge = (turn * geometry.moment_slope).sum(dim=2).addcmul_(geometry.unit, along)
    nothing = per_edge.new_zeros((3, 1))
    width = per_edge[0].numel()
    incoming = torch.where(geometry.incoming < 0, width, geometry.incoming)
    opposite = torch.cat([per_edge.flatten(1), nothing], dim=1).index_select(1, incoming.view(-1))
    forces = per_edge.sum(dim=2) - opposite.view(3, *incoming.shape).sum(dim=2)
    virials = None
    if virial:
        by_atom = torch.bmm(geometry.edges.permute(1, 0, 2), per_edge.permute(1, 2, 0))
        virials = -geometry.sum_atoms(by_atom.view(-1, 9)).view(-1, 3, 3)
        virials = 0.5 * (virials + virials.transpose(1, 2))
    return forces.t().to(torch.float64), virials


def pulled(geometry: FixedGeometry, by_forces: Tensor, by_virials: Tensor | None) -> Tensor:
    """The transposed map of :func:`pushed`: from ∂L/∂F (A, 3) and ∂L/∂W (B, 3, 3) to ∂L/∂(∂E/∂P) (A, Q, 20)."""
    dtype = geometry.radial.dtype
    by_force = by_forces.t().to(dtype).contiguous()
    opposite = by_force.index_select(1, geometry.neighbors.view(-1)).view_as(geometry.unit)
    by_edge = by_force.unsqueeze(2) - opposite
    if by_virials is not None:
        symmetric = (0.5 * (by_virials + by_virials.transpose(1, 2))).to(dtype).index_select(0, geometry.system)
        by_edge = by_edge - torch.bmm(symmetric, geometry.edges.permute(1, 0, 2)).permute(1, 0, 2)
    along = (by_edge * geometry.unit).sum(dim=0)
    turn = by_edge[0].unsqueeze(1) * geometry.moment_slope[0]
    for k in (1, 2):
        turn.addcmul_(by_edge[k].unsqueeze(1), geometry.moment_slope[k])
    both = torch.cat([turn, along.unsqueeze(1) * geometry.moments], dim=2)
    return torch.bmm(geometry.radial, both.transpose(1, 2))


def _incoming(neighbors: Tensor, padding: Tensor) -> Tensor:
    """(A, N) which edges end at each atom: sums over them have one order, where adding edge by edge has none on a GPU."""
    edges = np.flatnonzero(~padding.cpu().numpy())
    ends = neighbors.cpu().numpy().reshape(-1)[edges]
    order = np.argsort(ends, kind="stable")
    counts = np.bincount(ends, minlength=len(neighbors))
    column = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.full((len(neighbors), max(1, int(counts.max()))), -1)
    table[ends[order], column] = edges[order]
    return torch.from_numpy(table).to(neighbors.device)
