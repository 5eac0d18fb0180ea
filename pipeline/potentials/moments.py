"""Gaussian moments: powers of directions (Zaverkin et al. 2024, npj Comput. Mater. 10, 83, Methods).

Shapes: A atoms, M neighbours, S channels. A moment of rank L keeps its independent components only; the 20 components of
ranks 0 to 3 stand side by side as ``[1 | x y z | xx xy xz yy yz zz | xxx xxy xxz xyy xyz xzz yyy yyz yzz zzz]``.
"""

from itertools import combinations_with_replacement

import torch
from torch import Tensor

PAIRS = list(combinations_with_replacement(range(3), 2))
TRIPLES = list(combinations_with_replacement(range(3), 3))
COMPONENTS = 1 + 3 + len(PAIRS) + len(TRIPLES)


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
