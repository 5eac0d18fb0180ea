"""The relative strengths s of the bias: the controller that makes |F_b − F| / |F| ≈ τ and |σ_b − σ| / |σ| ≈ τ_σ.

Zaverkin et al. 2024 (npj Comput. Mater. 10, 83), Methods: s_F = √(Σ_window |F|²) / √(Σ_window |w ∂u/∂R|²). The stress has a
window and a ratio of its own, s_σ = √(Σ_window |∂E/∂ε|²) / √(Σ_window |∂u/∂ε|²); the volume cancels in it.

Shapes: B walkers, A atoms, W samples of a window. Units: eV, Å.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.bias import BiasedForces
from pipeline.frames import FloatArray, IntArray
from pipeline.records import BiasState
from pipeline.settings.walkers import BiasSettings


def empty_bias_state() -> BiasState:
    """The state of a walker that has not been measured yet."""
    return BiasState(force_squared=np.zeros(0), gradient_squared=np.zeros(0))


@dataclass(frozen=True, slots=True)
class _Windows:
    """The last W pairs of samples of every walker; never written to, only replaced.

    Attributes:
        above, below: (B, W) float64 what stands above and below the fraction line, oldest first, zeros on the left.
        counts: (B,) int64 how many samples there are.
    """

    above: Tensor
    below: Tensor
    counts: Tensor

    @classmethod
    def of(cls, pairs: Sequence[tuple[FloatArray, FloatArray]], samples: int, device: torch.device) -> "_Windows":
        """From the samples of each walker, of which the newest ``samples`` are kept."""
        table = np.zeros((2, len(pairs), samples))
        counts = np.zeros(len(pairs), dtype=np.int64)
        for k, (above, below) in enumerate(pairs):
            counts[k] = count = min(samples, len(above))
            table[:, k, samples - count :] = above[len(above) - count :], below[len(below) - count :]
        both = torch.from_numpy(table).to(device)
        return cls(both[0], both[1], torch.from_numpy(counts).to(device))

    def exchanged(self, fresh: "_Windows", rows: Tensor) -> "_Windows":
        """The (B,) ``rows`` of [the walkers here; fresh ones]."""
        pairs = ((self.above, fresh.above), (self.below, fresh.below), (self.counts, fresh.counts))
        return _Windows(*(torch.cat(pair).index_select(0, rows) for pair in pairs))

    def with_sample(self, above: Tensor, below: Tensor) -> "_Windows":
        """With one more (B,) sample of each, the oldest dropped."""
        return _Windows(
            torch.cat([self.above[:, 1:], above.unsqueeze(1)], dim=1),
            torch.cat([self.below[:, 1:], below.unsqueeze(1)], dim=1),
            torch.clamp(self.counts + 1, max=self.above.shape[1]),
        )

    def ratios(self) -> Tensor:
        """(B,) √(Σ above / Σ below); 0 where it is not a finite number."""
        ratio = torch.sqrt(self.above.sum(dim=1) / self.below.sum(dim=1))
        return torch.where(torch.isfinite(ratio), ratio, torch.zeros_like(ratio))

    def rows(self) -> list[tuple[FloatArray, FloatArray]]:
        """The samples of each walker, on the host."""
        counts = self.counts.tolist()
        above, below = torch.stack([self.above, self.below]).cpu().numpy()
        first = [above.shape[1] - count for count in counts]
        return [(above[k, n:].copy(), below[k, n:].copy()) for k, n in enumerate(first)]

    def row(self, index: int) -> "_Windows":
        """One walker alone."""
        return _Windows(*(t[index : index + 1] for t in (self.above, self.below, self.counts)))


class RelativeStrength:
    """The relative strengths of every walker of a batch: two windows of samples each, on the device of the walkers.

    A walker's first sample already sets its s: a burn-in at zero would leave early rounds unbiased, whose walkers stop after
    a few steps. Tensors are replaced and never written to, so ``copy.copy`` keeps what it was.

    Args:
        states: of each walker; windows that are too long lose their oldest samples.
        settings: lengths of the windows.
        device: where the walkers are.
    """

    def __init__(self, states: Sequence[BiasState], settings: BiasSettings, device: torch.device | str = "cpu") -> None:
        self._settings, self._device = settings, torch.device(device)
        self._force, self._stress = self._windows(states)

    def exchange(self, rows: IntArray, states: Sequence[BiasState]) -> None:
        """Other walkers took some slots: now the (B,) ``rows`` of [the walkers here; those of ``states``] are there."""
        index = torch.from_numpy(rows).to(self._device)
        force, stress = self._windows(states)
        self._force, self._stress = self._force.exchanged(force, index), self._stress.exchanged(stress, index)

    def state(self, index: int) -> BiasState:
        """The windows of slot ``index``, on the host."""
        return _states(self._force.row(index), self._stress.row(index))[0]

    def states(self) -> list[BiasState]:
        """The windows of all slots, on the host: a few transfers for all of them."""
        return _states(self._force, self._stress)

    def record(self, result: BiasedForces) -> None:
        """Add one sample per walker, of the force and of the stress, where F and E stand apart from u in ``result``."""
        if result.plain is not None and result.gradient is not None:
            batch = result.batch
            force, slope = (
                batch.sum_atoms(vectors.detach().square().sum(dim=1, keepdim=True)).squeeze(1)
                for vectors in (result.plain, result.gradient)
            )
            self._force = self._force.with_sample(force, slope)
        if result.plain_virials is not None and result.strain_gradient is not None:
            virial, slope = (
                tensors.detach().to(torch.float64).square().sum(dim=(1, 2))
                for tensors in (result.plain_virials, result.strain_gradient)
            )
            self._stress = self._stress.with_sample(virial, slope)

    def force(self) -> Tensor:
        """(B,) float64 s_F, eV over the unit of u; 0 for a walker without samples, with a flat u or where not finite."""
        return self._force.ratios()

    def stress(self) -> Tensor:
        """(B,) float64 s_σ, eV over the unit of u; 0 as for :meth:`force`."""
        return self._stress.ratios()

    def _windows(self, states: Sequence[BiasState]) -> tuple[_Windows, _Windows]:
        settings = self._settings
        return (
            _Windows.of(
                [(state.force_squared, state.gradient_squared) for state in states],
                max(1, settings.window_steps // settings.update_every),
                self._device,
            ),
            _Windows.of(
                [(state.stress_squared, state.strain_squared) for state in states],
                max(1, settings.stress_window_steps // settings.update_every),
                self._device,
            ),
        )


def _states(force: _Windows, stress: _Windows) -> list[BiasState]:
    return [
        BiasState(force_squared=f, gradient_squared=g, stress_squared=s, strain_squared=e)
        for (f, g), (s, e) in zip(force.rows(), stress.rows(), strict=True)
    ]
