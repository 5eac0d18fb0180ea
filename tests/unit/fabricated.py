"""Settings, frames and results made up for tests of the loop: numbers that depend on the task alone, no numerics."""

import dataclasses
import hashlib
import random
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from pipeline.frames import Frame
from pipeline.records import (
    BiasState,
    Candidate,
    FileRef,
    Hills,
    LabelResult,
    LabelTask,
    Scores,
    SelectResult,
    SelectTask,
    Status,
    StopReason,
    Timing,
    TrainResult,
    TrainTask,
    WalkerState,
    WalkResult,
    WalkTask,
)
from pipeline.settings.campaign import CampaignSettings
from pipeline.shards import read_candidates, read_labels, read_walkers, write_candidates, write_walkers
from pipeline.uncertainty.calibration import made_up_factor
from pipeline.walk import found_by

TIMING = Timing(started=1.0, ended=2.0, cpu_s=0.5, host="here:1")


def settings(**changes: object) -> CampaignSettings:
    """A small campaign; ``changes`` by dotted key with ``__`` for the dots."""
    plain: dict = {
        "name": "made-up",
        "seed": 3,
        "systems": [{"name": "a", "structures": ["a.xyz"]}, {"name": "b", "structures": ["b.xyz"]}],
        "labels": {"reference": {"kind": "emt"}, "budget": 30, "initial": 10},
        "walkers": {"count": 6, "batch": 2, "segment_steps": 10, "temperatures_K": [300.0, 500.0, 700.0, 900.0]},
        "selection": {"batch": 4},
        "stop": {},
        "site": {"kind": "inline"},
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        place = plain
        for name in path:
            place = place.setdefault(name, {})
        place[last] = value
    return CampaignSettings.model_validate(plain)


def frame(system: str = "a", number: int = 0) -> Frame:
    """Four copper atoms, different for each number."""
    rng = np.random.default_rng(number)
    return Frame(
        numbers=np.full(4, 29),
        positions=rng.normal(size=(4, 3)) + 3 * np.arange(4)[:, None],
        cell=np.eye(3) * 20,
        pbc=np.ones(3, bool),
        system=system,
    )


def systems() -> dict[str, tuple[Frame, ...]]:
    """Two start structures of system a, one of b."""
    return {"a": (frame("a", 1), frame("a", 2)), "b": (frame("b", 3),)}


def walk(task: WalkTask) -> WalkResult:
    """Each slot moves once and proposes where it is."""
    candidates, walkers = [], []
    starts = [label.frame for label in read_labels(task.starts)]
    slots = len(task.temperatures_K)
    for slot, state in enumerate([None] * slots if task.resume is None else read_walkers(task.resume)):
        rng = np.random.default_rng([task.seed % 2**32, slot, task.model.version])
        start = starts[slot % len(starts)] if state is None else state.frame
        moved = Frame(
            numbers=start.numbers,
            positions=start.positions + rng.normal(size=start.positions.shape),
            cell=start.cell,
            pbc=start.pbc,
            system=start.system,
        )
        candidates.append(
            Candidate(
                frame=moved,
                walker=f"w{task.item}-{slot}",
                step=10,
                temperature_K=task.temperatures_K[slot],
                pressure_MPa=0.0,
                tau=0.25,
                model_version=task.model.version,
                reason=StopReason.RUNNING,
                total_uncertainty=(bound := float(rng.random())),
                atomic_uncertainty=np.full(4, bound, np.float32),
            )
        )
        walkers.append(
            WalkerState(
                walker=f"w{task.item}-{slot}",
                frame=moved,
                velocities=rng.normal(size=(4, 3)),
                temperature_K=task.temperatures_K[slot],
                pressure_MPa=0.0,
                tau=0.25,
                seed=1,
                age=10 if state is None else state.age + 10,
                clock=10,
                bias=BiasState(force_squared=np.ones(1), gradient_squared=np.ones(1)),
                forces=np.zeros((4, 3)),
                virial=np.zeros((3, 3)),
                strain_rate=np.zeros((3, 3)),
                model=task.model.file.sha256,
                anchor=moved.positions,
                anchor_cell=moved.cell,
                start=start.positions,
                start_cell=start.cell,
                hills=Hills(centers=np.zeros((0, 0)), heights=np.zeros(0)),
            )
        )
    output = Path(task.output)
    output.mkdir(parents=True, exist_ok=True)
    return WalkResult(
        task=task.task,
        status=Status.DONE,
        reason="",
        candidates=write_candidates(output / "candidates.h5", candidates),
        count=len(candidates),
        walkers=write_walkers(output / "walkers.h5", walkers),
        steps=task.steps,
        steps_left=0,
        born=(1,) * slots,
        stops={},
        walker_steps=task.steps * slots,
        found=found_by(candidates, task.followed),
        timing=TIMING,
    )


def select(task: SelectTask) -> SelectResult:
    """The most uncertain ones; reads what a real selection reads. Every model knows more of what was found before it."""
    kept = [] if task.pool is None else [read_candidates(task.pool.file)[row] for row in task.pool.rows]
    found = [*kept, *(c for ref in task.candidates for c in read_candidates(ref))]
    needless = {label.frame.identity for label in read_labels(task.labels)}
    for some in task.in_flight:
        rows = read_candidates(some.file)
        needless.update(rows[row].frame.identity for row in some.rows)
    bounds = [c.total_uncertainty * 0.8 ** (task.model.version - c.model_version) for c in found]
    certain = [task.known_eV_per_A is not None and bound < task.known_eV_per_A for bound in bounds]
    seen = set(needless)
    dropped = {"duplicate": 0, "known": 0, "surplus": 0}
    left: list[int] = []
    for k, candidate in enumerate(found):
        name = candidate.frame.identity
        if name in seen or certain[k]:
            dropped["duplicate" if name in seen else "known"] += 1
        else:
            left.append(k)
        seen.add(name)
    left.sort(key=lambda k: -bounds[k])
    dropped["surplus"] = max(0, len(left) - task.keep)
    left = left[: task.keep]
    output = Path(task.output)
    output.mkdir(parents=True, exist_ok=True)
    return SelectResult(
        task=task.task,
        status=Status.DONE,
        reason="",
        picks=write_candidates(output / "picks.h5", [found[k] for k in left]),
        count=min(task.count, len(left)),
        kept=len(left),
        saved=sum(certain[k] or found[k].frame.identity in needless for k in range(task.waiting)),
        dropped={reason: count for reason, count in dropped.items() if count},
        timing=TIMING,
    )


def label(task: LabelTask) -> LabelResult:
    """Energy and forces from the positions."""
    return LabelResult(
        task=task.task,
        status=Status.DONE,
        reason="",
        energy=float(task.frame.positions.sum()),
        forces=-task.frame.positions,
        stress=None,
        reference="made-up",
        timing=TIMING,
    )


def failed_label(task: LabelTask, reason: str = "made to fail") -> LabelResult:
    """What a reference that does not converge gives."""
    return LabelResult(
        task=task.task,
        status=Status.FAILED,
        reason=reason,
        energy=None,
        forces=None,
        stress=None,
        reference="",
        timing=TIMING,
    )


def train(task: TrainTask) -> TrainResult:
    """A file that depends on the labels, in their order, and on the parent."""
    labels = read_labels(task.labels)
    text = " ".join(
        [f"{x.frame.identity} {x.energy!r} {x.split}" for x in labels] + [str(task.parent), str(task.fresh)]
    )
    data = hashlib.sha256(text.replace(str(Path(task.output).parents[3]), "").encode()).hexdigest().encode()
    Path(task.output).parent.mkdir(parents=True, exist_ok=True)
    Path(task.output).write_bytes(data)
    scores = Scores(count=1, energy_rmse=0.1, energy_mae=0.1, force_rmse=1.0 / task.version, force_mae=0.1)
    return TrainResult(
        task=task.task,
        status=Status.DONE,
        reason="",
        file=FileRef(path=task.output, sha256=hashlib.sha256(data).hexdigest()),
        fresh=dataclasses.replace(scores, count=8) if task.parent else None,
        train=scores,
        validation=scores,
        factors=(made_up_factor("total", value=1.0, count=1), made_up_factor("atomic", value=2.0, count=4)),
        epochs=2,
        history=({"epoch": 1.0, "loss": 0.5},),
        timing=TIMING,
    )


def carry_out(task):
    """The made-up result of any task."""
    return {WalkTask: walk, SelectTask: select, LabelTask: label, TrainTask: train}[type(task)](task)


class MadeUpSteps:
    """Carries tasks out at once, but tells of their ends in a shuffled order, a few at a time."""

    def __init__(self, carry_out: Callable = carry_out, order: int | None = None, capacity: int = 100) -> None:
        self.carry_out, self.capacity_of_each = carry_out, capacity
        self.random = random.Random(order) if order is not None else None
        self.names: list[str] = []
        self._held: list[tuple[Future, object]] = []

    def capacity(self, work) -> int:
        return self.capacity_of_each

    def notices(self):
        return ()

    def submit(self, task, priority=0):
        self.names.append(task.task)
        future: Future = Future()
        if self.random is None:
            self._end(future, task)
            return future
        self._held.append((future, task))
        if len(self._held) >= 2 or isinstance(task, TrainTask | SelectTask):
            self._release()
        return future

    def poll(self) -> bool:
        """Give as ``stop_requested``: lets a few held tasks end whenever the loop looks."""
        self._release()
        return False

    def _release(self) -> None:
        assert self.random is not None
        self.random.shuffle(self._held)
        for _ in range(self.random.randint(1, 3)):
            if self._held:
                self._end(*self._held.pop())

    def _end(self, future, task) -> None:
        try:
            future.set_result(self.carry_out(task))
        except RuntimeError as error:
            future.set_exception(error)
