"""Rotational invariants of Gaussian moments, with their derivative by hand (Zaverkin et al. 2024, npj Comput. Mater. 10, 83).

Shapes: A atoms, S channels, P = S (S + 1)/2 channel pairs. Components of moments as in :mod:`pipeline.potentials.moments`.
"""

import math
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.potentials.moments import COMPONENTS, PAIRS, TRIPLES

KINDS = 3
"""Products Ψ1⊗Ψ1, Ψ2Ψ2 and Ψ3Ψ3 that leave a 3×3 matrix of a channel pair."""


class Invariants(nn.Module):
    """Contracts moments (A, S, 20) to rotational invariants (A, :func:`~pipeline.potentials.moments.feature_count`).

    Ψ0; Ψ1·Ψ1; Ψ2:Ψ2; Ψ3⋮Ψ3; Ψ1Ψ1Ψ2; Ψ3Ψ3Ψ2; Ψ3Ψ2Ψ1; tr(Ψ2Ψ2Ψ2); symmetric index pairs once. All but the first and Ψ3Ψ2Ψ1
    contract a 3×3 matrix, the product of two moments, with Ψ2 or (for the quadratic ones) with the unit matrix: one batched
    product gives them all. What products need of the moments is laid out by one gather, and the transposed gather is a
    gather too: no gradient is scattered. Long rows stand last: small matrices are multiplied several times faster so.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.pairs = channels * (channels + 1) // 2
        for name, index in _tables(channels).items():
            self.register_buffer(name, torch.tensor(index), persistent=False)
        s, root = channels, [1.0 if a == b else math.sqrt(2.0) for a, b in PAIRS]
        by_cube = [r for r in root for _ in range(3 * s)]
        # how often a component of a symmetric pair occurs, half on each of two factors
        gain = [1.0] * (12 * s) + root * (7 * s)
        share = [1.0] * (13 * s) + by_cube + [1.0] * (12 * s) + root * (4 * s) + [0.0]
        unit = torch.eye(3, dtype=torch.float64).view(1, 1, 9)
        for name, values in (
            ("gain", torch.tensor(gain, dtype=torch.float64)),
            ("share", torch.tensor(share, dtype=torch.float64)),
            ("unit", unit),
        ):
            self.register_buffer(name, values, persistent=False)

    spread: Tensor
    gather: Tensor
    chosen: Tensor
    unchosen: Tensor
    twice: Tensor
    order: Tensor
    reverse: Tensor
    gain: Tensor
    share: Tensor
    unit: Tensor

    def forward(self, moments: Tensor) -> Tensor:
        """Invariants of the moments of every atom."""
        invariants: Tensor = _Contraction.apply(moments, self)  # type: ignore[no-untyped-call] # torch leaves it untyped
        return invariants

    def factors(self, moments: Tensor) -> tuple[Tensor, ...]:
        """All that the invariants and their derivative are products of.

        Returns:
            vectors (A, S, 3); matrices (A, S, 9); cubes (A, 3S, 6) and (A, 3, 6S), which like the packed matrices (A, S, 6)
            carry the square root of how often a component occurs; matrices and the unit matrix (A, S + 1, 9); products of
            pairs (A, 9, 3P); Ψ3·Ψ1 (A, S, 6S).
        """
        a, s = moments.shape[0], self.channels
        spread = moments.reshape(a, -1).index_select(1, self.spread) * self.gain.to(moments.dtype)
        v, m, t, q, c = torch.split(spread, [3 * s, 9 * s, 18 * s, 6 * s, 18 * s], dim=1)
        column, square, cubes = v.reshape(a, 3 * s, 1), m.reshape(a, 3 * s, 3), t.reshape(a, 3 * s, 6)
        squares = [column * column.transpose(1, 2)]
        squares += [torch.bmm(f, f.transpose(1, 2)) for f in (square, cubes)]
        products = torch.cat([x.view(a, -1) for x in squares], dim=1).index_select(1, self.chosen)
        matrices, vectors, turned = m.reshape(a, s, 9), v.reshape(a, s, 3), c.reshape(a, 3, 6 * s)
        completed = torch.cat([matrices, self.unit.to(moments.dtype).expand(a, 1, 9)], dim=1)
        mixed = torch.bmm(vectors, turned)
        return vectors, square, cubes, turned, q.reshape(a, s, 6), completed, products.view(a, 9, -1), mixed

    def contract(self, moments: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
        """The invariants, from what they are products of."""
        *_, packed, completed, products, mixed = factors
        a, s = moments.shape[0], self.channels
        cubic = torch.bmm(completed, products)
        triple = torch.bmm(packed, mixed.view(a, s * s, 6).transpose(1, 2))
        parts = (moments[:, :, 0], cubic.view(a, -1), triple.view(a, -1))
        return torch.cat(parts, dim=1).index_select(1, self.order)

    def pull(self, gradient: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
        """The gradient with respect to the moments (A, S, 20), from that with respect to the invariants."""
        vectors, square, cubes, turned, packed, completed, products, mixed = factors
        a, s = gradient.shape[0], self.channels
        wide = nn.functional.pad(gradient, (0, 1)).index_select(1, self.reverse)
        scalars, cubic, triple = torch.split(wide, [s, (s + 1) * KINDS * self.pairs, s**3], dim=1)
        cubic, triple = cubic.reshape(a, s + 1, -1), triple.reshape(a, s, s * s)
        by_pair = torch.bmm(completed.transpose(1, 2), cubic) * self.twice.to(gradient.dtype)
        by_square = by_pair.view(a, -1).index_select(1, self.unchosen).view(a, KINDS, 3 * s, 3 * s)
        singles = (vectors.reshape(a, 3 * s, 1), square, cubes)
        by_mixed = torch.bmm(packed.transpose(1, 2), triple).view(a, 6, s, s).permute(0, 2, 3, 1).reshape(a, s, 6 * s)
        pieces = [
            scalars,
            *(torch.bmm(f.transpose(1, 2), by_square[:, k]) for k, f in enumerate(singles)),
            torch.bmm(cubic, products.transpose(1, 2))[:, :s],
            torch.bmm(by_mixed, turned.transpose(1, 2)),
            torch.bmm(triple, mixed.view(a, s * s, 6)),
            torch.bmm(vectors.transpose(1, 2), by_mixed),
        ]
        flat = torch.cat([*(piece.reshape(a, -1) for piece in pieces), gradient.new_zeros(a, 1)], dim=1)
        flat = flat * self.share.to(gradient.dtype)
        return flat.index_select(1, self.gather).view(a, -1, s, COMPONENTS).sum(dim=1)


class _Contraction(torch.autograd.Function):
    """Invariants of moments; a derivative that is to be differentiated again is made of products that keep their graph."""

    @staticmethod
    def forward(ctx: Any, moments: Tensor, invariants: Invariants) -> Tensor:  # noqa: ANN401 # torch says no more of it
        factors = invariants.factors(moments)
        ctx.invariants = invariants
        ctx.save_for_backward(moments, *factors)
        return invariants.contract(moments, factors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 # torch says no more of it
        moments, *factors = ctx.saved_tensors
        if torch.is_grad_enabled():
            factors = ctx.invariants.factors(moments)
        return ctx.invariants.pull(gradient, tuple(factors)), None


def _spread(s: int) -> list[int]:
    """Where vectors, matrices, cubes, packed matrices and turned cubes are in flat moments (S, 20)."""
    square = [4 + PAIRS.index((min(c, d), max(c, d))) for c in range(3) for d in range(3)]
    triples = {one: k for k, triple in enumerate(TRIPLES) for one in permutations(triple)}
    cube = [[10 + triples[c, d, e] for d, e in PAIRS] for c in range(3)]
    places = [COMPONENTS * a + k for a in range(s) for k in (1, 2, 3)]
    places += [COMPONENTS * a + k for a in range(s) for k in square]
    places += [COMPONENTS * a + k for a in range(s) for row in cube for k in row]
    places += [COMPONENTS * a + k for a in range(s) for k in range(4, 10)]
    return places + [COMPONENTS * a + k for row in cube for a in range(s) for k in row]


def _tables(s: int) -> dict[str, list[int]]:
    """Gathers of :class:`Invariants`, by name."""
    ordered = [(a, b) for b in range(s) for a in range(b + 1)]
    p, side = len(ordered), 3 * s
    chosen = [
        kind * side**2 + (a * 3 + c) * side + b * 3 + d
        for c in range(3)
        for d in range(3)
        for kind in range(KINDS)
        for a, b in ordered
    ]
    # the gradient of a pair's matrix is symmetric, so that (a, b) and (b, a) may share it
    unchosen = [
        (c * 3 + d) * KINDS * p + kind * p + ordered.index((min(a, b), max(a, b)))
        for kind in range(KINDS)
        for a in range(s)
        for c in range(3)
        for b in range(s)
        for d in range(3)
    ]
    order = _order(s, ordered)
    reverse = [len(order)] * (s + (s + 1) * KINDS * p + s**3)
    for k, place in enumerate(order):
        reverse[place] = k
    return {
        "spread": _spread(s),
        "chosen": chosen,
        "unchosen": unchosen,
        "order": order,
        "reverse": reverse,
        "twice": [2 if a == b else 1 for _ in range(KINDS) for a, b in ordered],
        "gather": _gather(s),
    }


def _order(s: int, ordered: list[tuple[int, int]]) -> list[int]:
    """Where each invariant is among Ψ0 (S), the contracted pairs (S + 1, 3P) and Ψ3Ψ2Ψ1 (S, S²)."""
    p = len(ordered)
    contracted, triple = s, s + (s + 1) * KINDS * p
    quadratic = [contracted + s * KINDS * p + k for k in range(KINDS * p)]
    vectors, cubes = (
        [contracted + c * KINDS * p + kind * p + row for row in range(p) for c in range(s)] for kind in (0, 2)
    )
    mixed = [triple + b * s * s + row for row in range(s * s) for b in range(s)]
    # tr(ABC) is the same for every order of A, B, C: keep a <= b <= c
    matrices = [contracted + c * KINDS * p + p + row for row, (_, b) in enumerate(ordered) for c in range(b, s)]
    return [*range(s), *quadratic, *vectors, *cubes, *mixed, *matrices]


def _gather(s: int) -> list[int]:
    """Where the terms of the gradient of each moment are among the pieces of :meth:`Invariants.pull`, in rows of S·20."""
    pieces = [COMPONENTS * a for a in range(s)]
    spread = _spread(s)
    vector, matrix, cube, packed, turned = (
        spread[start * s : end * s] for start, end in ((0, 3), (3, 12), (12, 30), (30, 36), (36, 54))
    )
    pieces += vector
    pieces += [matrix[row * 3 + d] for d in range(3) for row in range(3 * s)]
    pieces += [cube[row * 6 + e] for e in range(6) for row in range(3 * s)]
    pieces += [*matrix, *vector, *packed, *turned]
    sources: list[list[int]] = [[] for _ in range(s * COMPONENTS)]
    for k, place in enumerate(pieces):
        sources[place].append(k)
    depth = max(len(one) for one in sources)
    return [one[row] if row < len(one) else len(pieces) for row in range(depth) for one in sources]
