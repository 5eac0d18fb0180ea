"""What the bias buys: the alanine dipeptide campaign with the template's tau and with tau = 0, from the same seeds.

python tests/benchmarks/exploration.py [--smoke] [--seeds 1 2 3] [--labels 512] [--dir DIR] [--set KEY=VALUE]

Errors are on frames of the reference's own dynamics at 600 K, which no campaign sees. With --dir the campaigns are kept (and
taken up again), and figures are drawn. The last line is one JSON object.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from provenance import provenance

from pipeline.analysis.held_out import Sampling, held_out_set
from pipeline.campaign import Campaign
from pipeline.inline import InlineSteps
from pipeline.intake import open_campaign
from pipeline.monitor.figures import error_figure, plane_figure
from pipeline.monitor.tables import RoundRow, fresh_coverage, round_rows
from pipeline.records import Label
from pipeline.store import Store

TEMPLATE = Path(__file__).parents[2] / "apps" / "templates" / "alanine-dipeptide" / "campaign.yaml"
SYSTEM = "alanine-dipeptide"
TAUS = (0.0, 0.25)
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


def run_one(place: Path, overrides: list[str]) -> tuple[Store, float]:
    """Run (or finish) one campaign in this process; returns it and the seconds it took."""
    intake = open_campaign(TEMPLATE, [*overrides, "site={kind: inline}"])
    campaign = Campaign.create_or_open(intake.settings, intake.frames, place)
    started = time.perf_counter()
    with InlineSteps() as steps:
        print(f"  {place.name}: {campaign.run(steps).message}", flush=True)
    return campaign.store, time.perf_counter() - started


def figures_of(row: RoundRow) -> dict[str, Any]:
    """A row as plain values."""
    assert row.held_out is not None
    return {
        "labels": row.labels,
        "coverage": row.explored[SYSTEM],
        "coverage_labels": row.labelled[SYSTEM],
        "energy_rmse_meV_per_atom": 1000 * row.held_out.energy_rmse,
        "force_rmse_eV_per_A": row.held_out.force_rmse,
    }


def compare(root: Path, seeds: list[int], overrides: list[str], held_out: list[Label]) -> list[dict[str, Any]]:
    """Run all campaigns; one entry each."""
    results = []
    for seed in seeds:
        series = {}
        for tau in TAUS:
            name = f"seed{seed}-tau{tau:g}"
            store, seconds = run_one(root / name, [*overrides, f"seed={seed}", f"walkers.bias.tau={tau}"])
            rows = round_rows(store, held_out)
            share, interval, trials = fresh_coverage(rows)
            fresh = {"share": share, "interval": interval, "trials": trials}
            results.append(
                {"seed": seed, "tau": tau, "seconds": seconds, "fresh": fresh, "rows": [figures_of(r) for r in rows]}
            )
            series[f"τ = {tau:g}"] = rows
            plane_figure(store, root / f"{name}.png")
        error_figure(series, root / f"seed{seed}-errors.png")
    return results


def show(results: list[dict[str, Any]]) -> None:
    """Print about five label counts of every campaign."""
    print(f"{'seed':>5}{'tau':>6}{'labels':>8}{'coverage':>10}{'(labels)':>10}{'E meV/atom':>12}{'F eV/Å':>9}")
    for result in results:
        rows = result["rows"]
        picked = sorted({round(k * (len(rows) - 1) / 4) for k in range(5)})
        for row in (rows[k] for k in picked):
            print(
                f"{result['seed']:>5}{result['tau']:>6g}{row['labels']:>8}{row['coverage']:>10.3f}"
                f"{row['coverage_labels']:>10.3f}{row['energy_rmse_meV_per_atom']:>12.2f}{row['force_rmse_eV_per_A']:>9.4f}"
            )


def main() -> None:
    """Run, print a table, and end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny campaigns, for CI")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--labels", type=int, default=512)
    parser.add_argument("--dir", type=Path, default=None)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    seeds, labels = ([1], 12) if options.smoke else (options.seeds, options.labels)
    overrides = [f"labels.budget={labels}", *(SMOKE if options.smoke else ()), *options.set]
    intake = open_campaign(TEMPLATE)
    short = {"frames": 4, "runs": 2, "spacing_ps": 0.02, "equilibration_ps": 0.02}
    sampling = Sampling(**short) if options.smoke else Sampling()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.dir or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        file = root / "held-out.h5"
        held_out = held_out_set(intake.settings.labels.reference, intake.frames[SYSTEM], sampling, file)
        results = compare(root, seeds, overrides, held_out)
    show(results)
    facts = {"labels": labels, "overrides": overrides, "held_out_frames": len(held_out), "campaigns": results}
    print(json.dumps({"benchmark": "exploration", "smoke": options.smoke, **facts, **provenance()}))


if __name__ == "__main__":
    main()
