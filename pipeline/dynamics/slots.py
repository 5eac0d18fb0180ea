"""One slot of a walker batch: who walks there, and who comes next.

Units: Å, eV/Å, K; velocities in Å per internal time unit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from ase.data import atomic_masses
from torch import Tensor

from pipeline.batching import make_batch
from pipeline.dynamics.langevin import thermal_velocities
from pipeline.dynamics.schedules import first_tau
from pipeline.dynamics.stops import BOND_BAND, Bonds, start_bonds
from pipeline.errors import TaskError
from pipeline.frames import FloatArray, Frame
from pipeline.records import Hills, WalkerState
from pipeline.settings.walkers import StopSettings, WalkerSettings
from pipeline.strength import empty_bias_state


def masses_of(frame: Frame) -> Tensor:
    """(N,) float64 standard atomic masses, amu."""
    return torch.from_numpy(atomic_masses[frame.numbers].astype(np.float64))


def moved(frame: Frame, positions: FloatArray, cell: FloatArray) -> Frame:
    """The same atoms elsewhere, in another cell; the arrays are copied."""
    return replace(frame, positions=np.array(positions), cell=np.array(cell))


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in the batch and the walker in it. What moves is in the tensors of the batch.

    Attributes:
        state: the walker as it entered the slot (its atoms, temperature, seed, start).
        bonds: at its start, or None where they are not watched.
    """

    state: WalkerState
    bonds: Bonds | None


def occupy(
    states: Sequence[WalkerState], stop: StopSettings, *, cutoff_A: float, device: torch.device | str = "cpu"
) -> list[Slot]:
    """A slot for each of these walkers."""
    if not stop.bond_graph:
        return [Slot(state, None) for state in states]
    starts = [replace(state.frame, positions=state.start, cell=state.start_cell) for state in states]
    graphs = start_bonds(make_batch(starts, (1 + BOND_BAND) * cutoff_A, device), stop.bond_fraction, cutoff_A)
    return [Slot(state, graph) for state, graph in zip(states, graphs, strict=True)]


def no_hills(variables: int) -> Hills:
    """Metadynamics before its first hill."""
    return Hills(centers=np.zeros((0, variables)), heights=np.zeros(0))


class Nursery:
    """Makes new walkers: start structure, velocities and seed follow from (task seed, slot, how many came before).

    Args:
        starts: labelled structures to start from.
        settings: walker settings.
        temperatures_K, pressures_MPa: of each slot.
        seed: of the walk task.
        prefix: names start with it.
        born: walkers each slot has had before.
        shares: of the systems in new walkers, relative to each other; systems without a start structure are left out, as are
            those that are missing; empty: every start structure is as likely as any other.

    Attributes:
        born: walkers each slot has had so far.
    """

    def __init__(
        self,
        *,
        starts: Sequence[Frame],
        settings: WalkerSettings,
        temperatures_K: Sequence[float],
        pressures_MPa: Sequence[float],
        seed: int,
        prefix: str,
        born: Sequence[int] | None = None,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        self._starts, self._settings, self._temperatures = starts, settings, temperatures_K
        self._pressures = pressures_MPa
        self._seed, self._prefix = seed, prefix
        self.born = [0] * len(temperatures_K) if born is None else list(born)
        self._groups = _groups(starts, shares) if shares else None

    def walker(self, slot: int, clock: int) -> WalkerState:
        """A new walker for ``slot``, at rest in its window, with Maxwell-Boltzmann velocities."""
        born = self.born[slot]
        self.born[slot] += 1
        stream = np.random.SeedSequence([self._seed, slot, born])
        seed = int(stream.generate_state(1, np.uint64)[0])
        frame = self._start(np.random.default_rng(stream))
        temperature = self._temperatures[slot]
        return WalkerState(
            walker=f"{self._prefix}-s{slot:02d}-{born:03d}",
            frame=frame,
            velocities=thermal_velocities(seed, masses_of(frame), temperature).numpy(),
            temperature_K=temperature,
            pressure_MPa=self._pressures[slot],
            tau=first_tau(self._settings.bias),
            seed=seed,
            age=0,
            clock=clock,
            bias=empty_bias_state(),
            forces=np.zeros((len(frame), 3)),
            virial=np.zeros((3, 3)),
            strain_rate=np.zeros((3, 3)),
            model="",
            anchor=frame.positions,
            anchor_cell=frame.cell,
            start=frame.positions,
            start_cell=frame.cell,
            hills=no_hills(len(self._settings.metadynamics.variables) if self._settings.metadynamics else 0),
        )

    def _start(self, rng: np.random.Generator) -> Frame:
        """A start structure: any, or any of a system that is drawn before by its share."""
        if self._groups is None:
            return self._starts[int(rng.integers(len(self._starts)))]
        groups, chances = self._groups
        group = groups[int(rng.choice(len(groups), p=chances))]
        return group[int(rng.integers(len(group)))]


def _groups(starts: Sequence[Frame], shares: Mapping[str, float]) -> tuple[list[list[Frame]], FloatArray]:
    """Start structures of each system that has some and a share, by name, and its chance.

    Raises:
        TaskError: there is none.
    """
    names = sorted({frame.system for frame in starts} & {system for system, share in shares.items() if share > 0})
    if not names:
        raise TaskError(
            f"no start structure is of a system with a share of the walkers: shares are {dict(shares)}, start structures "
            f"are of {sorted({frame.system for frame in starts})}.",
            "Give a share to a system that has labels.",
        )
    chances = np.array([shares[name] for name in names])
    return [[frame for frame in starts if frame.system == name] for name in names], chances / chances.sum()
