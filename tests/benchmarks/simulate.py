"""The driver on a large machine, by a virtual clock: are the GPUs busy, and what does a decision cost?

python tests/benchmarks/simulate.py [--smoke] [--tasks 1000000]; the last line is one JSON object.

Policy, loop and state are those of real campaigns; tasks take the times that others published (DFT 355 s, sampling 204 s,
training 261 s, log-normal with σ = 0.3) and half of the candidates need no label; files are left out. Times of decisions are
CPU times of this machine, with all that the simulation does besides.

balanced: 450 nodes, of which 94 with 4 GPUs walk and train and 356 label, 8 labels a node, in a stream of so many tasks. What
GPUs lose is the time of their jobs in which they have no task.
outstanding: a stream with more than 10,000 labels under way.
"""

import argparse
import json
import time
from dataclasses import asdict
from typing import Any

from provenance import provenance

from pipeline.settings.campaign import CampaignSettings
from pipeline.simulation.campaign import Report, simulate
from pipeline.simulation.durations import Around, Durations, EvenSegments, stored

WALK_NODES, LABEL_NODES, GPUS = 94, 356, 4
TASKS_PER_LABEL = 1.32
"""With 8 candidates a segment, half of them known, there are this many tasks for each label."""


def settings(labels: int, *, walk_nodes: int, label_nodes: int, labels_per_node: int, segment: int) -> CampaignSettings:
    """A stream on so many nodes, whose batches of 8 walkers find 8 candidates per ``segment`` of hundred steps."""
    slots = label_nodes * labels_per_node
    job = {"walltime": "7-00:00:00", "drain": "01:00:00", "cores_per_node": 128, "nodes_per_block": 1}
    return CampaignSettings.model_validate(
        {
            "name": "simulated",
            "seed": 1,
            "systems": [{"name": "a", "structures": ["unused.xyz"]}],
            "labels": {"reference": {"kind": "emt"}, "budget": labels, "initial": min(64, labels)},
            "walkers": {
                "count": 8 * GPUS * walk_nodes,
                "batch": 8,
                "segment_steps": 100 * segment,
                "store_every": 100,
            },
            "schedule": {"kind": "streaming", "pool": max(1000, 4 * slots)},
            "site": {
                "kind": "slurm",
                "walk": {**job, "max_blocks": walk_nodes, "gpus_per_node": GPUS, "cores_per_worker": 32},
                "label": {**job, "max_blocks": label_nodes, "cores_per_worker": 128 // labels_per_node},
            },
        }
    )


def run(chosen: CampaignSettings) -> tuple[Report, float]:
    """The simulation of a campaign, and what it took, seconds."""
    durations = Durations(
        walk=EvenSegments(seconds=Around(mean_s=204.0), candidates=stored(chosen)),
        label=Around(mean_s=355.0),
        select=Around(mean_s=10.0),
        train=Around(mean_s=261.0),
    )
    began = time.perf_counter()
    report = simulate(chosen, durations)
    return report, time.perf_counter() - began


def figures(name: str, report: Report, seconds: float) -> dict[str, Any]:
    """One case as a table row and as plain values."""
    busy = {one.label: one.busy for one in report.workers}
    took = report.decisions
    print(
        f"{name}: {report.tasks} tasks, {report.wall_s / 3600:.1f} h simulated in {seconds:.0f} s; busy between first and "
        f"last label: {', '.join(f'{label} {share:.2%}' for label, share in busy.items())}"
    )
    print(
        f"  a decision: {took.mean_ms:.3f} ms (99 %: {took.p99_ms:.3f}); with {took.most_open} tasks under way "
        f"{took.mean_at_most_ms:.3f} ms (99 %: {took.p99_at_most_ms:.3f}); first tenth {took.first_ms:.3f}, last "
        f"{took.last_ms:.3f} ms"
    )
    for one in report.idle[:6]:
        print(f"  {one.work} idle {one.share:.2%} of all slots: {one.reason}")
    return {"seconds": seconds, "growth": took.last_ms / took.first_ms, **asdict(report)}


def main() -> None:
    """Run, print a table, and end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="few tasks, for CI")
    parser.add_argument("--tasks", type=int, default=1_000_000)
    options = parser.parse_args()
    scale = 20 if options.smoke else 1
    tasks = 5000 if options.smoke else options.tasks
    balanced = settings(
        round(tasks / TASKS_PER_LABEL),
        walk_nodes=max(1, WALK_NODES // scale),
        label_nodes=LABEL_NODES // scale,
        labels_per_node=8,
        segment=1,
    )
    outstanding = settings(
        max(tasks // 5, 1000),
        walk_nodes=max(2, 60 // scale),
        label_nodes=340 // scale,
        labels_per_node=32,
        segment=10,
    )
    found = {
        name: figures(name, *run(chosen)) for name, chosen in (("balanced", balanced), ("outstanding", outstanding))
    }
    print(json.dumps({"benchmark": "simulate", "smoke": options.smoke, **found, **provenance()}))


if __name__ == "__main__":
    main()
