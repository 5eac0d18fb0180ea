"""What ranks compute in the tests here: ``mpirun -n RANKS python -m mpi4py rank_cases.py DIRECTORY``; also by one process.

Every rank writes what it found to DIRECTORY/RANK.json.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_data import copper, labelled, later_select_task, pool, potential, select_task, train_task

from pipeline.mpi import carry_out
from pipeline.node import ANYWHERE
from pipeline.ranks import Ranks
from pipeline.records import Split
from pipeline.selection.dedupe import duplicates
from pipeline.selection.methods import pick
from pipeline.selection.spread import Spread
from pipeline.settings.launch import LaunchSettings
from pipeline.settings.selection import SelectionSettings
from pipeline.settings.training import GateSettings, TrainingSettings
from pipeline.settings.uncertainty import FeatureUncertaintySettings
from pipeline.shards import read_candidates
from pipeline.training.calibrate import calibrated_model
from pipeline.training.dataset import LabelSet
from pipeline.training.distributed import gradient_sum
from pipeline.training.gate import gate
from pipeline.training.trainer import Schedule, Trainer

METHODS = ("maxdet", "maxdist", "lcmd", "maxdiag", "random")
SIZES = ((0, 5), (1, 0), (1, 5), (3, 2), (150, 0), (400, 61))
"""Candidates and labelled structures."""
COUNT = 40
CURVES = (
    (torch.float64, 4, 2.0, 20),
    (torch.float64, 1, 2.0, 5),
    (torch.float64, 4, 0.6, 5),
    (torch.float64, 4, 0.0, 5),
    (torch.float32, 4, 2.0, 20),
)
"""Precision, structures per batch, memory for constants over what they need, epochs."""


def clustered(n: int, p: int, seed: int) -> np.ndarray:
    """Features as walkers give them: lumps of very different sizes, and fewer dimensions than there are picks."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(6, p)) * rng.uniform(0.5, 3.0, size=(6, 1))
    return centres[rng.integers(6, size=n)] + 0.3 * rng.normal(size=(n, p))


def picks(ranks: Ranks) -> dict[str, list[int]]:
    """The picks of all methods from pools of all sizes, a part of which fell away before."""
    found = {}
    for n, m in SIZES:
        whole, known = clustered(n, 24, n), clustered(m, 24, m + 1000)
        dealt = Spread.dealt(ranks, n)
        places = np.flatnonzero(dealt.items % 10 != 9)
        kept = dealt.kept(places)
        rows, part = whole[dealt.items[places]], known[ranks.mine(np.arange(m))]
        for kind in METHODS if kept.count else ():
            settings = SelectionSettings.model_validate({"kind": kind})
            found[f"{kind} {n} {m}"] = pick(settings, rows, part, kept, count=COUNT, seed=3)
    return found


def same(ranks: Ranks) -> dict[str, list[int]]:
    """Numbers of the candidates that are there already."""
    found = {}
    for n, tolerance_A in ((0, 0.02), (1, 0.02), (300, 0.02), (300, 0.0)):
        frames = [one.frame for one in pool(n) if np.isfinite(one.frame.positions).all()]
        known = [label.frame for label in labelled(7)] + frames[:3]
        spread = Spread.dealt(ranks, len(frames))
        part = [known[k] for k in ranks.mine(np.arange(len(known)))]
        flags = duplicates([frames[k] for k in spread.items], part, tolerance_A=tolerance_A, spread=spread).same
        items = np.sort(np.concatenate(ranks.gather(spread.items[flags])))
        found[f"{n} {tolerance_A}"] = items.tolist()
    return found


def curves(ranks: Ranks) -> dict[str, Any]:
    """Loss and validation error of trainings, and the weights at their end.

    Batches of 3 and 4 that two and three ranks share unevenly, a batch of 1 that most have no part in, and constants that are
    kept as a whole, dealt out, and computed for each minibatch.
    """
    labels, validation = copper(11), copper(3, seed=1)
    found: dict[str, Any] = {}
    for dtype, batch, share, epochs in CURVES:
        trained = potential(labels, dtype)
        cache_bytes = int(share * LabelSet(labels, trained)._constant_bytes())
        sets = LabelSet(labels, trained, cache_bytes, ranks), LabelSet(validation, trained, ranks=ranks)
        rows: list[dict[str, float]] = []
        settings = TrainingSettings(batch=batch, validate_every=5)
        with gradient_sum(ranks) as sum_gradients:
            trainer = Trainer(
                trained, *sets, settings=settings, seed=5, report=rows.append, sum_gradients=sum_gradients
            )
            outcome = trainer.run(Schedule(epochs=epochs, rate=1.0))
        weights = torch.cat([p.detach().double().reshape(-1) for p in trained.parameters()])
        found[f"{dtype} batch {batch} cache {share}"] = {
            "loss": [row["loss"] for row in rows],
            "score": [row["score"] for row in outcome.history],
            "weights": weights.tolist(),
        }
    return found


def tasks(ranks: Ranks) -> dict[str, Any]:
    """Whole tasks: pools with several, one and no candidate, some of them kept earlier; two labels, fewer than three ranks."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as own:
        directory, launch = Path(ranks.broadcast(own)), LaunchSettings()
        for count in (300, 1, 0):
            task = None
            if ranks.first:
                task = select_task(directory / str(count), pool(count), launch, kind="lcmd", max_candidates=200)
            result = carry_out(ranks.broadcast(task), ANYWHERE, ranks)
            found[f"select {count}"] = [[pick.step for pick in read_candidates(result.picks)], result.dropped]
        task = later_select_task(directory / "later", pool(300), launch) if ranks.first else None
        later = carry_out(ranks.broadcast(task), ANYWHERE, ranks)
        steps = [one.step for one in read_candidates(later.picks)]
        found["select later"] = [steps, later.count, later.saved, later.dropped]
        trained = carry_out(
            ranks.broadcast(train_task(directory / "train", copper(2), launch) if ranks.first else None),
            ANYWHERE,
            ranks,
        )
        found["train 2"] = [row["loss"] for row in trained.history]
        found["train short"] = stopped_by_the_clock(ranks, directory / "short")
        ranks.gather(None)  # nobody removes what another one reads
    return found


def stopped_by_the_clock(ranks: Ranks, directory: Path) -> bool:
    """Whether a training whose ranks begin one after another ends by its time limit."""
    task = None
    if ranks.first:
        settings = TrainingSettings(epochs=100_000, batch=4, max_s=3.0, patience=0)
        task = train_task(directory, copper(6), LaunchSettings(), settings=settings)
    task = ranks.broadcast(task)
    time.sleep(0.5 * ranks.rank)
    return carry_out(task, ANYWHERE, ranks).epochs < 100_000


def gates(ranks: Ranks) -> dict[str, Any]:
    """The report on a model that is worse than its parent, by more validation labels than one rank scores at a time."""
    labels = [replace(label, split=Split.VALIDATION) for label in copper(150)]
    drawn = [potential(labels[:9], seed=seed) for seed in (0, 1)]
    with torch.no_grad():
        drawn[1].scale.mul_(30.0)
    parent, other = (calibrated_model([one], labels[:9], [], FeatureUncertaintySettings(), 1) for one in drawn)
    with tempfile.TemporaryDirectory() as own:
        directory = Path(ranks.broadcast(own))
        task = ranks.broadcast(train_task(directory / "gate", labels[:1], LaunchSettings()) if ranks.first else None)
        report = gate(parent, other, labels, task, GateSettings(walkers=2, steps=10), ranks)
        ranks.gather(None)
    return json.loads(json.dumps(asdict(report)))


CASES: dict[str, Callable[[Ranks], Any]] = {
    "picks": picks,
    "same": same,
    "curves": curves,
    "tasks": tasks,
    "gates": gates,
}

if __name__ == "__main__":
    from mpi4py import MPI

    from pipeline.ranks import MPIRanks

    torch.set_num_threads(1)
    here = MPIRanks(MPI.COMM_WORLD)
    found = {case: compute(here) for case, compute in CASES.items()}
    Path(sys.argv[1], f"{here.rank}.json").write_text(json.dumps(found))
