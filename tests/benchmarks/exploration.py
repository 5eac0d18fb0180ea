"""What the bias buys: alanine dipeptide explored in several ways from the same seeds, beside the published figures.

python tests/benchmarks/exploration.py [--smoke] [--variants NAME ...] [--seeds 1 2 3] [--labels 512] [--dir DIR]
    [--set KEY=VALUE]

Errors are on frames of the reference's own dynamics at 600 K, which no campaign sees. With --dir the campaigns are kept, taken
up where they stopped, read where they are finished, and figures are drawn. The last line is one JSON object.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance

from pipeline.analysis.held_out import Sampling, held_out_set
from pipeline.campaign import Campaign
from pipeline.events import EndReason
from pipeline.inline import InlineSteps
from pipeline.intake import open_campaign
from pipeline.monitor.figures import error_figure, plane_figure
from pipeline.monitor.tables import RoundRow, fresh_coverage, round_rows
from pipeline.records import Label
from pipeline.store import Store

TEMPLATE = Path(__file__).parents[2] / "apps" / "templates" / "alanine-dipeptide" / "campaign.yaml"
SYSTEM = "alanine-dipeptide"
VARIANTS: dict[str, tuple[str, ...]] = {
    "biased-300": (
        "walkers.bias.tau=0.25",
        "walkers.bias.species_weights={H: 0.0}",
        "walkers.temperatures_K=[300.0]",
    ),
    "unbiased-300": ("walkers.bias.tau=0", "walkers.temperatures_K=[300.0]"),
    "unbiased-600": ("walkers.bias.tau=0", "walkers.temperatures_K=[600.0]"),
    "unbiased-1200": ("walkers.bias.tau=0", "walkers.temperatures_K=[1200.0]"),
    # hills as in the textbook example of this molecule: 0.35 rad wide, 1.2 kJ/mol high
    "metadynamics-300": (
        "walkers.bias.tau=0",
        "walkers.temperatures_K=[300.0]",
        "walkers.metadynamics={variables: [phi, psi], widths: [20.0, 20.0], height_eV: 0.012, every: 100}",
    ),
}
PUBLISHED: dict[str, dict[int, tuple[float, float, float | None]]] = {
    "unbiased-300": {
        104: (0.53, 29.7, None),
        200: (0.56, 22.8, 0.170),
        336: (0.56, 33.9, 0.168),
        512: (0.57, 23.8, 0.116),
    },
    "biased-300": {
        104: (0.48, 23.5, 0.249),
        200: (0.85, 19.8, 0.160),
        336: (0.90, 2.0, 0.091),
        512: (0.94, 1.5, 0.068),
    },
}
"""Zaverkin et al. 2024, one seed: labels -> coverage, energy RMSE in meV/atom, force RMSE in eV/Å."""
COUNTS = (104, 200, 336, 512)
"""Numbers of labels that were published."""
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
SMOKE_HILLS = "walkers.metadynamics.every=5"


def run_one(place: Path, overrides: list[str]) -> tuple[Store, float]:
    """Run (or finish, or find finished) one campaign in this process; returns it and the seconds that took."""
    intake = open_campaign(TEMPLATE, [*overrides, "site={kind: inline}"])
    if is_finished(place, intake.settings.labels.budget):
        print(f"  {place.name}: finished before", flush=True)
        return Store.open(place), 0.0
    campaign = Campaign.create_or_open(intake.settings, intake.frames, place)
    started = time.perf_counter()
    with InlineSteps() as steps:
        print(f"  {place.name}: {campaign.run(steps).message}", flush=True)
    return campaign.store, time.perf_counter() - started


def is_finished(place: Path, budget: int) -> bool:
    """Whether a campaign has spent that many labels: then it is read, whatever farwalk made it."""
    if not (place / "events.jsonl").is_file():
        return False
    state = Store.open(place).state()
    return state.stopped is not None and state.stopped.reason is EndReason.BUDGET and state.spent >= budget


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


def overrides_of(variant: str, options: argparse.Namespace) -> list[str]:
    """What a variant changes in the template."""
    small = SMOKE if options.smoke else ()
    hills = (SMOKE_HILLS,) if options.smoke and variant.startswith("metadynamics") else ()
    return [f"labels.budget={options.labels}", *VARIANTS[variant], *small, *hills, *options.set]


def compare(root: Path, options: argparse.Namespace, held_out: list[Label]) -> list[dict[str, Any]]:
    """Run all campaigns; one entry each. Figures of a seed are drawn when its campaigns are done."""
    results = []
    for seed in options.seeds:
        series = {}
        for variant in options.variants:
            name = f"seed{seed}-{variant}"
            store, seconds = run_one(root / name, [*overrides_of(variant, options), f"seed={seed}"])
            rows = round_rows(store, held_out)
            share, interval, trials = fresh_coverage(rows)
            fresh = {"share": share, "interval": interval, "trials": trials}
            plain = [figures_of(row) for row in rows]
            results.append({"seed": seed, "variant": variant, "seconds": seconds, "fresh": fresh, "rows": plain})
            series[variant] = rows
            plane_figure(store, root / f"{name}.png")
        error_figure(series, root / f"seed{seed}-errors.png", system=SYSTEM)
    return results


def at(rows: list[dict[str, Any]], labels: int) -> dict[str, Any]:
    """The model with the number of labels nearest to a published one."""
    return min(rows, key=lambda row: abs(row["labels"] - labels))


def show(results: list[dict[str, Any]]) -> None:
    """Print every variant at the published numbers of labels: mean over seeds, their range, and what was published."""
    most = max(row["labels"] for result in results for row in result["rows"])
    counts = [count for count in COUNTS if count <= most] or [most]
    print(
        f"{'variant':<18}{'labels':>7}{'seeds':>6}{'coverage':>20}{'E meV/atom':>22}{'F eV/Å':>24}   published: C, E, F"
    )
    for variant in dict.fromkeys(result["variant"] for result in results):
        for count in counts:
            rows = [at(result["rows"], count) for result in results if result["variant"] == variant]
            columns = [
                spread([row[key] for row in rows], digits)
                for key, digits in (("coverage", 3), ("energy_rmse_meV_per_atom", 2), ("force_rmse_eV_per_A", 4))
            ]
            said = ["–" if value is None else f"{value:g}" for value in PUBLISHED.get(variant, {}).get(count, ())]
            print(
                f"{variant:<18}{count:>7}{len(rows):>6}{columns[0]:>20}{columns[1]:>22}{columns[2]:>24}   {', '.join(said)}"
            )


def spread(values: list[float], digits: int) -> str:
    """Mean, and smallest and largest where there are several."""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny campaigns, for CI")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--labels", type=int, default=512)
    parser.add_argument("--dir", type=Path, default=None)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    if options.smoke:
        options.seeds, options.labels = [1], 12
    return options


def main() -> None:
    """Run, print a table, and end with one JSON line."""
    options = parsed()
    intake = open_campaign(TEMPLATE)
    short = {"frames": 4, "runs": 2, "spacing_ps": 0.02, "equilibration_ps": 0.02}
    sampling = Sampling(**short) if options.smoke else Sampling()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.dir or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        file = root / "held-out.h5"
        held_out = held_out_set(intake.settings.labels.reference, intake.frames[SYSTEM], sampling, file)
        results = compare(root, options, held_out)
    show(results)
    facts = {"labels": options.labels, "set": options.set, "held_out_frames": len(held_out), "campaigns": results}
    print(json.dumps({"benchmark": "exploration", "smoke": options.smoke, **facts, **provenance()}))


if __name__ == "__main__":
    main()
