"""Sketched gradient features: a short vector per atom whose inner products estimate those of the full gradient.

Zaverkin et al. 2024 (npj Comput. Mater. 10, 83), Methods. Shapes: A atoms, p length of a feature, l a linear layer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Sketch(nn.Module):
    """φ_i = Σ_l (z_l,i P_l) ∘ (δ_l,i Q_l) with fixed Gaussian projections P, Q.

    Scaled so that E[φ_i·φ_j] = Σ_l (z_l,i·z_l,j)(δ_l,i·δ_l,j), the inner product of the gradients ∂E_i/∂w over all
    linear layers: z is the layer's weighted input (with its bias entry) and δ = ∂E_i/∂out. The projections follow from
    ``seed`` alone and are not stored in files.

    Args:
        shapes: (n_in, n_out) of every layer, n_in counting the bias entry.
        dimension: p.
        seed: of the projections.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], dimension: int, seed: int) -> None:
        super().__init__()
        self.shapes, self.dimension, self.seed = tuple(shapes), dimension, seed
        generator = torch.Generator().manual_seed(seed % 2**63)
        scale = dimension**-0.25
        for k, (n_in, n_out) in enumerate(self.shapes):
            left = torch.randn(n_in, dimension, generator=generator, dtype=torch.float64) * scale
            right = torch.randn(n_out, dimension, generator=generator, dtype=torch.float64) * scale
            self.register_buffer(f"left_{k}", left.to(torch.get_default_dtype()), persistent=False)
            self.register_buffer(f"right_{k}", right.to(torch.get_default_dtype()), persistent=False)

    def forward(self, zs: Sequence[Tensor], deltas: Sequence[Tensor]) -> Tensor:
        """(A, p) features from the layers' inputs z_l (A, n_in) and output gradients δ_l (A, n_out)."""
        terms = [
            (z @ self.get_buffer(f"left_{k}").to(z.dtype)) * (delta @ self.get_buffer(f"right_{k}").to(delta.dtype))
            for k, (z, delta) in enumerate(zip(zs, deltas, strict=True))
        ]
        return torch.stack(terms).sum(dim=0)
