"""Posterior uncertainty of a Bayesian linear model on gradient features.

Zaverkin et al. 2024 (npj Comput. Mater. 10, 83), Methods. Shapes: N training features, K queries, P feature length.
"""

import torch
from torch import Tensor, nn


class Posterior(nn.Module):
    """u² = σ² xᵀ (XᵀX + σ²I)⁻¹ x with x = cφ and c = (mean_train |φ|²)^(−½): dimensionless, 1 for an unknown direction.

    Kept as one matrix T with t = φT and |t|² = u², so that a query costs P² whatever the size of the training set.

    Args:
        transform: (P, P) float64 matrix T = cσL⁻ᵀ, L the Cholesky factor of XᵀX + σ²I.
    """

    transform: Tensor
    single: Tensor

    def __init__(self, transform: Tensor) -> None:
        super().__init__()
        self.register_buffer("transform", transform.to(torch.float64))
        # walkers ask in float32 at every step: converting P² numbers each time costs more than the product itself
        self.register_buffer("single", self.transform.to(torch.float32), persistent=False)
        self.register_load_state_dict_post_hook(_renew_single)  # type: ignore[no-untyped-call] # torch leaves it untyped

    @classmethod
    def fit(cls, features: Tensor, *, sigma: float) -> "Posterior":
        """The posterior given training features (N, P); factorised in float64.

        Args:
            features: (N, P), N >= 1, any scale.
            sigma: ridge σ, dimensionless.
        """
        phi = features.detach().to(torch.float64)
        mean_square = float(phi.square().sum(dim=1).mean())
        scale = mean_square**-0.5 if mean_square > 0 else 1.0
        x = phi * scale
        unit = torch.eye(phi.shape[1], dtype=torch.float64, device=phi.device)
        lower = torch.linalg.cholesky(x.T @ x + sigma**2 * unit)
        inverse = torch.linalg.solve_triangular(lower, unit, upper=False)
        return cls((scale * sigma * inverse.T).contiguous())

    def transformed(self, features: Tensor) -> Tensor:
        """(K, P) rows t with |t|² = u²: their Gram matrix is the posterior covariance."""
        transform = self.single if features.dtype == torch.float32 else self.transform
        return features @ transform.to(features.dtype)

    def forward(self, features: Tensor) -> Tensor:
        """(K,) uncertainties u; the gradient is finite everywhere (zero where u is)."""
        u: Tensor = torch.linalg.vector_norm(self.transformed(features), dim=1)
        return u


def _renew_single(module: nn.Module, incompatible: object) -> None:
    """The float32 copy follows a transform that was loaded."""
    assert isinstance(module, Posterior)
    module.single = module.transform.to(torch.float32)
