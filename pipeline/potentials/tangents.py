"""How the invariants and their gradient change when the moments move: what a loss on forces needs beside them.

Forces are a linear map of ∂E/∂Ψ, so the weight gradient of a loss on forces is the change of the weight gradient of E along
one direction Ψ̇ of the moments. It is carried forward through the products of :class:`Invariants` and of their gradient, which
takes half the time of differentiating these products twice.

Shapes: A atoms, S channels, F invariants.
"""

import torch
from torch import Tensor, nn

from pipeline.potentials.invariants import KINDS, Invariants
from pipeline.potentials.moments import COMPONENTS

Factors = tuple[Tensor, ...]
"""As :meth:`Invariants.factors` gives them, or their change: the row of the unit matrix is then zero."""


class InvariantTangents:
    """Changes along a direction Ψ̇ (A, S, 20) of the moments.

    Args:
        invariants: what changes; its tables are used.
    """

    def __init__(self, invariants: Invariants) -> None:
        self._invariants = invariants
        side = 3 * invariants.channels
        kind, place = invariants.chosen // side**2, invariants.chosen % side**2
        self._turned = kind * side**2 + place % side * side + place // side

    def contract(self, factors: Factors, direction: Tensor) -> tuple[Tensor, Factors]:
        """(A, F) change of the invariants, and that of the factors they are products of."""
        by, a, s = self._invariants, *direction.shape[:2]
        vectors, square, cubes, turned, packed, completed, products, mixed = factors
        spread = direction.reshape(a, -1).index_select(1, by.spread) * by.gain.to(direction.dtype)
        v, m, t, q, c = torch.split(spread, [3 * s, 9 * s, 18 * s, 6 * s, 18 * s], dim=1)
        d_vectors, d_square, d_cubes = v.reshape(a, s, 3), m.reshape(a, 3 * s, 3), t.reshape(a, 3 * s, 6)
        d_packed, d_turned = q.reshape(a, s, 6), c.reshape(a, 3, 6 * s)
        d_completed = nn.functional.pad(m.reshape(a, s, 9), (0, 0, 0, 1))
        squares = [v.unsqueeze(2) * vectors.reshape(a, 1, 3 * s)]
        squares += [torch.bmm(d_square, square.transpose(1, 2)), torch.bmm(d_cubes, cubes.transpose(1, 2))]
        flat = torch.cat([x.view(a, -1) for x in squares], dim=1)
        # a pair's matrix is contracted with symmetric ones only: it may stand for its transpose
        d_products = (flat.index_select(1, by.chosen) + flat.index_select(1, self._turned)).view(a, 9, -1)
        d_mixed = torch.bmm(d_vectors, turned).baddbmm_(vectors, d_turned)
        cubic = torch.bmm(completed, d_products).baddbmm_(d_completed, products)
        triple = torch.bmm(packed, d_mixed.view(a, s * s, 6).transpose(1, 2))
        triple.baddbmm_(d_packed, mixed.view(a, s * s, 6).transpose(1, 2))
        parts = (direction[:, :, 0], cubic.view(a, -1), triple.view(a, -1))
        change = torch.cat(parts, dim=1).index_select(1, by.order)
        return change, (d_vectors, d_square, d_cubes, d_turned, d_packed, d_completed, d_products, d_mixed)

    def pull(self, factors: Factors, changes: Factors, gradient: Tensor, change: Tensor) -> Tensor:
        """(A, S, 20) change of :meth:`Invariants.pull` of ``gradient`` (A, F), which itself changes by ``change`` (A, F)."""
        by, a, s = self._invariants, len(gradient), self._invariants.channels
        vectors, square, cubes, turned, packed, completed, products, mixed = factors
        d_vectors, d_square, d_cubes, d_turned, d_packed, d_completed, d_products, d_mixed = changes
        _, cubic, triple = self._unordered(gradient)
        scalars, d_cubic, d_triple = self._unordered(change)
        by_square = self._by_square(torch.bmm(completed.transpose(1, 2), cubic))
        d_by_square = self._by_square(
            torch.bmm(completed.transpose(1, 2), d_cubic).baddbmm_(d_completed.transpose(1, 2), cubic)
        )
        by_mixed = self._by_mixed(torch.bmm(packed.transpose(1, 2), triple))
        d_by_mixed = self._by_mixed(
            torch.bmm(packed.transpose(1, 2), d_triple).baddbmm_(d_packed.transpose(1, 2), triple)
        )
        singles = (vectors.reshape(a, 3 * s, 1), square, cubes)
        d_singles = (d_vectors.reshape(a, 3 * s, 1), d_square, d_cubes)
        pieces = [
            scalars,
            *(
                torch.bmm(f.transpose(1, 2), d_by_square[:, k]).baddbmm_(d.transpose(1, 2), by_square[:, k])
                for k, (f, d) in enumerate(zip(singles, d_singles, strict=True))
            ),
            torch.bmm(d_cubic, products.transpose(1, 2)).baddbmm_(cubic, d_products.transpose(1, 2))[:, :s],
            torch.bmm(d_by_mixed, turned.transpose(1, 2)).baddbmm_(by_mixed, d_turned.transpose(1, 2)),
            torch.bmm(d_triple, mixed.view(a, s * s, 6)).baddbmm_(triple, d_mixed.view(a, s * s, 6)),
            torch.bmm(vectors.transpose(1, 2), d_by_mixed).baddbmm_(d_vectors.transpose(1, 2), by_mixed),
        ]
        flat = torch.cat([*(piece.reshape(a, -1) for piece in pieces), gradient.new_zeros(a, 1)], dim=1)
        flat = flat * by.share.to(gradient.dtype)
        return flat.index_select(1, by.gather).view(a, -1, s, COMPONENTS).sum(dim=1)

    def _unordered(self, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A gradient by the invariants as one by scalars (A, S), cubic (A, S + 1, 3P) and triple (A, S, S²) products."""
        by, a, s = self._invariants, len(gradient), self._invariants.channels
        wide = nn.functional.pad(gradient, (0, 1)).index_select(1, by.reverse)
        scalars, cubic, triple = torch.split(wide, [s, (s + 1) * KINDS * by.pairs, s**3], dim=1)
        return scalars, cubic.reshape(a, s + 1, -1), triple.reshape(a, s, s * s)

    def _by_square(self, by_pair: Tensor) -> Tensor:
        """A gradient by the matrices of pairs (A, 9, 3P) as one by all products (A, 3, 3S, 3S)."""
        by, a, side = self._invariants, len(by_pair), 3 * self._invariants.channels
        flat = (by_pair * by.twice.to(by_pair.dtype)).view(a, -1)
        return flat.index_select(1, by.unchosen).view(a, KINDS, side, side)

    def _by_mixed(self, by_packed: Tensor) -> Tensor:
        """(A, 6, S²) as (A, S, 6S)."""
        a, s = len(by_packed), self._invariants.channels
        return by_packed.view(a, 6, s, s).permute(0, 2, 3, 1).reshape(a, s, 6 * s)
