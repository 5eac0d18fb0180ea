"""A batch of walkers: one flat graph moves them all; who stops is replaced in place.

Shapes: B walkers (slots), A atoms. Units: Å, eV/Å, eV/atom, K; time in internal units.
"""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pipeline.batching import Batch
from pipeline.bias import BiasedForces, biased_forces, species_weights
from pipeline.dynamics.langevin import Langevin, stack_noise
from pipeline.dynamics.slots import Nursery, Slot, masses_of, occupy, with_positions
from pipeline.dynamics.stops import PRECEDENCE, any_atom, bonds, unphysical
from pipeline.frames import FloatArray
from pipeline.moving import MovingBatch
from pipeline.potentials.model import Model
from pipeline.records import Candidate, Checked, StopReason, WalkerState
from pipeline.settings.walkers import WalkerSettings
from pipeline.strength import RelativeStrength, empty_bias_state
from pipeline.units import FEMTOSECOND, PICOSECOND

SKIN_A = 1.0
"""Extra radius of the neighbour rows, Å."""
LEAP_A = 3.0
"""An atom that moves further than this in one step has left physics, Å."""


@dataclass(frozen=True, slots=True)
class Journey:
    """What a segment, or a leg of it, brought.

    Attributes:
        candidates: in visiting order.
        walkers: as they stand.
        stops: walkers that stopped, per reason.
        steps: MD steps each slot made.
        steps_left: of those asked for; 0 also when the segment ended early because enough walkers had stopped.
    """

    candidates: tuple[Candidate, ...]
    walkers: tuple[WalkerState, ...]
    stops: dict[str, int]
    steps: int
    steps_left: int

    @property
    def walker_steps(self) -> int:
        """MD steps of all slots together."""
        return self.steps * len(self.walkers)


class _Pace:
    """Whether another stretch like the last ones fits into the time."""

    def __init__(self, seconds: float) -> None:
        self._last = time.monotonic()
        self._end = self._last + seconds
        self._longest_recent = 0.0

    def is_over(self) -> bool:
        """Call it at the end of each stretch."""
        now = time.monotonic()
        # a stretch in which walkers were replaced is longer than others: the next one may be too
        self._longest_recent = max(now - self._last, 0.9 * self._longest_recent)
        self._last = now
        return now + self._longest_recent > self._end


class WalkerBatch:
    """Moves a batch of biased walkers.

    Args:
        model: gives forces and uncertainty; ``digest`` is the sha256 of its file.
        settings: walkers section.
        nursery: makes new walkers.
        resume: a state per slot to continue, or None for a new walker.
    """

    def __init__(
        self,
        model: Model,
        digest: str,
        settings: WalkerSettings,
        nursery: Nursery,
        resume: Sequence[WalkerState | None],
    ) -> None:
        self._model, self._digest, self._settings, self._nursery = model, digest, settings, nursery
        self._clock = max((state.clock for state in resume if state is not None), default=0)
        states = [nursery.walker(k, self._clock) if state is None else state for k, state in enumerate(resume)]
        self._strength = RelativeStrength([state.bias for state in states], settings.bias)
        states = self._prepared(states, list(range(len(states))))
        self._slots = [occupy(state, settings.stop) for state in states]
        self._candidates: list[Candidate] = []
        self._stops: Counter[str] = Counter()
        self._settle(states)

    @property
    def _due(self) -> bool:
        """Whether this step is one of the stop checks or of the stored frames."""
        return self._clock % self._settings.stop.check_every == 0 or self._clock % self._settings.store_every == 0

    def run(self, steps: int, enough: int = 0, seconds: float = math.inf) -> Journey:
        """Move every slot ``steps`` MD steps, or as many as the time allows.

        Args:
            steps: steps to make.
            enough: end early once this many walkers have stopped on something worth a label; 0 never.
            seconds: wall clock after which to hand over: looked at after each stop check, and before the next one where that
                would come too late at the speed of the last. At least one stop check is reached.
        """
        self._candidates, self._stops = [], Counter()
        pace = _Pace(seconds)
        made, left = 0, steps
        while left:
            lost = self._step()
            made, left = made + 1, left - 1
            if self._due or lost.any():
                self._refill(self._check(lost))
                if enough and self._stops.total() - self._stops[StopReason.COMPLETED] >= enough:
                    left = 0
            if self._due and pace.is_over():
                break
        return Journey(
            candidates=tuple(self._candidates),
            walkers=tuple(self._state(k) for k in range(len(self._slots))),
            stops=dict(self._stops),
            steps=made,
            steps_left=left,
        )

    def _settle(self, states: Sequence[WalkerState]) -> None:
        """Lay the tensors of all slots out as one flat batch."""
        # rows are built where the walker's were, so that a continued walker sums in the same order to the last bit
        anchored = [with_positions(state.frame, state.anchor) for state in states]
        self._moving = MovingBatch(anchored, cutoff_A=self._model.cutoff_A, skin_A=SKIN_A)
        positions = torch.from_numpy(np.concatenate([state.frame.positions for state in states]))
        self._batch = self._moving.follow(positions)
        self._velocities = torch.from_numpy(np.concatenate([state.velocities for state in states]))
        self._forces = torch.from_numpy(np.concatenate([state.forces for state in states]))
        self._tau = torch.tensor([state.tau for state in states], dtype=torch.float64)
        self._weights = species_weights(self._settings.bias, self._batch.numbers)
        temperatures = torch.tensor([state.temperature_K for state in states], dtype=torch.float64)
        self._langevin = Langevin.make(
            timestep=self._settings.timestep_fs * FEMTOSECOND,
            friction=self._settings.friction_per_ps / PICOSECOND,
            masses=torch.cat([masses_of(state.frame) for state in states]),
            temperatures_K=temperatures.index_select(0, self._batch.system),
        )
        self._last: BiasedForces | None = None

    def _step(self) -> Tensor:
        """One BAOAB step of all walkers; returns (B,) bool, who left physics on the way and was put back."""
        xi = stack_noise([slot.noise for slot in self._slots], [slot.age for slot in self._slots])
        before = self._batch.positions
        positions, velocities = self._langevin.first_half(before, self._velocities, self._forces, xi)
        lost = torch.zeros(len(self._slots), dtype=torch.bool)
        if not float((positions - before).abs().max()) < LEAP_A:  # also catches NaN
            leap = ~((positions - before).abs().max(dim=1).values < LEAP_A)
            lost = any_atom(self._batch, leap)
            back = lost.index_select(0, self._batch.system).unsqueeze(1)
            positions = torch.where(back, before, positions)
            velocities = torch.where(back, torch.zeros_like(velocities), velocities)
        self._batch = self._moving.follow(positions)
        self._clock += 1
        for slot in self._slots:
            slot.age += 1
        self._forces = self._evaluate()
        self._velocities = self._langevin.second_half(velocities, self._forces)
        return lost

    def _evaluate(self) -> Tensor:
        """Forces that kick at this step.

        With ``bias.every`` = n the bias acts at every n-th step only, as an impulse of n times its force: the reversible
        multiple time step of Tuckerman, Berne and Martyna (1992, J. Chem. Phys. 97, 1990).
        """
        bias = self._settings.bias
        sampled = bool((self._tau > 0).any()) and self._clock % bias.update_every == 0
        impulse = float(bias.every) if self._clock % bias.every == 0 else 0.0
        result = biased_forces(
            self._model,
            self._batch,
            settings=bias,
            strength=impulse * self._tau * self._strength.force(),
            weights=self._weights,
            split=sampled,
            features=self._due,
        )
        if sampled and result.plain is not None and result.gradient is not None:
            self._strength.record(result)
        self._last = result
        return result.forces

    def _check(self, lost: Tensor) -> list[int]:
        """Apply the stop checks, collect candidates; returns the slots whose walker stopped.

        Between the steps where checks are due only ``lost`` walkers are looked at: what a walker does must not depend on
        who shares its batch.
        """
        assert self._last is not None
        batch, outcome = self._last.batch, self._last.outcome
        if outcome.features is None:
            outcome = self._model(batch)
        total = self._model.total_uncertainty(outcome, batch).detach().numpy().astype(np.float64)
        atomic = self._model.atomic_uncertainty(outcome, batch).detach()
        flags = unphysical(self._batch, self._forces, self._settings.stop)
        flags[StopReason.NOT_FINITE] = flags[StopReason.NOT_FINITE] | lost
        flags[StopReason.UNCERTAIN] = any_atom(batch, atomic > self._settings.stop.uncertainty_eV_per_A)
        flags[StopReason.BONDS] = torch.tensor([self._bonds_changed(k) for k in range(len(self._slots))])
        stored = self._clock % self._settings.store_every == 0
        stopped = []
        for k, slot in enumerate(self._slots):
            if not (self._due or lost[k]):
                continue
            reason = next((r for r in PRECEDENCE if bool(flags[r][k])), StopReason.RUNNING)
            if reason is StopReason.RUNNING and slot.age >= self._settings.max_steps:
                reason = StopReason.COMPLETED
            here = Checked(
                self._of(self._batch.positions, k), slot.frame.cell, slot.age, float(total[k]), self._of(atomic, k)
            )
            trusted = reason in (StopReason.RUNNING, StopReason.COMPLETED, StopReason.UNCERTAIN, StopReason.BONDS)
            if reason is not StopReason.RUNNING:
                stopped.append(k)
                self._stops[reason] += 1
            if trusted and (stored or reason is not StopReason.RUNNING):
                self._propose(slot, here, reason)
            elif not trusted and slot.good is not None:
                self._propose(slot, slot.good, reason)
            slot.good = here
        return stopped

    def _propose(self, slot: Slot, at: Checked, reason: StopReason) -> None:
        self._candidates.append(
            Candidate(
                frame=with_positions(slot.frame, at.positions),
                walker=slot.state.walker,
                step=at.age,
                temperature_K=slot.state.temperature_K,
                pressure_MPa=slot.state.pressure_MPa,
                tau=slot.state.tau,
                model_version=self._model.version,
                reason=reason,
                total_uncertainty=at.total,
                atomic_uncertainty=at.atomic.astype(np.float32),
            )
        )

    def _bonds_changed(self, k: int) -> bool:
        slot = self._slots[k]
        if slot.bonds is None:
            return False
        frame = slot.frame
        positions = self._of(self._batch.positions, k)
        return bonds(frame.numbers, positions, frame.cell, frame.pbc, self._settings.stop.bond_fraction) != slot.bonds

    def _refill(self, stopped: list[int]) -> None:
        """Put new walkers into the slots whose walker stopped."""
        if not stopped:
            return
        states = [self._state(k) for k in range(len(self._slots))]
        for k in stopped:
            states[k] = self._nursery.walker(k, self._clock)
            self._strength.replace(k, empty_bias_state())
        states = self._prepared(states, stopped)
        for k in stopped:
            self._slots[k] = occupy(states[k], self._settings.stop)
        self._settle(states)

    def _prepared(self, states: Sequence[WalkerState], slots: Sequence[int]) -> list[WalkerState]:
        """States with forces of this model; a walker without bias samples takes its first one here."""
        states = list(states)
        stale = [k for k in slots if states[k].model != self._digest]
        if not stale:
            return states
        moving = MovingBatch([states[k].frame for k in stale], cutoff_A=self._model.cutoff_A, skin_A=SKIN_A)
        strength = RelativeStrength([states[k].bias for k in stale], self._settings.bias)
        tau = torch.tensor([states[k].tau for k in stale], dtype=torch.float64)
        weights = species_weights(self._settings.bias, moving.batch.numbers)
        result = biased_forces(
            self._model,
            moving.batch,
            settings=self._settings.bias,
            strength=torch.zeros_like(tau),
            weights=weights,
            split=bool((tau > 0).any()),
        )
        forces = result.forces
        if result.plain is not None and result.gradient is not None:
            strength.record(result)
            per_atom = (tau * strength.force()).index_select(0, moving.batch.system).unsqueeze(1)
            forces = result.plain + per_atom * result.gradient
        for row, k in enumerate(stale):
            self._strength.replace(k, strength.state(row))
            own = forces[moving.batch.system == row].numpy()
            positions = states[k].frame.positions
            # what another model said of an earlier geometry is nothing to propose
            states[k] = replace(
                states[k], forces=own, model=self._digest, anchor=positions, bias=strength.state(row), good=None
            )
        return states

    def _of(self, values: Tensor, k: int) -> FloatArray:
        """The rows of walker ``k``, copied."""
        return np.array(values[self._span(self._batch, k)].numpy(), dtype=np.float64)

    @staticmethod
    def _span(batch: Batch, k: int) -> slice:
        end = int(batch.n_atoms[: k + 1].sum())
        return slice(end - int(batch.n_atoms[k]), end)

    def _state(self, k: int) -> WalkerState:
        """The walker in slot ``k`` as it stands."""
        slot = self._slots[k]
        return replace(
            slot.state,
            frame=with_positions(slot.frame, self._of(self._batch.positions, k)),
            velocities=self._of(self._velocities, k),
            age=slot.age,
            clock=self._clock,
            bias=self._strength.state(k),
            forces=self._of(self._forces, k),
            model=self._digest,
            anchor=self._of(self._moving.anchors, k),
            good=slot.good,
        )
