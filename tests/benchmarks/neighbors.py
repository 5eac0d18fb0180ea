"""Neighbour rows of many walkers: built by vesin and by torch, rebuilt, replaced, moved.

python tests/benchmarks/neighbors.py [--smoke] [--structure FILE] [--walkers 64 ...] [--cutoff 6] [--skin 1] [--device cpu]

Rattled copies of one structure. On the CPU both builders take turns, in CPU time of one thread; elsewhere torch builds, and the
clock is read once the device has finished. The last line is one JSON object.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ase.io import read
from provenance import provenance
from walk import rattled

from pipeline.batching import bare_batch
from pipeline.frames import Frame
from pipeline.moving import MovingBatch
from pipeline.neighbors import neighbor_table

DEFAULT = Path(__file__).parents[2] / "apps" / "templates" / "mil53-al" / "mil53-al-large-pore.extxyz"


def milliseconds(action: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median time: of the CPU alone, or until another device has finished."""

    def once() -> float:
        if device.type == "cpu":
            started = time.process_time()
            action()
            return time.process_time() - started
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        action()
        torch.cuda.synchronize(device)
        return time.perf_counter() - started

    once()
    return 1e3 * statistics.median(once() for _ in range(repeats))


def measure(frames: list[Frame], asked: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Times of everything that is done to the rows of these walkers."""
    bare, sizes = bare_batch(frames, device), [len(frame) for frame in frames]
    moving = MovingBatch(frames, cutoff_A=asked.cutoff, skin_A=asked.skin, device=device)
    positions, cells, everyone = moving.batch.positions.clone(), moving.batch.cells.clone(), range(len(frames))
    reach = asked.cutoff + asked.skin

    def build(by_torch: bool) -> None:
        neighbor_table(bare.positions, bare.cells, bare.pbc, sizes, reach, by_torch=by_torch)

    def strain() -> None:
        moving.move(positions.clone(), cells.clone())
        moving.wear()

    actions: dict[str, Callable[[], Any]] = {
        "torch_ms": lambda: build(True),
        "rebuild_one_ms": lambda: moving.rebuild([0]),
        "rebuild_all_ms": lambda: moving.rebuild(everyone),
        "replace_one_ms": lambda: moving.replace({0: (frames[0], frames[0])}),
        "strain_and_wear_ms": strain,
    }
    if device.type == "cpu":
        actions = {"vesin_ms": lambda: build(False), **actions}
    times = {name: milliseconds(action, device, asked.repeats) for name, action in actions.items()}
    width = moving.batch.neighbors.shape[1]
    return {"walkers": len(frames), "atoms": sizes[0], "row_width": width, **times}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    parser.add_argument("--structure", type=Path, default=DEFAULT)
    parser.add_argument("--walkers", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--cutoff", type=float, default=6.0, help="Å")
    parser.add_argument("--skin", type=float, default=1.0, help="Å")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    asked = parser.parse_args()
    if asked.smoke:
        asked.walkers, asked.cutoff, asked.repeats = [2], 4.0, 1
    torch.set_num_threads(1)
    device, rows = torch.device(asked.device), []
    for count in asked.walkers:
        row = measure(rattled(read(asked.structure), count), asked, device)
        rows.append(row)
        print("  ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
    settings = {"structure": asked.structure.name, "cutoff_A": asked.cutoff, "skin_A": asked.skin}
    print(json.dumps({"benchmark": "neighbors", "sweep": rows, "settings": settings, **provenance()}))


if __name__ == "__main__":
    main()
