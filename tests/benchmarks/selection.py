"""Cost of selection: kernel methods on random features, duplicates of 22-atom structures, and the select task's steps.

python tests/benchmarks/selection.py [--smoke]; the last line is one JSON object.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.io import read
from provenance import provenance

from pipeline.frames import Frame
from pipeline.selection.dedupe import duplicates
from pipeline.selection.kernel import lcmd, maxdet, maxdiag, maxdist
from pipeline.selection.screening import unphysical

TEMPLATE = Path(__file__).parents[2] / "apps" / "templates" / "alanine-dipeptide" / "alanine-dipeptide.extxyz"


def best_of(repeats: int, work: Callable[[], Any]) -> float:
    """Shortest of several times, seconds."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def time_kernels(n: int, m: int, p: int, picks: int, repeats: int) -> dict[str, float]:
    """Seconds per method for n candidates, m labels, p features."""
    rng = np.random.default_rng(0)
    pool, train = rng.normal(size=(n, p)), rng.normal(size=(m, p))
    methods: dict[str, Callable[[], Any]] = {
        "maxdiag": lambda: maxdiag(pool, picks),
        "maxdet": lambda: maxdet(pool, picks),
        "maxdist": lambda: maxdist(pool, train, picks),
        "lcmd": lambda: lcmd(pool, train, picks),
    }
    return {name: best_of(repeats, work) for name, work in methods.items()}


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
    smoke = parser.parse_args().smoke
    torch.set_num_threads(1)
    size = {"n": 1000, "m": 100, "p": 64, "picks": 20} if smoke else {"n": 10_000, "m": 500, "p": 512, "picks": 100}
    repeats = 1 if smoke else 3
    structures = {"n": 100 if smoke else 1000, "m": 50 if smoke else 500}
    seconds = time_kernels(**size, repeats=repeats) | time_structures(**structures, repeats=repeats)
    print(f"kernel methods: {size}; structures of 22 atoms: {structures}")
    for name, value in seconds.items():
        print(f"  {name:<12}{value:9.4f} s")
    figures = {"seconds": seconds, "kernel": size, "structures": structures}
    print(json.dumps({"benchmark": "selection", "smoke": smoke, **figures, **provenance()}))


if __name__ == "__main__":
    main()
