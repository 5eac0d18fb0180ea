"""Tasks that take no time, for benchmarks of what surrounds them. Workers import it by name."""

import time
from pathlib import Path

import numpy as np

from pipeline.durable import sha256_of
from pipeline.frames import Frame
from pipeline.records import (
    Candidate,
    FileRef,
    Found,
    LabelResult,
    LabelTask,
    Result,
    Scores,
    SelectResult,
    SelectTask,
    Status,
    StopReason,
    Task,
    Timing,
    TrainResult,
    TrainTask,
    WalkResult,
    WalkTask,
)
from pipeline.shards import read_candidates, write_candidates, write_walkers

ATOMS = 22
FOUND = 100
"""Candidates of a walk."""
TIMING = Timing(started=1.0, ended=2.0, cpu_s=0.5, host="here:1")


def frame(seed: int) -> Frame:
    """So many atoms in a box, elsewhere for each seed."""
    rng = np.random.default_rng(seed)
    positions = rng.uniform(0, 10, size=(ATOMS, 3))
    return Frame(numbers=np.full(ATOMS, 6), positions=positions, cell=np.eye(3) * 10, pbc=np.ones(3, bool), system="a")


def label(task: LabelTask) -> LabelResult:
    """A label that takes no time."""
    now = time.time()
    return LabelResult(
        task=task.task,
        status=Status.DONE,
        reason="",
        energy=-1.0,
        forces=np.zeros_like(task.frame.positions),
        stress=np.zeros(6),
        reference="none",
        timing=Timing(started=now, ended=now, cpu_s=0.0, host="here:1"),
    )


def carry_out(task: Task) -> Result:
    """The made-up result of any task: walks find candidates, trainings write a small file."""
    match task:
        case LabelTask():
            return label(task)
        case WalkTask():
            return walk(task)
        case SelectTask():
            return select(task)
        case TrainTask():
            return train(task)


def walk(task: WalkTask) -> WalkResult:
    """A walk that finds other candidates each time."""
    candidates = [
        Candidate(
            frame=frame(10**6 * task.round + 1000 * task.item + number),
            walker=f"w{task.item}",
            step=number,
            temperature_K=300.0,
            pressure_MPa=0.0,
            tau=0.25,
            model_version=task.model.version,
            reason=StopReason.RUNNING,
            total_uncertainty=0.1,
            atomic_uncertainty=np.zeros(ATOMS, np.float32),
        )
        for number in range(FOUND)
    ]
    output = Path(task.output)
    output.mkdir(parents=True, exist_ok=True)
    return WalkResult(
        task=task.task,
        status=Status.DONE,
        reason="",
        candidates=write_candidates(output / "candidates.h5", candidates),
        count=len(candidates),
        walkers=write_walkers(output / "walkers.h5", [None]),
        steps=task.steps,
        steps_left=0,
        born=(1,),
        stops={},
        walker_steps=task.steps,
        found={"a": Found(count=FOUND, mean_bound=0.0)},
        timing=TIMING,
    )


def select(task: SelectTask) -> SelectResult:
    """The first candidates."""
    kept = [] if task.pool is None else [read_candidates(task.pool.file)[row] for row in task.pool.rows]
    read = [*kept, *(candidate for file in task.candidates for candidate in read_candidates(file))]
    found = read[: task.keep]
    output = Path(task.output)
    output.mkdir(parents=True, exist_ok=True)
    return SelectResult(
        task=task.task,
        status=Status.DONE,
        reason="",
        picks=write_candidates(output / "picks.h5", found),
        count=min(task.count, len(found)),
        kept=len(found),
        saved=0,
        dropped={"surplus": len(read) - len(found)},
        timing=TIMING,
    )


def train(task: TrainTask) -> TrainResult:
    """A small file and a long history."""
    path = Path(task.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(task.task.encode())
    scores = Scores(count=1, energy_rmse=0.1, energy_mae=0.1, force_rmse=0.1, force_mae=0.1)
    return TrainResult(
        task=task.task,
        status=Status.DONE,
        reason="",
        file=FileRef(path=str(path), sha256=sha256_of(path)),
        fresh=scores,
        train=scores,
        validation=scores,
        factors=(),
        epochs=1,
        history=tuple({"epoch": float(epoch), "loss": 0.1} for epoch in range(100)),
        timing=TIMING,
    )
