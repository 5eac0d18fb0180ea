"""The relative strength s of the bias: the controller that makes |F_b − F| / |F| ≈ τ.

Zaverkin et al. 2024 (npj Comput. Mater. 10, 83), Methods: s = √(Σ_window |F|²) / √(Σ_window |w ∂u/∂R|²).

Shapes: B walkers, W samples of the window. Units: eV, Å.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pipeline.batching import Batch
from pipeline.records import BiasState
from pipeline.settings.walkers import BiasSettings


def empty_bias_state() -> BiasState:
    """The state of a walker that has not been measured yet."""
    none = np.zeros(0)
    return BiasState(force_squared=none, gradient_squared=none, stress_squared=none, strain_squared=none)


class RelativeStrength:
    """The relative strength s of every walker of a batch: one window of samples each.

    A walker's first sample already sets its s: a burn-in at zero would leave early rounds unbiased, whose walkers stop after
    a few steps.
    """

    def __init__(self, states: list[BiasState], settings: BiasSettings) -> None:
        self._samples = max(1, settings.window_steps // settings.update_every)
        self._states = list(states)

    def replace(self, index: int, state: BiasState) -> None:
        """Another walker took slot ``index``."""
        self._states[index] = state

    def state(self, index: int) -> BiasState:
        """The window of slot ``index``."""
        return self._states[index]

    def record(self, plain: Tensor, gradient: Tensor, batch: Batch) -> None:
        """Add one sample per walker: Σ|F|² and Σ|w ∂u/∂R|² over its atoms."""
        force = batch.sum_atoms(plain.square().sum(dim=1, keepdim=True)).squeeze(1).numpy()
        slope = batch.sum_atoms(gradient.square().sum(dim=1, keepdim=True)).squeeze(1).numpy()
        for k, old in enumerate(self._states):
            self._states[k] = replace(
                old,
                force_squared=np.append(old.force_squared, force[k])[-self._samples :],
                gradient_squared=np.append(old.gradient_squared, slope[k])[-self._samples :],
            )

    def values(self) -> Tensor:
        """(B,) float64 relative strengths s; 0 for a walker without samples or with a flat uncertainty."""
        ratios = []
        for state in self._states:
            slope = float(state.gradient_squared.sum())
            ratio = float(np.sqrt(state.force_squared.sum() / slope)) if slope > 0 else 0.0
            ratios.append(ratio if np.isfinite(ratio) else 0.0)
        return torch.tensor(ratios, dtype=torch.float64)
