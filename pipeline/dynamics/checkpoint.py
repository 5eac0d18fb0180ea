"""From the tensors of a batch to walkers that can be kept, and walkers made ready for a model.

Shapes: B walkers, A atoms. Units: Å, eV/Å, eV.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pipeline.dynamics.capacity import Capacity
from pipeline.dynamics.phase import Visited
from pipeline.dynamics.propagator import Propagator, Variables
from pipeline.dynamics.slots import moved
from pipeline.frames import FloatArray
from pipeline.potentials.model import Model
from pipeline.records import Checked, WalkerState
from pipeline.settings.walkers import WalkerSettings


def checkpoint(
    walk: Propagator, entered: Sequence[WalkerState], digest: str, good: Visited | None = None
) -> list[WalkerState]:
    """All walkers of a batch as they stand.

    Args:
        walk: moves them.
        entered: each as it entered the batch.
        digest: of the model that gave the forces.
        good: where they passed their last check.
    """
    phase, sizes = walk.phase, walk.sizes
    ends = np.cumsum(sizes)[:-1]

    def by_walker(values: Tensor) -> list[FloatArray]:
        return [part.copy() for part in np.split(values.detach().cpu().numpy(), ends)]

    positions, velocities, forces = (by_walker(v) for v in (phase.positions, phase.velocities, phase.forces))
    anchors, anchor_cells = by_walker(walk.moving.anchors), walk.moving.anchor_cells.cpu().numpy()
    cells, virials, rates = (v.detach().cpu().numpy() for v in (phase.cells, phase.virials, phase.strain_rates))
    tau, ages, lost = (v.cpu().numpy() for v in (phase.tau, phase.ages, phase.lost))
    biases = walk.strength.states()
    hills = [state.hills for state in entered] if walk.hills is None else walk.hills.states()
    checked: list[Checked | None] = [None] * len(sizes)
    if good is not None:
        there = np.nonzero(good.there)[0]
        for k, one in zip(there.tolist(), good.rows(there, sizes), strict=True):
            checked[k] = one
    return [
        replace(
            state,
            frame=moved(state.frame, positions[k], cells[k]),
            # a lost walker has no velocity: whoever takes it up sees that
            velocities=np.full_like(velocities[k], np.nan) if lost[k] else velocities[k],
            tau=float(tau[k]),
            age=int(ages[k]),
            clock=walk.clock,
            bias=biases[k],
            forces=forces[k],
            virial=virials[k].copy(),
            strain_rate=rates[k].copy(),
            model=digest,
            anchor=anchors[k],
            anchor_cell=anchor_cells[k].copy(),
            hills=hills[k],
            good=checked[k],
        )
        for k, state in enumerate(entered)
    ]


def prepared(
    states: Sequence[WalkerState],
    model: Model,
    digest: str,
    settings: WalkerSettings,
    *,
    variables: Variables,
    capacity: Capacity,
) -> list[WalkerState]:
    """Walkers with forces of this model; one without samples of the bias takes its first one here."""
    stale = [k for k, state in enumerate(states) if state.model != digest]
    if not stale:
        return list(states)
    # what another model said of an earlier geometry is nothing to propose
    here = [
        replace(
            states[k],
            anchor=states[k].frame.positions,
            anchor_cell=states[k].frame.cell,
            good=None,
        )
        for k in stale
    ]
    walk = Propagator(model, settings, here, clock=here[0].clock, variables=variables, capacity=capacity)
    result = walk.samples().result
    walk.strength.record(result)
    forces, virials = result.forces, result.virials
    if result.plain is not None and result.gradient is not None:
        strength = walk.phase.tau * walk.strength.force()
        forces = result.plain + strength.index_select(0, result.batch.system).unsqueeze(1) * result.gradient
    if result.plain_virials is not None and result.strain_gradient is not None:
        stress = settings.bias.tau_stress * walk.strength.stress()
        virials = result.plain_virials + stress.view(-1, 1, 1) * result.strain_gradient
    still = torch.zeros_like(walk.phase.virials)
    walk.phase = replace(walk.phase, forces=forces, virials=still if virials is None else virials)
    fresh = checkpoint(walk, here, digest)
    ready = list(states)
    for k, state in zip(stale, fresh, strict=True):
        ready[k] = replace(state, clock=states[k].clock)
    return ready
