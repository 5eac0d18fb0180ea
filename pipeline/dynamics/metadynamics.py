"""Well-tempered metadynamics (Barducci, Bussi and Parrinello 2008, Phys. Rev. Lett. 100, 020603), every walker for itself.

A walker leaves Gaussian hills where it has been, V(s) = Σ_h w_h exp(−Σ_d (s_d − c_hd)² / 2σ_d²), each lower where V is already
high: w_h = w exp(−V(s) / (k_B ΔT)) with ΔT = (γ − 1) T. In the long run V(s) → −(1 − 1/γ) F(s) + const, F the free energy.

Shapes: B walkers, D variables, C places for hills of each walker (a power of two), of which the first H hold one.
Units: eV, K; variables in degrees, Å or Å³.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.batching import Batch
from pipeline.dynamics.collective import EVERYONE, Coordinates
from pipeline.frames import IntArray
from pipeline.records import Hills
from pipeline.settings.variables import Variable
from pipeline.settings.walkers import MetadynamicsSettings
from pipeline.units import BOLTZMANN_EV_PER_K

FIRST_PLACES = 64
"""Places for hills that every walker has from the start."""


class Hillside:
    """The hills of every walker of a batch, on the device of the walkers.

    Tensors are replaced and never written to, so ``copy.copy`` keeps what it was.

    Args:
        settings: widths, height and bias factor.
        variables: of each system, in the order of the widths.
        systems: the system of each walker.
        temperatures_K: of each walker.
        states: the hills each walker has left so far.
        device: where the walkers are.
    """

    def __init__(
        self,
        settings: MetadynamicsSettings,
        *,
        variables: Mapping[str, Sequence[Variable]],
        systems: Sequence[str],
        temperatures_K: Sequence[float],
        states: Sequence[Hills],
        device: torch.device | str = "cpu",
    ) -> None:
        self._settings, self._variables, self._device = settings, variables, torch.device(device)
        self._coordinates = Coordinates([variables[system] for system in systems], device)
        self._widths = self._on_device(settings.widths)
        self._periods = self._on_device(self._coordinates.periods)
        self._per_period = self._on_device([1.0 / p if p else 0.0 for p in self._coordinates.periods])
        self._extra_kT = self._on_device([self._tempering(temperature) for temperature in temperatures_K])
        self._counts = np.array([len(state.heights) for state in states], dtype=np.int64)
        self._centers, self._heights = self._tables(states, _places(int(self._counts.max())))

    def energy(self, batch: Batch, strain: Tensor | None = None, walkers: slice = EVERYONE) -> Tensor:
        """(B,) float64 V of each walker's own hills, eV; it can be differentiated once, by positions and strain.

        Args:
            batch: the walkers where they are, unwrapped.
            strain: (B, 3, 3) strain of positions and cell; its symmetric part acts.
            walkers: which of them ``batch`` holds, where it is a part of them.
        """
        values = self._coordinates.values(batch, strain, walkers)
        here = values.detach()
        energy, slope = self._landscape(here, walkers)
        # the slope is known in closed form: nothing of the size of all hills is kept for the backward pass
        return energy + (slope * (values - here)).sum(dim=1)

    def deposit(self, batch: Batch) -> None:
        """Every walker leaves a hill where it is; the hill acts from the next :meth:`energy` on."""
        with torch.no_grad():
            values = self._coordinates.values(batch)
            energy, _ = self._landscape(values, EVERYONE)
            height = self._settings.height_eV * torch.exp(-energy / self._extra_kT)
            counts = torch.from_numpy(self._counts).to(self._device)
            self._counts = self._counts + 1
            self._make_room(int(self._counts.max()))
            place = torch.arange(self._heights.shape[1], device=self._device) == counts.unsqueeze(1)
            self._heights = torch.where(place, height.unsqueeze(1), self._heights)
            self._centers = torch.where(place.unsqueeze(2), values.unsqueeze(1), self._centers)

    def exchange(
        self, rows: IntArray, *, systems: Sequence[str], temperatures_K: Sequence[float], states: Sequence[Hills]
    ) -> None:
        """Other walkers took some slots, with their own hills.

        Args:
            rows: (B,) which of [the walkers here; fresh ones] are there now.
            systems, temperatures_K, states: of the fresh ones.
        """
        index = torch.from_numpy(rows).to(self._device)
        self._coordinates.exchange(index, [self._variables[system] for system in systems])
        counts = np.array([len(state.heights) for state in states], dtype=np.int64)
        self._make_room(int(counts.max()))
        centers, heights = self._tables(states, self._heights.shape[1])
        extra_kT = self._on_device([self._tempering(temperature) for temperature in temperatures_K])
        self._counts = np.concatenate([self._counts, counts])[rows]
        self._centers = torch.cat([self._centers, centers]).index_select(0, index)
        self._heights = torch.cat([self._heights, heights]).index_select(0, index)
        self._extra_kT = torch.cat([self._extra_kT, extra_kT]).index_select(0, index)

    def state(self, index: int) -> Hills:
        """The hills of slot ``index``, on the host."""
        count = int(self._counts[index])
        return Hills(
            centers=self._centers[index, :count].cpu().numpy().copy(),
            heights=self._heights[index, :count].cpu().numpy().copy(),
        )

    def states(self) -> list[Hills]:
        """The hills of all slots, on the host: two transfers for all of them."""
        centers, heights = self._centers.cpu().numpy(), self._heights.cpu().numpy()
        return [
            Hills(centers=centers[k, :count].copy(), heights=heights[k, :count].copy())
            for k, count in enumerate(self._counts)
        ]

    def _landscape(self, values: Tensor, walkers: slice) -> tuple[Tensor, Tensor]:
        """(B,) V and (B, D) ∂V/∂s at (B, D) values."""
        difference = values.unsqueeze(1) - self._centers[walkers]
        difference = difference - self._periods * torch.round(difference * self._per_period)
        scaled = difference / self._widths
        height = (self._heights[walkers] * torch.exp(-0.5 * scaled.square().sum(dim=2))).unsqueeze(2)
        total = _tree_sum(torch.cat([height, -height * scaled / self._widths], dim=2))
        return total[:, 0], total[:, 1:]

    def _make_room(self, most: int) -> None:
        """Places for ``most`` hills of a walker."""
        more = _places(most) - self._heights.shape[1]
        if more > 0:
            self._heights = torch.nn.functional.pad(self._heights, (0, more))
            self._centers = torch.nn.functional.pad(self._centers, (0, 0, 0, more))

    def _tables(self, states: Sequence[Hills], places: int) -> tuple[Tensor, Tensor]:
        """(B, C, D) centers and (B, C) heights; a place without a hill has height 0."""
        centers = np.zeros((len(states), places, len(self._settings.widths)))
        heights = np.zeros((len(states), places))
        for k, state in enumerate(states):
            centers[k, : len(state.heights)] = state.centers
            heights[k, : len(state.heights)] = state.heights
        return torch.from_numpy(centers).to(self._device), torch.from_numpy(heights).to(self._device)

    def _tempering(self, temperature_K: float) -> float:
        """k_B ΔT of a walker, eV."""
        return BOLTZMANN_EV_PER_K * (self._settings.bias_factor - 1.0) * temperature_K

    def _on_device(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self._device)


def _places(most: int) -> int:
    """The least power of two that ``most`` hills fit into."""
    return max(FIRST_PLACES, 1 << max(0, most - 1).bit_length())


def _tree_sum(terms: Tensor) -> Tensor:
    """Sum of (B, C, …) over C, a power of two, half onto half: zeros at the end do not change a bit of it.

    So V does not depend on how many places there are, which other walkers of the batch decide.
    """
    while terms.shape[1] > 1:
        first, second = terms.chunk(2, dim=1)
        terms = first + second
    return terms[:, 0]
