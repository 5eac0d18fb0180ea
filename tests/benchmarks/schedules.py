"""What it buys to walk, label and train side by side: the same campaign in rounds and as a stream, by the clock.

python tests/benchmarks/schedules.py [--smoke] [--seeds 1 2 3] [--labels 128] [--schedules rounds streaming] [--cores 2]
    [--dir DIR] [--set KEY=VALUE] [--stream schedule.pool=200]

Alanine dipeptide, its force field slowed down to 2 to 20 s a label (log-uniform, a pure function of the geometry). One worker
walks, one trains and four label, which sleep, on two cores. Every published model is scored on frames of the reference's own
dynamics at 600 K, which no campaign sees: force RMSE against the time since the first label began (before, workers start). X is
the larger of the last errors of both; the ratio is the time after which rounds stay at X or below over that of the stream. With
--dir the campaigns are kept, and read where they are finished. The last line is one JSON object.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance

from apps.steps import open_steps
from pipeline.analysis.held_out import Sampling, held_out_set
from pipeline.campaign import Campaign
from pipeline.events import EndReason, LabelFailed, Labelled, Rejected, Selected, Trained, Walked
from pipeline.intake import open_campaign
from pipeline.potentials import load
from pipeline.records import Label, Timing
from pipeline.settings.labels import OpenMMReference
from pipeline.store import Store
from pipeline.training.scoring import score
from pipeline.utilisation import activity

HERE = Path(__file__).parent
TEMPLATE = HERE.parents[1] / "apps" / "templates" / "alanine-dipeptide" / "campaign.yaml"
SYSTEM = "alanine-dipeptide"
SCHEDULES = ("rounds", "streaming")
KINDS = ("walk", "label", "train", "select")
SLOTS = {"walk": 1, "label": 4, "train": 1, "select": 1}
"""Workers of each kind, one thread each."""
SITE = (
    f"site={{kind: local_htex, walk_slots: {SLOTS['walk']}, label_slots: {SLOTS['label']}, walk_threads: 1, "
    "label_threads: 1, train_threads: 1}"
)
SECONDS = (2.0, 20.0)
"""Shortest and longest time of a label."""
SMOKE_SECONDS = (0.2, 0.3)
LEVELS = (1.0, 1.25, 1.5, 2.0)
"""Errors at which times are compared, in units of X."""
SMOKE = (
    "labels.initial=8",
    "selection.batch=4",
    "walkers.count=4",
    "walkers.batch=4",
    "walkers.segment_steps=20",
    "walkers.store_every=5",
    "potential.hidden=[16]",
    "potential.channels=2",
    "training.epochs=4",
    "training.warm_epochs=2",
)


REGULAR = {
    EndReason.TARGET,
    EndReason.BUDGET,
    EndReason.MAX_ROUNDS,
    EndReason.MAX_WALL,
    EndReason.MAX_CPU,
    EndReason.MAX_GPU,
    EndReason.COVERAGE,
    EndReason.NOTHING_NEW,
}
"""Ends of campaigns that can be compared: nothing broke, and nobody stopped them."""
MOST_REASONS = 3
"""Reasons for idle workers of a kind that the table shows."""


def overrides_of(schedule: str, seed: int, options: argparse.Namespace) -> list[str]:
    """What one campaign changes in the template."""
    reference = open_campaign(TEMPLATE).settings.labels.reference
    assert isinstance(reference, OpenMMReference)
    arguments = {
        "topology": reference.topology,
        "force_field": reference.force_field,
        "seconds": SMOKE_SECONDS if options.smoke else SECONDS,
    }
    slow = {"kind": "ase", "calculator": "slow_force_field.SlowForceField", "reuse": True, "arguments": arguments}
    return [
        f"seed={seed}",
        f"labels.budget={options.labels}",
        f"labels.reference={json.dumps(slow)}",  # JSON is YAML
        SITE,
        f"schedule={{kind: {schedule}}}",
        *(SMOKE if options.smoke else ()),
        *options.set,
        *(options.stream if schedule == "streaming" else ()),
    ]


def run_one(place: Path, overrides: Sequence[str]) -> Store:
    """Run one campaign, or find it finished.

    Raises:
        SystemExit: it was begun and not finished, how long it takes cannot be told any more; or it broke.
    """
    if (place / "events.jsonl").is_file():
        store = Store.open(place)
        print(f"  {place.name}: there before", flush=True)
        return ended(store)
    intake = open_campaign(TEMPLATE, overrides)
    campaign = Campaign.create_or_open(intake.settings, intake.frames, place)
    with open_steps(intake.settings.site, campaign.store.runinfo) as steps:
        print(f"  {place.name}: {campaign.run(steps).message}", flush=True)
    return ended(campaign.store)


def ended(store: Store) -> Store:
    """A campaign that came to a regular end.

    Raises:
        SystemExit: it did not.
    """
    stopped = store.state().stopped
    if stopped is None or stopped.reason not in REGULAR:
        why = "begun and not finished" if stopped is None else f"not finished: {stopped.message}"
        raise SystemExit(f"{store.root}: {why}; remove it, or give another --dir")
    return store


def curve_of(store: Store, held_out: Sequence[Label]) -> list[dict[str, Any]]:
    """Each published model: when, from how many labels, and its errors."""
    events, rows = store.events(), []
    began = min(event.timing.started for event in events if isinstance(event, Labelled))
    for event in events:
        if isinstance(event, Trained):
            scores = score(load(store.absolute(event.file).path, event.file.sha256), held_out)
            assert scores is not None
            rows.append(
                {
                    "version": event.version,
                    "seconds": event.time - began,
                    "labels": event.labels,
                    "force_rmse_eV_per_A": scores.force_rmse,
                    "energy_rmse_meV_per_atom": 1000 * scores.energy_rmse,
                }
            )
    return rows


def busy_of(store: Store) -> dict[str, Any]:
    """Share of the time from the beginning of the first label to the end of the last in which slots had a task."""
    spans: dict[str, list[Timing]] = {kind: [] for kind in KINDS}
    for event in store.events():
        match event:
            case Walked():
                spans["walk"].append(event.timing)
            case Labelled():
                spans["label"].append(event.timing)
            case Trained() | Rejected():
                spans["train"].append(event.timing)
            case Selected(timing=Timing() as timing) | LabelFailed(timing=Timing() as timing):
                spans["select" if isinstance(event, Selected) else "label"].append(timing)
            case _:
                pass
    first = min(timing.started for timing in spans["label"])
    last = max(timing.ended for timing in spans["label"])
    held = {
        kind: sum(max(0.0, min(timing.ended, last) - max(timing.started, first)) for timing in timings)
        for kind, timings in spans.items()
    }
    return {
        "labelling_s": last - first,
        "busy": {kind: seconds / (SLOTS[kind] * (last - first)) for kind, seconds in held.items()},
    }


def idle_of(store: Store) -> dict[str, dict[str, float]]:
    """Why workers had no task: of each kind the share of the time of its slots from the first to the last label, by reason."""
    found = activity(store.reading()).utilisation(None).labelling
    return {
        use.workers.name: {reason: seconds / use.slot_s for reason, seconds in use.idle_s.items()}
        for use in found
        if use.slot_s
    }


def reached(curve: Sequence[dict[str, Any]], error: float) -> float | None:
    """When force errors were at or below this for good, seconds; None: they were not."""
    found = None
    for row in reversed(curve):
        if row["force_rmse_eV_per_A"] > error:
            break
        found = row["seconds"]
    return found


def compared(curves: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """X, the ratio of times there, and at larger errors."""
    rounds, streaming = (curves[name] for name in SCHEDULES)
    error = max(curve[-1]["force_rmse_eV_per_A"] for curve in (rounds, streaming))
    levels = []
    for level in LEVELS:
        slow, fast = (reached(curve, level * error) for curve in (rounds, streaming))
        assert slow is not None
        assert fast is not None
        levels.append({"level": level, "rounds_s": slow, "streaming_s": fast, "ratio": slow / fast})
    return {"force_rmse_eV_per_A": error, "ratio": levels[0]["ratio"], "levels": levels}


def measure(root: Path, seed: int, options: argparse.Namespace, held_out: Sequence[Label]) -> dict[str, Any]:
    """The campaigns of one seed, one after the other, and how they compare."""
    campaigns = {}
    for schedule in options.schedules:
        store = run_one(root / f"seed{seed}-{schedule}", overrides_of(schedule, seed, options))
        state = store.state()
        assert state.stopped is not None
        end = {"reason": state.stopped.reason, "message": state.stopped.message, "labels_spent": state.spent}
        campaigns[schedule] = {
            **end,
            **busy_of(store),
            "idle": idle_of(store),
            "models": curve_of(store, held_out),
        }
    result = {"seed": seed, "campaigns": campaigns}
    if set(campaigns) == set(SCHEDULES):
        result |= compared({name: campaign["models"] for name, campaign in campaigns.items()})
    return result


def show(results: Sequence[dict[str, Any]]) -> None:
    """A row per campaign, the ratio per seed, and its mean."""
    heads = ("schedule", "seed", "labels", "models", "seconds", "F eV/Å", *KINDS)
    print("".join(f"{head:>10}" for head in heads))
    for result in results:
        for name, campaign in result["campaigns"].items():
            last = campaign["models"][-1]
            busy = "".join(f"{campaign['busy'][kind]:>10.0%}" for kind in KINDS)
            print(
                f"{name:>10}{result['seed']:>10}{last['labels']:>10}{len(campaign['models']):>10}{last['seconds']:>10.0f}"
                f"{last['force_rmse_eV_per_A']:>10.4f}{busy}"
            )
            for kind, reasons in campaign["idle"].items():
                most = sorted(reasons.items(), key=lambda one: -one[1])[:MOST_REASONS]
                if most:
                    print(f"{'':>10}{kind} idle: {', '.join(f'{share:.0%} {reason}' for reason, share in most)}")
        if "ratio" in result:
            times = ", ".join(
                f"{row['level'] * result['force_rmse_eV_per_A']:.4f} eV/Å: {row['rounds_s']:.0f} / {row['streaming_s']:.0f} s "
                f"= {row['ratio']:.2f}"
                for row in result["levels"]
            )
            print(f"  seed {result['seed']}: {times}")
    if ratios := [result["ratio"] for result in results if "ratio" in result]:
        print(f"  ratio of times to the same error: mean {np.mean(ratios):.2f} of {len(ratios)} seeds")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny campaigns and short labels, for CI")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--labels", type=int, default=128)
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=list(SCHEDULES))
    parser.add_argument("--cores", type=int, default=2, help="cores that all processes share")
    parser.add_argument("--dir", type=Path, default=None)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--stream", action="append", default=[], metavar="KEY=VALUE", help="--set for streaming alone")
    options = parser.parse_args()
    if options.smoke:
        options.seeds, options.labels = [1], 16
    return options


def main() -> None:
    """Run, print a table, and end with one JSON line."""
    options = parsed()
    cores = sorted(os.sched_getaffinity(0))[: options.cores]
    os.sched_setaffinity(0, cores)  # workers inherit it
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # where they find the reference
    intake = open_campaign(TEMPLATE)
    short = {"frames": 4, "runs": 2, "spacing_ps": 0.02, "equilibration_ps": 0.02}
    sampling = Sampling(**short) if options.smoke else Sampling()
    with tempfile.TemporaryDirectory() as temporary:
        root = (options.dir or Path(temporary)).absolute()
        root.mkdir(parents=True, exist_ok=True)
        file = root / "held-out.h5"
        held_out = held_out_set(intake.settings.labels.reference, intake.frames[SYSTEM], sampling, file)
        results = [measure(root, seed, options, held_out) for seed in options.seeds]
    show(results)
    ratios = [result["ratio"] for result in results if "ratio" in result]
    facts: dict[str, Any] = {
        "labels": options.labels,
        "set": options.set,
        "stream": options.stream,
        "slots": SLOTS,
        "cores_used": len(cores),
    }
    facts["label_seconds"] = SMOKE_SECONDS if options.smoke else SECONDS
    facts |= {"held_out_frames": len(held_out), "mean_ratio": float(np.mean(ratios)) if ratios else None}
    print(json.dumps({"benchmark": "schedules", "smoke": options.smoke, **facts, "results": results, **provenance()}))


if __name__ == "__main__":
    main()
