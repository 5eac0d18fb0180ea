"""A batch of walkers: one flat graph moves them all; who stops is replaced in place.

A batch moves in *intervals*, the steps up to the next stop check or stored frame. Within one the host only hands out work; at
its end a few numbers per walker come back, and the frames that are proposed.

Shapes: B walkers (slots), A atoms. Units: Å, eV/Å, eV/atom, K; time in internal units.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.dynamics.capacity import Capacity
from pipeline.dynamics.checkpoint import checkpoint, prepared
from pipeline.dynamics.journey import Journey, Pace
from pipeline.dynamics.phase import Exchange, Visited
from pipeline.dynamics.propagator import Propagator, Variables
from pipeline.dynamics.schedules import tau_at
from pipeline.dynamics.slots import Nursery, Slot, moved, occupy
from pipeline.dynamics.stops import PRECEDENCE, TRUSTED, BondGraph, StartCells, StopChecks, any_atom
from pipeline.frames import FloatArray, IntArray
from pipeline.potentials.model import Model
from pipeline.records import Candidate, Checked, StopReason, WalkerState
from pipeline.settings.walkers import WalkerSettings

RENEWED = 0.7
"""Wear of neighbour rows from which on they are built anew at a stop check, before they force themselves on another step."""
_RUNNING = PRECEDENCE.index(StopReason.RUNNING)
_TRUSTED = [PRECEDENCE.index(reason) for reason in PRECEDENCE if reason in TRUSTED]


@dataclass(frozen=True, slots=True)
class _Report:
    """What comes back to the host at the end of an interval.

    Attributes:
        codes: (B,) which of the reasons to stop holds; totals: (B,) total uncertainties, eV/atom; tau: (B,).
        wear: (B,) of the neighbour rows now.
        here: where the walkers are, on the device.
    """

    codes: IntArray
    totals: FloatArray
    tau: FloatArray
    wear: FloatArray
    here: Visited


class WalkerBatch:
    """Moves a batch of biased walkers, on the device of the model.

    Args:
        model: gives forces and uncertainty; ``digest`` is the sha256 of its file.
        settings: walkers section.
        nursery: makes new walkers.
        resume: a state per slot to continue, or None for a new walker.
        variables: of each system, those that metadynamics puts hills along.
        volumes_A3: of each system, the smallest and the largest volume that volume_change is counted from; a walker of another
            one counts from its own start.
        cache: directory on this node where it is kept how much memory an evaluation takes; None: nowhere.
        parts: evaluate in at least so many parts.
        looks: whether the host looks at the neighbour rows at every step, and not only at the end of an interval, which is made
            again where they did not last; by default on the CPU, where looking costs nothing. The steps are the same.
    """

    def __init__(
        self,
        model: Model,
        digest: str,
        settings: WalkerSettings,
        nursery: Nursery,
        resume: Sequence[WalkerState | None],
        *,
        variables: Variables | None = None,
        volumes_A3: Mapping[str, tuple[float, float]] | None = None,
        cache: Path | None = None,
        parts: int = 1,
        looks: bool | None = None,
    ) -> None:
        self._model, self._digest, self._settings, self._nursery = model, digest, settings, nursery
        self._device = model.device
        self._looks = self._device.type == "cpu" if looks is None else looks
        self._variables: Variables = variables or {}
        self._capacity = Capacity(self._device, digest, cache, parts=parts)
        self._volumes_A3 = dict(volumes_A3 or {})
        clock = max((state.clock for state in resume if state is not None), default=0)
        states = self._prepared([nursery.walker(k, clock) if s is None else s for k, s in enumerate(resume)])
        self._slots = self._occupied(states)
        self._walk = Propagator(
            model, settings, states, clock=clock, variables=self._variables, capacity=self._capacity
        )
        self._good = Visited.of(states, self._device)
        self._starts = self._start_cells(states)
        self._checks = self._stop_checks()
        self._candidates: list[Candidate] = []
        self._stops: Counter[str] = Counter()

    def run(self, steps: int, enough: int = 0, seconds: float = math.inf) -> Journey:
        """Move every slot ``steps`` MD steps, or as many as the time allows.

        Args:
            steps: steps to make.
            enough: end early once this many walkers have stopped on something worth a label; 0 never.
            seconds: wall clock after which to hand over: looked at after each stop check, and before the next one where that
                would come too late at the speed of the last. At least one stop check is reached.
        """
        self._candidates, self._stops = [], Counter()
        pace = Pace(seconds)
        made, left = 0, steps
        while left:
            count = min(left, self._until_due())
            report = self._interval(count)
            made, left = made + count, left - count
            if report is None:
                continue
            self._attend(report)
            if enough and self._stops.total() - self._stops[StopReason.COMPLETED] >= enough:
                left = 0
            if pace.is_over():
                break
        return Journey(
            candidates=tuple(self._candidates),
            walkers=tuple(checkpoint(self._walk, [s.state for s in self._slots], self._digest, self._good)),
            stops=dict(self._stops),
            steps=made,
            steps_left=left,
        )

    def _until_due(self) -> int:
        """Steps up to the next stop check or stored frames."""
        every = (self._settings.stop.check_every, self._settings.store_every)
        return min(n - self._walk.clock % n for n in every)

    def _interval(self, count: int) -> _Report | None:
        """Make so many steps, at the end of which a check may be due; None where it is not."""
        if self._looks:
            _, report = self._advance(count, follow=True)
            return report
        mark = self._walk.mark()
        worn, report = self._advance(count, follow=False)
        if worn:  # a neighbour may have been missed
            self._walk.return_to(mark)
            _, report = self._advance(count, follow=True)
        return report

    def _advance(self, count: int, *, follow: bool) -> tuple[bool, _Report | None]:
        """Make so many steps; whether any rows were used up on the way (never where they are followed), and the report."""
        due = count == self._until_due()
        walk, worn, evaluated = self._walk, None, None
        for left in reversed(range(count)):
            evaluated = walk.step(uncertainty=due and left == 0, follow=follow)
            if not follow:
                wear = walk.moving.wear()
                worn = wear if worn is None else torch.maximum(worn, wear)
        assert evaluated is not None
        if evaluated.totals is None or evaluated.atomic is None:
            return worn is not None and bool((worn >= 1.0).any()), None
        wear = walk.moving.wear()
        result = evaluated.result
        forces = result.forces if self._settings.bias.every == 1 else result.plain
        assert forces is not None  # E and u are apart where an impulse meets a check
        worn = wear if worn is None or follow else worn
        return self._reported(forces, evaluated.totals, evaluated.atomic, wear, worn)

    def _reported(
        self, forces: Tensor, totals: Tensor, atomic: Tensor, wear: Tensor, worn: Tensor
    ) -> tuple[bool, _Report]:
        """The checks, made on the device, in one transfer; ``forces`` (A, 3) hold no impulse."""
        walk, phase, batch = self._walk, self._walk.phase, self._walk.moving.batch
        lost = phase.lost | any_atom(batch, ~torch.isfinite(phase.forces).all(dim=1))
        codes = self._checks.codes(batch, forces=forces, atomic=atomic, lost=lost, ages=phase.ages)
        rows = (codes, phase.ages, totals, phase.tau, wear, worn)
        code, age, total, tau, used, most = torch.stack([row.to(torch.float64) for row in rows]).cpu().numpy()
        progress = batch.max_atoms(atomic) / self._settings.stop.uncertainty_eV_per_A
        tau_next = tau_at(self._settings.bias, tau=phase.tau, ages=phase.ages, progress=progress)
        walk.phase = replace(phase, tau=tau_next)
        there = np.ones(len(code), dtype=np.bool_)
        here = Visited(phase.positions, phase.cells, atomic, total, age.astype(np.int64), there)
        return bool((most >= 1.0).any()), _Report(code.astype(np.int64), total, tau, used, here)

    def _attend(self, report: _Report) -> None:
        """Collect candidates, put new walkers into the slots whose walker stopped, renew neighbour rows."""
        walk, settings = self._walk, self._settings
        stopped = np.nonzero(report.codes != _RUNNING)[0]
        self._collect(report, walk.clock % settings.store_every == 0)
        self._good = report.here
        for code in report.codes[stopped].tolist():
            self._stops[PRECEDENCE[code]] += 1
        hilly = settings.metadynamics
        if walk.hills is not None and hilly is not None and walk.clock % hilly.every == 0:
            walk.hills.deposit(walk.moving.batch)
        self._refill(stopped.tolist())
        worn = np.setdiff1d(np.nonzero(report.wear > RENEWED)[0], stopped)
        if len(worn):
            walk.moving.rebuild(worn.tolist())

    def _collect(self, report: _Report, stored: bool) -> None:
        """The frames that are worth a label: only those come from the device."""
        trusted = np.isin(report.codes, _TRUSTED)
        chosen = {
            "here": np.nonzero(trusted & (stored | (report.codes != _RUNNING)))[0],
            "good": np.nonzero(~trusted & self._good.there)[0],
        }
        found: dict[int, Checked] = {}
        for where, visited in (("here", report.here), ("good", self._good)):
            rows = visited.rows(chosen[where], self._walk.sizes)
            found.update(zip(chosen[where].tolist(), rows, strict=True))
        for k in sorted(found):
            state, at = self._slots[k].state, found[k]
            self._candidates.append(
                Candidate(
                    frame=moved(state.frame, at.positions, at.cell),
                    walker=state.walker,
                    step=at.age,
                    temperature_K=state.temperature_K,
                    pressure_MPa=state.pressure_MPa,
                    tau=float(report.tau[k]),
                    model_version=self._model.version,
                    reason=PRECEDENCE[report.codes[k]],
                    total_uncertainty=at.total,
                    atomic_uncertainty=at.atomic.astype(np.float32),
                )
            )

    def _refill(self, stopped: list[int]) -> None:
        """Put new walkers into the slots whose walker stopped; the others stay where they are."""
        if not stopped:
            return
        walk = self._walk
        states = self._prepared([self._nursery.walker(k, walk.clock) for k in stopped])
        exchange = Exchange.of(walk.sizes, stopped, [len(state.frame) for state in states], self._device)
        self._good = self._good.exchanged(Visited.of(states, self._device), exchange)
        self._starts = torch.cat([self._starts, self._start_cells(states)]).index_select(0, exchange.walkers)
        walk.exchange(dict(zip(stopped, states, strict=True)), exchange)
        for k, slot in zip(stopped, self._occupied(states), strict=True):
            self._slots[k] = slot
        self._checks = self._stop_checks()

    def _prepared(self, states: Sequence[WalkerState]) -> list[WalkerState]:
        return prepared(
            states,
            self._model,
            self._digest,
            self._settings,
            variables=self._variables,
            capacity=self._capacity,
        )

    def _occupied(self, states: Sequence[WalkerState]) -> list[Slot]:
        return occupy(states, self._settings.stop, cutoff_A=self._model.cutoff_A, device=self._device)

    def _start_cells(self, states: Sequence[WalkerState]) -> Tensor:
        return torch.from_numpy(np.stack([state.start_cell for state in states])).to(self._device)

    def _start_volumes(self) -> Tensor:
        """(B, 2) float64 smallest and largest volume that the changes of a walker are counted from, Å³."""
        states = [slot.state for slot in self._slots]
        own = np.abs(np.linalg.det(np.stack([state.start_cell for state in states]))).tolist()
        limits = [self._volumes_A3.get(s.frame.system, (v, v)) for s, v in zip(states, own, strict=True)]
        return torch.tensor(limits, dtype=torch.float64, device=self._device)

    def _stop_checks(self) -> StopChecks:
        graphs = [slot.bonds for slot in self._slots if slot.bonds is not None]
        frozen = self._walk.barostat is None
        return StopChecks(
            settings=self._settings.stop,
            cutoff_A=self._model.cutoff_A,
            max_steps=self._settings.max_steps,
            cells=None if frozen else StartCells(self._starts, self._start_volumes()),
            graph=BondGraph.of(graphs, self._walk.sizes, self._device) if self._settings.stop.bond_graph else None,
        )
