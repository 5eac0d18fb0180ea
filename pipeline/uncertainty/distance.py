"""Uncertainty as the distance to the nearest training feature.

Zaverkin et al. 2024 (npj Comput. Mater. 10, 83), Methods. Shapes: N training features, R references kept,
K queries, P feature length.
"""

import torch
from torch import Tensor, nn

PAIRS = 2**24
"""Distances looked at in one piece: 64 MB in single precision."""


def farthest_points(features: Tensor, count: int) -> Tensor:
    """(min(count, N),) indices of a farthest-point subset of (N, P) features, starting at the first.

    Each next point is the one farthest from those taken: every feature left out is nearer to a taken one than the taken
    ones are to each other.
    """
    n = len(features)
    taken = torch.zeros(min(count, n), dtype=torch.int64, device=features.device)
    nearest = (features - features[0]).square().sum(dim=1)
    for k in range(1, len(taken)):
        taken[k] = torch.argmax(nearest)
        next_one = features.index_select(0, taken[k : k + 1])
        nearest = torch.minimum(nearest, (features - next_one).square().sum(dim=1))
    return taken


class Distance(nn.Module):
    """u = min_n |x − x_n| over the training features, x = φ (mean_train |φ|²)^(−½).

    Args:
        references: (R, P) scaled training features.
        scale: () the factor c.
    """

    references: Tensor
    scale: Tensor

    def __init__(self, references: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("references", references)
        self.register_buffer("scale", scale.to(torch.float64))

    @classmethod
    def fit(cls, features: Tensor, *, max_references: int) -> "Distance":
        """Keep at most ``max_references`` of the (N, P) training features, thinned by farthest points."""
        phi = features.detach()
        mean_square = float(phi.to(torch.float64).square().sum(dim=1).mean())
        scale = phi.new_tensor(mean_square**-0.5 if mean_square > 0 else 1.0, dtype=torch.float64)
        x = phi * scale.to(phi.dtype)
        if len(x) > max_references:
            x = x[farthest_points(x, max_references)]
        return cls(x.contiguous(), scale)

    def forward(self, features: Tensor) -> Tensor:
        """(K,) distances; the gradient is finite everywhere (zero at a training feature)."""
        x = features * self.scale.to(features.dtype)
        references = self.references.to(features.dtype)
        with torch.no_grad():
            pieces = torch.split(x, max(1, PAIRS // len(references)))
            nearest = torch.cat([torch.cdist(piece, references).argmin(dim=1) for piece in pieces])
        # the difference itself, not |a|² − 2ab + |b|²: that loses all digits next to a reference
        distance: Tensor = torch.linalg.vector_norm(x - references.index_select(0, nearest), dim=1)
        return distance
