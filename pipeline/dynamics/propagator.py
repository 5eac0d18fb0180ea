"""One MD step of all walkers of a batch, on the device of the model, without a word from the host.

Shapes: B walkers, A atoms. Units: Å, eV/Å, eV, eV/atom; time in internal units.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from ase.data import atomic_masses
from torch import Tensor

from pipeline.batching import Batch
from pipeline.dynamics.barostat import Barostat
from pipeline.dynamics.capacity import Capacity
from pipeline.dynamics.evaluator import Evaluated, Evaluator
from pipeline.dynamics.langevin import Langevin
from pipeline.dynamics.metadynamics import Hillside
from pipeline.dynamics.noise import Noise
from pipeline.dynamics.phase import Exchange, Phase
from pipeline.dynamics.schedules import tau_at
from pipeline.dynamics.slots import moved
from pipeline.dynamics.stops import any_atom
from pipeline.moving import MovingBatch
from pipeline.potentials.model import Model
from pipeline.records import WalkerState
from pipeline.settings.variables import Variable
from pipeline.settings.walkers import ConstantTau, WalkerSettings
from pipeline.strength import RelativeStrength
from pipeline.units import FEMTOSECOND, PICOSECOND

SKIN_A = 1.0
"""Extra radius of the neighbour rows, Å."""
LEAP_A = 3.0
"""An atom that moves further than this in one step has left physics, Å."""
LEAP_STRAIN = 0.1
"""So has a cell that one step deforms by more than this."""

_MASSES = torch.from_numpy(atomic_masses.astype(np.float64))

Variables = Mapping[str, Sequence[Variable]]
"""Of each system, those that metadynamics puts hills along."""


@dataclass(frozen=True, slots=True)
class Mark:
    """All that a step changes: where an interval can be begun again."""

    phase: Phase
    clock: int
    strength: RelativeStrength


class Propagator:
    """Everything that makes the steps of a batch of walkers.

    Args:
        model: gives forces and uncertainty, on its device.
        settings: walkers section.
        states: of the walkers; they say where their rows were built, so that a continued walker sums in the same order to the
            last bit.
        variables: of metadynamics.
        capacity: in how many parts batches are evaluated.

    Attributes:
        phase: where the walkers are.
        clock: steps the batch has made.
        moving: their neighbour rows.
        strength: the controller of their bias.
        hills: of metadynamics, or None.
        sizes: (B,) int64 atoms of each, on the host.
    """

    def __init__(
        self,
        model: Model,
        settings: WalkerSettings,
        states: Sequence[WalkerState],
        *,
        clock: int,
        variables: Variables,
        capacity: Capacity,
    ) -> None:
        self._settings, device = settings, model.device
        self._evaluator = Evaluator(model, settings.bias, capacity, virial=settings.barostat is not None)
        self.clock, self.phase = clock, Phase.of(states, device)
        self.moving = MovingBatch(
            [state.frame for state in states],
            cutoff_A=model.cutoff_A,
            skin_A=SKIN_A,
            device=device,
            anchors=[moved(state.frame, state.anchor, state.anchor_cell) for state in states],
        )
        self.strength = RelativeStrength([state.bias for state in states], settings.bias, device)
        self.hills = _hillside(settings, states, variables, device)
        self.sizes = np.array([len(state.frame) for state in states], dtype=np.int64)
        self._conditions = np.array([(s.temperature_K, s.pressure_MPa, s.tau) for s in states])
        self._seeds = np.array([state.seed for state in states], dtype=np.uint64)
        self._lay_out()

    def exchange(self, changes: Mapping[int, WalkerState], exchange: Exchange) -> None:
        """Put other walkers into some slots, in the order of ``exchange``."""
        fresh = list(changes.values())
        self.phase = self.phase.exchanged(Phase.of(fresh, self.phase.positions.device), exchange)
        self.moving.replace(
            {k: (state.frame, moved(state.frame, state.anchor, state.anchor_cell)) for k, state in changes.items()}
        )
        self.strength.exchange(exchange.rows, [state.bias for state in fresh])
        if self.hills is not None:
            self.hills.exchange(
                exchange.rows,
                systems=[state.frame.system for state in fresh],
                temperatures_K=[state.temperature_K for state in fresh],
                states=[state.hills for state in fresh],
            )
        for k, state in changes.items():
            self.sizes[k], self._seeds[k] = len(state.frame), state.seed
            self._conditions[k] = state.temperature_K, state.pressure_MPa, state.tau
        self._lay_out()

    def mark(self) -> Mark:
        """Where the walkers are now."""
        return Mark(self.phase, self.clock, copy.copy(self.strength))

    def return_to(self, mark: Mark) -> None:
        """Back to an earlier place. Hills and neighbour rows must not have changed since."""
        self.phase, self.clock, self.strength = mark.phase, mark.clock, copy.copy(mark.strength)
        self._move(mark.phase)

    def step(self, *, uncertainty: bool = False, follow: bool = False) -> Evaluated:
        """One step of all walkers, without a transfer to the host unless rows are followed.

        A walker one of whose atoms leaps, or becomes no number, is put back, and stands still until it is looked at.

        Args:
            uncertainty: also what the model does not know here.
            follow: build the rows anew of every walker that needs it; else that is left to who calls.
        """
        phase, settings = self._drifted(), self._settings
        self.clock += 1
        if not isinstance(settings.bias.schedule, ConstantTau):
            phase = replace(phase, tau=tau_at(settings.bias, tau=phase.tau, ages=phase.ages, progress=None))
        batch = self._move(phase)
        if follow:
            batch = self.moving.follow(phase.positions, self._cells(phase))
        evaluated = self._kick(batch, phase, uncertainty)
        forces, virials = evaluated.result.forces, evaluated.result.virials
        if self._barostat is None:
            velocities, rates, virials = self._langevin.second_half(phase.velocities, forces), None, None
        else:
            assert virials is not None
            velocities, rates = self._barostat.second_half(
                phase.velocities, phase.cells, phase.strain_rates, forces, virials
            )
        self.phase = replace(
            phase,
            forces=forces,
            velocities=_still(velocities, phase.lost.index_select(0, batch.system)),
            virials=phase.virials if virials is None else virials,
            strain_rates=phase.strain_rates if rates is None else _still(rates, phase.lost),
        )
        return evaluated

    def samples(self) -> Evaluated:
        """What the model says here, with E and u apart where a bias may act: a first sample for the controller."""
        return self._evaluator.evaluate(self.moving.batch, self.clock, hills=self.hills, split=self._acts)

    @property
    def barostat(self) -> Barostat | None:
        """What moves the cells, or None where they stay."""
        return self._barostat

    def _lay_out(self) -> None:
        """All that follows from who walks where."""
        settings, batch = self._settings, self.moving.batch
        temperatures, pressures, _ = torch.from_numpy(self._conditions.T.copy()).to(batch.device)
        timestep = settings.timestep_fs * FEMTOSECOND
        self._langevin = Langevin.make(
            timestep=timestep,
            friction=settings.friction_per_ps / PICOSECOND,
            masses=_MASSES.to(batch.device).index_select(0, batch.numbers),
            temperatures_K=temperatures.index_select(0, batch.system),
        )
        self._barostat = None
        if settings.barostat is not None:
            self._barostat = Barostat.make(
                settings.barostat,
                timestep=timestep,
                temperatures_K=temperatures,
                pressures_MPa=pressures,
                n_atoms=batch.n_atoms,
                langevin=self._langevin,
                system=batch.system,
            )
        # without a schedule a batch whose walkers are all unbiased needs no uncertainty
        stressed = self._barostat is not None and settings.bias.tau_stress > 0
        scheduled = not isinstance(settings.bias.schedule, ConstantTau)
        self._acts = settings.bias.may_act and (scheduled or stressed or bool((self._conditions[:, 2] > 0).any()))
        cell = self._barostat is not None
        self._noise = Noise(self._seeds, self.sizes, self.phase.ages, cell=cell, device=batch.device)
        self._noise_from = self.clock
        self._evaluator.lay_out(batch, self.sizes)

    def _cells(self, phase: Phase) -> Tensor | None:
        """The cells, where they move."""
        return None if self._barostat is None else phase.cells

    def _move(self, phase: Phase) -> Batch:
        return self.moving.move(phase.positions, self._cells(phase))

    def _drifted(self) -> Phase:
        """All of a step up to the next forces: who leaps stays."""
        phase, batch = self.phase, self.moving.batch
        xi, cell_xi = self._noise.at(self.clock - self._noise_from)
        cells, rates = phase.cells, phase.strain_rates
        if self._barostat is None:
            positions, velocities = self._langevin.first_half(phase.positions, phase.velocities, phase.forces, xi)
        else:
            assert cell_xi is not None
            positions, velocities, cells, rates = self._barostat.first_half(
                phase.positions, phase.velocities, cells, rates, phase.forces, phase.virials, xi, cell_xi
            )
        # written so that a number that is none counts as a leap
        leaps = ~((positions - phase.positions).abs().amax(dim=1) < LEAP_A)
        lost = phase.lost | any_atom(batch, leaps)
        if self._barostat is not None:
            lost = lost | ~(rates.abs().amax(dim=(1, 2)) * self._langevin.timestep < LEAP_STRAIN)
            cells = torch.where(lost.view(-1, 1, 1), phase.cells, cells)
            rates = _still(rates, lost)
        stays = lost.index_select(0, batch.system)
        return replace(
            phase,
            positions=torch.where(stays.unsqueeze(1), phase.positions, positions),
            velocities=_still(velocities, stays),
            cells=cells,
            strain_rates=rates,
            ages=phase.ages + 1,
            lost=lost,
        )

    def _kick(self, batch: Batch, phase: Phase, uncertainty: bool) -> Evaluated:
        """Forces that kick at this step.

        With ``bias.every`` = n the bias acts at every n-th step only, as an impulse of n times its force: the reversible
        multiple time step of Tuckerman, Berne and Martyna (1992, J. Chem. Phys. 97, 1990).
        """
        bias = self._settings.bias
        sampled = self._acts and self.clock % bias.update_every == 0
        strength = stress = None
        if self._acts and self.clock % bias.every == 0:
            strength = bias.every * phase.tau * self.strength.force()
            if self._barostat is not None and bias.tau_stress > 0:
                stress = (bias.every * bias.tau_stress) * self.strength.stress()
        # stop checks look at forces without impulses: apart where one acts
        apart = uncertainty and bias.every > 1 and strength is not None
        evaluated = self._evaluator.evaluate(
            batch,
            self.clock,
            strength=strength,
            stress=stress,
            hills=self.hills,
            split=sampled or apart,
            uncertainty=uncertainty,
        )
        if sampled:
            self.strength.record(evaluated.result)
        return evaluated


def _still(motion: Tensor, lost: Tensor) -> Tensor:
    """Velocities or strain rates, zero where something is lost."""
    return motion.masked_fill(lost.view(-1, *[1] * (motion.dim() - 1)), 0.0)


def _hillside(
    settings: WalkerSettings, states: Sequence[WalkerState], variables: Variables, device: torch.device
) -> Hillside | None:
    if settings.metadynamics is None:
        return None
    return Hillside(
        settings.metadynamics,
        variables=variables,
        systems=[state.frame.system for state in states],
        temperatures_K=[state.temperature_K for state in states],
        states=[state.hills for state in states],
        device=device,
    )
