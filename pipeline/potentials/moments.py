"""Gaussian moments and their rotational invariants (Zaverkin et al. 2024, npj Comput. Mater. 10, 83, Methods).

Shapes: A atoms, M neighbours, S channels. A moment of rank L keeps its independent components only; the 20 components of
ranks 0 to 3 stand side by side as ``[1 | x y z | xx xy xz yy yz zz | xxx xxy xxz xyy xyz xzz yyy yyz yzz zzz]``.
"""

from itertools import combinations_with_replacement

import torch
from torch import Tensor, nn

PAIRS = list(combinations_with_replacement(range(3), 2))
TRIPLES = list(combinations_with_replacement(range(3), 3))


def unit_moments(edges: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (A, M) in Å and the 20 components of r̂^{⊗L}, L = 0…3, as (A, M, 20)."""
    distance = torch.linalg.vector_norm(edges, dim=-1)
    x, y, z = (edges / distance.unsqueeze(-1)).unbind(-1)
    xx, xy, xz, yy, yz, zz = x * x, x * y, x * z, y * y, y * z, z * z
    components = [torch.ones_like(x), x, y, z, xx, xy, xz, yy, yz, zz]
    components += [xx * x, xx * y, xx * z, x * yy, xy * z, x * zz, yy * y, yy * z, y * zz, zz * z]
    return distance, torch.stack(components, dim=-1)


def feature_count(channels: int) -> int:
    """Number of invariants for S channels: 360 for 5, 910 for 7."""
    s, pairs = channels, channels * (channels + 1) // 2
    return s + 3 * pairs + 2 * pairs * s + pairs * (s + 2) // 3 + s**3


class Invariants(nn.Module):
    """Contracts moments (A, S, 20) to rotational invariants (A, :func:`feature_count`).

    Ψ0; Ψ1·Ψ1; Ψ2:Ψ2; Ψ3⋮Ψ3; tr(Ψ2Ψ2Ψ2); Ψ1Ψ1Ψ2; Ψ3Ψ3Ψ2; Ψ3Ψ2Ψ1; symmetric index pairs once. All but the first and the last
    contract a 3×3 matrix, the product of two moments, with Ψ2 or (for the quadratic ones) with the unit matrix: one batched
    product gives them all.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        s = channels
        self.channels = s
        self.pairs = s * (s + 1) // 2
        ordered = [(a, b) for b in range(s) for a in range(b + 1)]
        chosen = [(a * 3 + c) * 3 * s + b * 3 + d for a, b in ordered for c in range(3) for d in range(3)]
        # tr(ABC) is the same for every order of A, B, C: keep a <= b <= c
        ascending = [row * s + c for row, (_, b) in enumerate(ordered) for c in range(b, s)]
        square = [4 + PAIRS.index((min(c, d), max(c, d))) for c in range(3) for d in range(3)]
        cube = [10 + TRIPLES.index(_sorted3(c, *pair)) for c in range(3) for pair in PAIRS]
        for name, index in (("chosen", chosen), ("ascending", ascending), ("square", square), ("cube", cube)):
            self.register_buffer(name, torch.tensor(index), persistent=False)
        weight = torch.tensor([1.0 if a == b else 2.0 for a, b in PAIRS], dtype=torch.float64)
        self.register_buffer("weight", weight, persistent=False)

    chosen: Tensor
    ascending: Tensor
    square: Tensor
    cube: Tensor
    weight: Tensor

    def forward(self, moments: Tensor) -> Tensor:
        """Invariants of the moments of every atom."""
        a, s = moments.shape[0], self.channels
        weight = self.weight.to(moments.dtype)
        scalars, vector, packed, _ = torch.split(moments, [1, 3, 6, 10], dim=2)
        matrix = moments.index_select(2, self.square)
        cube = moments.index_select(2, self.cube)  # (A, S, 18) as c, (ab)
        weighted = (cube * weight.sqrt().repeat(3)).view(a, 3 * s, 6)
        factors = (vector.reshape(a, 3 * s, 1), matrix.view(a, 3 * s, 3), weighted)
        products = torch.stack([torch.bmm(f, f.transpose(1, 2)) for f in factors], dim=1)
        pairs = products.view(a, 3, -1).index_select(2, self.chosen).view(a, 3 * self.pairs, 9)
        unit = torch.eye(3, dtype=moments.dtype, device=moments.device).view(1, 9, 1).expand(a, 9, 1)
        products = torch.bmm(pairs, torch.cat([matrix.transpose(1, 2), unit], dim=2))
        cubic, quadratic = torch.split(products, [s, 1], dim=2)
        # Ψ3·Ψ1: (A, S, S, 6) = Σ_c Ψ1_u,c Ψ3_s,c,(ab)
        mixed = torch.bmm(vector, cube.view(a, s, 3, 6).transpose(1, 2).reshape(a, 3, s * 6)).view(a, s * s, 6)
        mixed = torch.bmm(mixed, (packed * weight).transpose(1, 2))
        vectors, matrices, cubes = torch.split(cubic, self.pairs, dim=1)
        parts = [scalars, quadratic, vectors, cubes, mixed]
        flat = [part.reshape(a, -1) for part in parts]
        return torch.cat([*flat, matrices.reshape(a, -1).index_select(1, self.ascending)], dim=1)


def _sorted3(a: int, b: int, c: int) -> tuple[int, int, int]:
    low, middle, high = sorted((a, b, c))
    return low, middle, high
