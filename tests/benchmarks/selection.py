"""Cost of selection: kernel methods on random features, duplicates of 22-atom structures, and the select task's steps.

python tests/benchmarks/selection.py [--smoke] [--ranks 2]; the last line is one JSON object.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
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

TEMPLATE = Path(__file__).parents[2] / "apps" / "templates" / "alanine-dipeptide" / "alanine-dipeptide.extxyz"


def best_of(repeats: int, work: Callable[[], Any]) -> float:
    """Shortest of several times, seconds."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def own_rows(spread: Spread, p: int) -> FloatArray:
    """(n, p) features of the candidates of this rank: those of a candidate do not depend on how many ranks there are."""
    numbers = np.unique(spread.items // BLOCK)
    rows = [np.random.default_rng([0, k]).normal(size=(min(BLOCK, spread.count - k * BLOCK), p)) for k in numbers]
    return np.concatenate([np.zeros((0, p)), *rows])


def time_kernels(n: int, m: int, p: int, picks: int, repeats: int, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Seconds per method for n candidates, m labels, p features, the first picks of each, and the memory it took."""
    spread = Spread.dealt(ranks, n)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pool = own_rows(spread, p)
    train = np.random.default_rng([1, 0]).normal(size=(m, p))[ranks.mine(np.arange(m))]
    methods: dict[str, Callable[[], list[int]]] = {
        "maxdiag": lambda: maxdiag(pool, picks, spread),
        "maxdet": lambda: maxdet(pool, picks, spread),
        "maxdist": lambda: maxdist(pool, train, picks, spread),
        "lcmd": lambda: lcmd(pool, train, picks, spread),
    }
    seconds = {name: best_of(repeats, work) for name, work in methods.items()}
    memory = max(ranks.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)) / 1024
    return {"seconds": seconds, "memory_MB": memory, "picks": {name: work() for name, work in methods.items()}}


def on_ranks(size: dict[str, int], repeats: int, ranks: int) -> dict[str, Any]:
    """:func:`time_kernels` by several ranks."""
    command = ["mpirun", "-n", str(ranks), "--bind-to", "none", "--oversubscribe", sys.executable, "-m", "mpi4py"]
    openmpi = {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_mpi_yield_when_idle": "1",
    }
    done = subprocess.run(
        [*command, __file__, "--rank", json.dumps({**size, "repeats": repeats})],
        env={**os.environ, "OMP_NUM_THREADS": "1", **openmpi},
        stdout=subprocess.PIPE,
        text=True,
        timeout=3600,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def one_rank(size: dict[str, int]) -> None:
    """What each rank does."""
    from mpi4py import MPI

    from pipeline.ranks import MPIRanks

    ranks = MPIRanks(MPI.COMM_WORLD)
    found = time_kernels(**size, ranks=ranks)
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
        "screening": best_of(repeats, lambda: [unphysical(frame) for frame in frames[:n]]),
        "duplicates": best_of(repeats, lambda: duplicates(frames[:n], frames[n:], tolerance_A=0.02)),
    }


def main() -> None:
    """Run, print a table, and end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small and quick, for CI")
    parser.add_argument(
        "--ranks", type=int, default=1, help="MPI ranks that share 20,000 candidates, kernel methods only"
    )
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.rank:
        one_rank(json.loads(chosen.rank))
        return
    smoke, repeats = chosen.smoke, 1 if chosen.smoke else 3
    size = {"n": 1000, "m": 100, "p": 64, "picks": 20} if smoke else {"n": 10_000, "m": 500, "p": 512, "picks": 100}
    structures = {"n": 100 if smoke else 1000, "m": 50 if smoke else 500}
    if chosen.ranks > 1:
        size["n"] *= 2
        found, alone = on_ranks(size, repeats, chosen.ranks), on_ranks(size, repeats, 1)
        assert found.pop("picks") == alone.pop("picks"), "several ranks pick others than one process"
        figures: dict[str, Any] = {"kernel": size, "ranks": {1: alone, chosen.ranks: found}}
        seconds = {**found["seconds"], **{f"{name}, alone": value for name, value in alone["seconds"].items()}}
        print(
            f"kernel methods: {size}, {chosen.ranks} ranks: {found['memory_MB']:.0f} MB each; alone {alone['memory_MB']:.0f}"
        )
    else:
        seconds = time_kernels(**size, repeats=repeats)["seconds"] | time_structures(**structures, repeats=repeats)
        figures = {"seconds": seconds, "kernel": size, "structures": structures}
        print(f"kernel methods: {size}; structures of 22 atoms: {structures}")
    for name, value in seconds.items():
        print(f"  {name:<16}{value:9.4f} s")
    print(json.dumps({"benchmark": "selection", "smoke": smoke, **figures, **provenance()}))


if __name__ == "__main__":
    main()
