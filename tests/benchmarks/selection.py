"""Cost of selection: kernel methods on random features, duplicates of 22-atom structures, and the select task's steps.

python tests/benchmarks/selection.py [--smoke] [--ranks 2] [--device cuda] [--candidates 1000000 --features 64 --picks 1000
--methods maxdet maxdist]; the last line is one JSON object.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.io import read
from provenance import provenance

from pipeline.frames import FloatArray, Frame
from pipeline.ranks import ALONE, Ranks
from pipeline.selection.dedupe import duplicates
from pipeline.selection.kernel import lcmd, maxdet, maxdiag, maxdist
from pipeline.selection.screening import unphysical
from pipeline.selection.spread import BLOCK, Spread

METHODS = ("maxdiag", "maxdet", "maxdist", "lcmd")
TEMPLATE = Path(__file__).parents[2] / "apps" / "templates" / "alanine-dipeptide" / "alanine-dipeptide.extxyz"


def best_of(repeats: int, work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Shortest of several times, seconds by the clock and of the processor, and what came out."""
    clock, processor, found = [], [], None
    for _ in range(repeats):
        started, busy = time.perf_counter(), time.process_time()
        found = work()
        clock.append(time.perf_counter() - started)
        processor.append(time.process_time() - busy)
    return min(clock), min(processor), found


def own_rows(spread: Spread, p: int) -> FloatArray:
    """(n, p) features of the candidates of this rank: those of a candidate do not depend on how many ranks there are."""
    numbers = np.unique(spread.items // BLOCK)
    rows, done = np.empty((len(spread.items), p)), 0
    for k in numbers:
        block = np.random.default_rng([0, k]).normal(size=(min(BLOCK, spread.count - k * BLOCK), p))
        rows[done : done + len(block)] = block
        done += len(block)
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """n candidates, m labels, p features, how many picks by which methods, what computes, and how often each is timed."""

    n: int
    m: int
    p: int
    picks: int
    methods: tuple[str, ...] = METHODS
    device: str = "cpu"
    precision: str = "float64"
    repeats: int = 3


def time_kernels(case: Case, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Seconds per method, the memory it took beyond the features, and the picks."""
    spread = Spread.dealt(ranks, case.n)
    pool = own_rows(spread, case.p).astype(case.precision, copy=False)
    train = np.random.default_rng([1, 0]).normal(size=(case.m, case.p))[ranks.mine(np.arange(case.m))]
    train = train.astype(case.precision, copy=False)
    before, features = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, pool.nbytes / 2**20
    work: dict[str, Callable[[], list[int]]] = {
        "maxdiag": lambda: maxdiag(pool, case.picks, spread, case.device),
        "maxdet": lambda: maxdet(pool, case.picks, spread, case.device),
        "maxdist": lambda: maxdist(pool, train, case.picks, spread, case.device),
        "lcmd": lambda: lcmd(pool, train, case.picks, spread, case.device),
    }
    seconds: dict[str, float] = {}
    processor: dict[str, float] = {}
    picks: dict[str, list[int]] = {}
    for name in case.methods:
        seconds[name], processor[name], picks[name] = best_of(case.repeats, work[name])
    memory = max(ranks.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)) / 1024
    return {
        "seconds": seconds,
        "processor_s": processor,
        "features_MB": features,
        "memory_MB": memory,
        "gpu_memory_MB": torch.cuda.max_memory_allocated() / 2**20 if case.device.startswith("cuda") else 0.0,
        "picks": picks,
    }


def on_ranks(case: Case, ranks: int) -> dict[str, Any]:
    """:func:`time_kernels` by several ranks."""
    command = ["mpirun", "-n", str(ranks), "--bind-to", "none", "--oversubscribe", sys.executable, "-m", "mpi4py"]
    openmpi = {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_mpi_yield_when_idle": "1",
    }
    done = subprocess.run(
        [*command, __file__, "--rank", json.dumps(asdict(case))],
        env={**os.environ, "OMP_NUM_THREADS": "1", **openmpi},
        stdout=subprocess.PIPE,
        text=True,
        timeout=3600,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def one_rank(case: Case) -> None:
    """What each rank does."""
    from mpi4py import MPI

    from pipeline.ranks import MPIRanks

    ranks = MPIRanks(MPI.COMM_WORLD)
    found = time_kernels(case, ranks)
    if ranks.first:
        print(json.dumps(found))


def time_structures(n: int, m: int, repeats: int) -> dict[str, float]:
    """Seconds to screen n candidates, and to compare them with m labels and each other."""
    rng = np.random.default_rng(1)
    start = Frame.from_atoms(read(TEMPLATE), system="x")
    frames = [
        Frame(
            numbers=start.numbers,
            positions=start.positions + rng.normal(scale=0.1, size=start.positions.shape),
            cell=start.cell,
            pbc=start.pbc,
            system="x",
        )
        for _ in range(n + m)
    ]
    return {
        "screening": best_of(repeats, lambda: [unphysical(frame) for frame in frames[:n]])[0],
        "duplicates": best_of(repeats, lambda: duplicates(frames[:n], frames[n:], tolerance_A=0.02))[0],
    }


def arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small and quick, for CI")
    parser.add_argument("--ranks", type=int, default=1, help="MPI ranks that share twice as many candidates")
    parser.add_argument("--device", default="cpu", help="what computes")
    parser.add_argument("--candidates", type=int, default=10_000)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--picks", type=int, default=100)
    parser.add_argument("--precision", choices=("float64", "float32"), default="float64")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run, print a table, and end with one JSON line."""
    chosen = arguments()
    torch.set_num_threads(1)
    if chosen.rank:
        one_rank(Case(**json.loads(chosen.rank)))
        return
    smoke = chosen.smoke
    case = Case(
        n=1000 if smoke else chosen.candidates,
        m=100 if smoke else 500,
        p=64 if smoke else chosen.features,
        picks=20 if smoke else chosen.picks,
        methods=tuple(chosen.methods),
        device=chosen.device,
        precision=chosen.precision,
        repeats=1 if smoke else chosen.repeats,
    )
    structures = {"n": 100 if smoke else 1000, "m": 50 if smoke else 500}
    if chosen.ranks > 1:
        case = replace(case, n=2 * case.n)
        found, alone = on_ranks(case, chosen.ranks), on_ranks(case, 1)
        assert found.pop("picks") == alone.pop("picks"), "several ranks pick others than one process"
        figures: dict[str, Any] = {"ranks": {1: alone, chosen.ranks: found}}
        seconds = {**found["seconds"], **{f"{name}, alone": value for name, value in alone["seconds"].items()}}
        print(f"{case}, {chosen.ranks} ranks: {found['memory_MB']:.0f} MB each; alone {alone['memory_MB']:.0f}")
    else:
        kernels = time_kernels(case)
        del kernels["picks"]
        seconds = kernels["seconds"] | time_structures(**structures, repeats=case.repeats)
        figures = {**kernels, "seconds": seconds, "structures": structures}
        print(f"{case}; structures of 22 atoms: {structures}")
        print(f"features {kernels['features_MB']:.0f} MB, at most {kernels['memory_MB']:.0f} MB beside them")
    for name, value in seconds.items():
        print(f"  {name:<16}{value:9.4f} s")
    print(json.dumps({"benchmark": "selection", "smoke": smoke, "kernel": asdict(case), **figures, **provenance()}))


if __name__ == "__main__":
    main()
