"""What the model will know once labels that it was not trained on are learned.

Shapes: n candidates on this rank, k pending structures, P features.
"""

import numpy as np
import torch

from pipeline.selection.rows import Features

CONDITIONED = ("maxdet", "maxdiag")
"""Methods that rank by variance: those that measure distances have pending structures among the known ones."""


def given(features: Features, pending: Features, sigma: float) -> Features:
    """Rows of the posterior in which pending structures are training data too.

    A model learns of a label only after its next training; until then its kernel would ask for the like of it again. The
    posterior covariance depends on where labels are, not on their values: with rows t of the present posterior, K = t tᵀ, it
    becomes K − K_Z (K_ZZ + σ²)⁻¹ K_Zᵀ = t (I + ZᵀZ/σ²)⁻¹ tᵀ (Rasmussen and Williams, Gaussian Processes, eq. 2.24).

    Args:
        features: (n, P) rows t of candidates.
        pending: (k, P) rows Z, the same on every rank.
        sigma: ridge σ of the posterior.
    """
    if not len(pending):
        return features
    z = torch.from_numpy(np.asarray(pending, dtype=np.float64))
    unit = torch.eye(z.shape[1], dtype=torch.float64)
    lower = torch.linalg.cholesky(unit + z.T @ z / sigma**2)
    inverse = torch.linalg.solve_triangular(lower, unit, upper=False)
    conditioned: Features = (torch.from_numpy(features) @ inverse.T.to(torch.from_numpy(features).dtype)).numpy()
    return conditioned
