"""The walk task: one batch of walkers for one segment."""

import torch

from pipeline.dynamics.slots import Nursery
from pipeline.dynamics.walkers import WalkerBatch
from pipeline.potentials import load
from pipeline.records import Status, Stopwatch, WalkResult, WalkTask


def run_walk(task: WalkTask) -> WalkResult:
    """Move a batch of biased walkers and report what they found.

    The result depends on the task alone: not on the process, its other tasks, or the number of tasks before.
    """
    watch = Stopwatch()
    torch.set_num_threads(task.threads)
    model = load(task.model.file.path, task.model.file.sha256)
    nursery = Nursery(
        starts=task.starts,
        settings=task.settings,
        temperatures_K=task.temperatures_K,
        seed=task.seed,
        prefix=f"r{task.round:04d}-b{task.item:03d}",
    )
    walkers = WalkerBatch(model, task.model.file.sha256, task.settings, nursery, task.resume)
    journey = walkers.run(task.steps, task.enough)
    return WalkResult(
        task=task.task,
        status=Status.DONE,
        reason="",
        candidates=journey.candidates,
        walkers=journey.walkers,
        stops=journey.stops,
        walker_steps=journey.walker_steps,
        timing=watch.stop(),
    )
