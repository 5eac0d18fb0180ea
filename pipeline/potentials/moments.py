"""Gaussian moments and their rotational invariants (Zaverkin et al. 2024, npj Comput. Mater. 10, 83, Methods).

Shapes: A atoms, M neighbours, S channels. A moment of rank L keeps its independent components only; the 20 components of
ranks 0 to 3 stand side by side as ``[1 | x y z | xx xy xz yy yz zz | xxx xxy xxz xyy xyz xzz yyy yyz yzz zzz]``.
"""

from itertools import combinations_with_replacement

import torch
from torch import Tensor, nn

PAIRS = list(combinations_with_replacement(range(3), 2))
TRIPLES = list(combinations_with_replacement(range(3), 3))
COMPONENTS = 1 + 3 + 6 + 10


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

    Ψ0; Ψ1·Ψ1; Ψ2:Ψ2; Ψ3⋮Ψ3; tr(Ψ2Ψ2Ψ2); Ψ1Ψ1Ψ2; Ψ3Ψ3Ψ2; Ψ3Ψ2Ψ1; symmetric index pairs once. Each is the contraction of a
    symmetric 3×3 matrix B, built from two moments, with Ψ2 or (for the quadratic ones) with the unit matrix: one batched
    product gives them all.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        s = channels
        self.channels = s
        self.pairs = s * (s + 1) // 2
        ordered = [(a, b) for b in range(s) for a in range(b + 1)]
        direct = [(a * 3 + c) * 3 * s + b * 3 + d for a, b in ordered for c, d in PAIRS]
        swapped = [(a * 3 + d) * 3 * s + b * 3 + c for a, b in ordered for c, d in PAIRS]
        self.register_buffer("direct", torch.tensor(direct), persistent=False)
        self.register_buffer("swapped", torch.tensor(swapped), persistent=False)
        # tr(ABC) is the same for every order of A, B, C: keep a <= b <= c
        ascending = [row * s + c for row, (_, b) in enumerate(ordered) for c in range(b, s)]
        self.register_buffer("ascending", torch.tensor(ascending), persistent=False)
        square = [4 + PAIRS.index((min(c, d), max(c, d))) for c in range(3) for d in range(3)]
        cube = [10 + TRIPLES.index(_sorted3(c, *pair)) for c in range(3) for pair in PAIRS]
        self.register_buffer("square", torch.tensor(square), persistent=False)
        self.register_buffer("cube", torch.tensor(cube), persistent=False)
        weight = torch.tensor([1.0 if a == b else 2.0 for a, b in PAIRS], dtype=torch.float64)
        unit = torch.tensor([1.0 if a == b else 0.0 for a, b in PAIRS], dtype=torch.float64)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("root_weight", weight.sqrt().repeat(3), persistent=False)
        self.register_buffer("unit", unit.view(1, 6, 1), persistent=False)

    ascending: Tensor
    direct: Tensor
    swapped: Tensor
    square: Tensor
    cube: Tensor
    weight: Tensor
    root_weight: Tensor
    unit: Tensor

    def forward(self, moments: Tensor) -> Tensor:
        """Invariants of the moments of every atom."""
        a, s = moments.shape[0], self.channels
        vector = moments[..., 1:4]
        matrix = moments.index_select(2, self.square).view(a, 3 * s, 3)
        cube = moments.index_select(2, self.cube)  # (A, S, 18) as c, (ab)
        weighted = (cube * self.root_weight.to(moments.dtype)).view(a, 3 * s, 6)
        column = vector.reshape(a, 3 * s, 1)
        products = torch.stack([f @ f.transpose(1, 2) for f in (column, matrix, weighted)], dim=1).view(a, 3, -1)
        symmetric = 0.5 * (products.index_select(2, self.direct) + products.index_select(2, self.swapped))
        # Ψ3·Ψ1: (A, S, S, 6) = Σ_c Ψ1_u,c Ψ3_s,c,(ab)
        mixed = vector @ cube.view(a, s, 3, 6).transpose(1, 2).reshape(a, 3, s * 6)
        left = torch.cat([symmetric.view(a, 3 * self.pairs, 6), mixed.view(a, s * s, 6)], dim=1)
        unit = self.unit.to(moments.dtype).expand(a, 6, 1)
        right = torch.cat([moments[..., 4:10].transpose(1, 2), unit], dim=2)
        cubic = left @ (right * self.weight.to(moments.dtype).view(1, 6, 1))
        return self._assemble(moments[..., 0], cubic)

    def _assemble(self, scalars: Tensor, cubic: Tensor) -> Tensor:
        # splits rather than slices: the gradient of a split is one concatenation, that of a slice a full block of zeros
        p, s, a = self.pairs, self.channels, len(cubic)
        triple, double = cubic.split([s, 1], dim=2)
        vectors, matrices, cubes, mixed = triple.split([p, p, p, s * s], dim=1)
        quadratic, _ = double.squeeze(2).split([3 * p, s * s], dim=1)
        parts = [scalars, quadratic, vectors.reshape(a, -1), cubes.reshape(a, -1), mixed.reshape(a, -1)]
        parts.append(matrices.reshape(a, -1).index_select(1, self.ascending))
        return torch.cat(parts, dim=1)


def _sorted3(a: int, b: int, c: int) -> tuple[int, int, int]:
    low, middle, high = sorted((a, b, c))
    return low, middle, high
