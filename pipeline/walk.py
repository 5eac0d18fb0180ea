"""The walk task: one batch of walkers for one leg of a segment."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.analysis.coverage import cells_of
from pipeline.analysis.variables import evaluate_all
from pipeline.durable import written_into
from pipeline.dynamics.journey import Journey
from pipeline.dynamics.slots import Nursery
from pipeline.dynamics.walkers import WalkerBatch
from pipeline.errors import DiskFullError, PipelineError
from pipeline.node import ANYWHERE, Node
from pipeline.potentials import load
from pipeline.records import (
    Candidate,
    FileRef,
    Found,
    Remark,
    Status,
    Stopwatch,
    WalkerState,
    WalkResult,
    WalkTask,
)
from pipeline.settings.variables import Variable
from pipeline.shards import read_labels, read_walkers, write_candidates, write_walkers


@dataclass(frozen=True, slots=True)
class _Leg:
    """What a leg brought, and the shards it was written to."""

    journey: Journey
    candidates: FileRef
    walkers: FileRef
    born: tuple[int, ...]


def run_walk(task: WalkTask, node: Node = ANYWHERE) -> WalkResult:
    """Move a batch of biased walkers, on the device of the node, and report what they found.

    Where the walkers go depends on the task and its files alone: not on the process, its other tasks, or the number of tasks
    before. How far they get in this leg depends on the clock, and a file that is damaged or cannot be written is a FAILED
    result that names it.

    Raises:
        DiskFullError: there is no space for what was found.
    """
    watch = Stopwatch()
    remarks: list[Remark] = []
    torch.set_num_threads(task.threads)
    # forces of walkers take all bits of float32: TF32 keeps 10 of 23
    torch.set_float32_matmul_precision("highest")
    try:
        leg = _walk(task, node, watch, remarks)
    except DiskFullError:
        raise
    except PipelineError as error:
        return _failed(task, watch, str(error), remarks)
    return WalkResult(
        task=task.task,
        status=Status.DONE,
        reason="",
        candidates=leg.candidates,
        count=len(leg.journey.candidates),
        walkers=leg.walkers,
        steps=leg.journey.steps,
        steps_left=leg.journey.steps_left,
        born=leg.born,
        stops=leg.journey.stops,
        walker_steps=leg.journey.walker_steps,
        found=found_by(leg.journey.candidates, task.followed),
        timing=watch.stop(),
        remarks=tuple(remarks),
    )


def found_by(candidates: Sequence[Candidate], followed: Mapping[str, tuple[Variable, ...]]) -> dict[str, Found]:
    """What candidates bring, per system, in the order of its first.

    Args:
        candidates: of one or more systems.
        followed: of each system, one to three variables whose coverage is followed; systems without have none.
    """
    own: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        own.setdefault(candidate.frame.system, []).append(candidate)
    found = {}
    for system, group in own.items():
        variables = followed.get(system, ())
        found[system] = Found(
            count=len(group),
            mean_bound=float(np.mean([candidate.atomic_uncertainty.max() for candidate in group], dtype=np.float64)),
            cells=cells_of(variables, evaluate_all(variables, [c.frame for c in group])) if variables else (),
        )
    return found


def _walk(task: WalkTask, node: Node, watch: Stopwatch, remarks: list[Remark]) -> _Leg:
    seconds = node.allowed_s(task.seconds)
    digest = task.model.file.sha256
    model = load(node.model_file(task.model.file, remarks.append), digest).to(node.device)
    nursery = Nursery(
        starts=[label.frame for label in read_labels(task.starts)],
        settings=task.settings,
        temperatures_K=task.temperatures_K,
        pressures_MPa=task.pressures_MPa,
        seed=task.seed,
        prefix=f"r{task.round:04d}-b{task.item:03d}",
        born=task.born,
        shares=task.shares,
    )
    resume: list[WalkerState | None] = [None] * len(task.temperatures_K)
    if task.resume is not None:
        resume = read_walkers(task.resume)
    walkers = WalkerBatch(
        model,
        digest,
        task.settings,
        nursery,
        resume,
        variables=task.variables,
        volumes_A3=task.volumes_A3,
        cache=node.cache,
    )
    journey = walkers.run(task.steps, task.enough, seconds - watch.elapsed_s)
    with written_into(Path(task.output)):
        # a worker that was given up may still be at the same task, and get to another step
        output = Path(tempfile.mkdtemp(dir=task.output))
        return _Leg(
            journey,
            write_candidates(output / "candidates.h5", journey.candidates),
            write_walkers(output / "walkers.h5", journey.walkers),
            tuple(nursery.born),
        )


def _failed(task: WalkTask, watch: Stopwatch, reason: str, remarks: list[Remark]) -> WalkResult:
    return WalkResult(
        task=task.task,
        status=Status.FAILED,
        reason=reason,
        candidates=None,
        count=0,
        walkers=None,
        steps=0,
        steps_left=task.steps,
        born=task.born,
        stops={},
        walker_steps=0,
        found={},
        timing=watch.stop(),
        remarks=tuple(remarks),
    )
