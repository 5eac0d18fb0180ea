"""What the bias stress buys: MIL-53(Al) walked with and without it by the same model, from the same seeds.

python tests/benchmarks/volume.py --model CAMPAIGN_OR_FILE [--tau-stress 0 0.25] [--steps 20000] [--seeds 1 2] [--dir DIR]
    [--campaign FILE] [--set KEY=VALUE]
python tests/benchmarks/volume.py --smoke

Walkers start from the start structures of the campaign, one batch at the conditions of its file, and a walker that stops is
replaced by a new one. The table has a row per strength of the bias stress and condition: coverage, mean and range of the
volume, its correlation time and period. --smoke trains a model of copper for that. With --dir figures are drawn. The last line
is one JSON object.
"""

import argparse
import dataclasses
import json
import math
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance

from apps.worker import compute_device
from pipeline.campaign import Campaign
from pipeline.durable import sha256_of
from pipeline.errors import TaskError
from pipeline.inline import InlineSteps
from pipeline.intake import Intake, open_campaign
from pipeline.monitor.figures import motion_figure
from pipeline.monitor.motion import MotionRow, Series, motion_rows, series_of
from pipeline.node import Node
from pipeline.plan import conditions_of
from pipeline.records import FileRef, Label, ModelRef, Split, Status, WalkResult, WalkTask
from pipeline.seeds import Stream, seed_for
from pipeline.settings.variables import VolumeVariable
from pipeline.shards import read_candidates, write_labels
from pipeline.store import Store
from pipeline.walk import run_walk

TEMPLATES = Path(__file__).parents[2] / "apps" / "templates"
SMOKE = (
    "systems=[{name: copper, structures: [copper.extxyz], repeat: [2, 2, 2], "
    "variables: [{kind: volume, name: volume, range_A3: [300, 460]}]}]",
    "labels.budget=12",
    "labels.initial=12",
    "labels.initial_strain=0.05",
    "potential.hidden=[32]",
    "potential.channels=2",
    "training.epochs=60",
    "walkers.pressures_MPa=[0, 1000]",
    "walkers.barostat={kind: flexible, time_fs: 1000}",
    "walkers.count=4",
    "walkers.batch=4",
    "walkers.store_every=5",
    "walkers.stop.uncertainty_eV_per_A=10",
)


def volumes(intake: Intake) -> dict[str, tuple[VolumeVariable, ...]]:
    """The volume of every system that follows it."""
    found = {
        system.name: tuple(variable for variable in system.variables if isinstance(variable, VolumeVariable))
        for system in intake.settings.systems
    }
    return {name: several for name, several in found.items() if several}


def model_of(place: Path) -> ModelRef:
    """The newest model of a campaign directory, or a model file."""
    if place.is_file():
        return ModelRef(version=0, file=FileRef(path=str(place.resolve()), sha256=sha256_of(place)))
    store = Store.open(place)
    newest = store.state().models[-1]
    return ModelRef(version=newest.version, file=store.absolute(newest.file))


def trained(intake: Intake, place: Path) -> ModelRef:
    """A model of the first labels of a campaign."""
    campaign = Campaign.create_or_open(intake.settings, intake.frames, place)
    with InlineSteps() as steps:
        print(f"  {campaign.run(steps).message}", flush=True)
    return model_of(place)


def starts_of(intake: Intake) -> list[Label]:
    """The start structures as walkers take them: they are not asked for energies."""
    return [
        Label(frame=frame, energy=0.0, forces=np.zeros((len(frame), 3)), stress=None, split=Split.TRAIN, round=0)
        for group in intake.frames.values()
        for frame in group
    ]


def walk(intake: Intake, model: ModelRef, seed: int, steps: int, place: Path) -> tuple[list[Series], WalkResult]:
    """One batch of walkers of the campaign's file: series of the volume, and what the walk task said.

    Raises:
        TaskError: the walk failed.
    """
    settings = intake.settings
    batch = settings.walkers.batch
    place.mkdir(parents=True, exist_ok=True)
    task = WalkTask(
        task=place.name,
        round=0,
        item=0,
        leg=0,
        model=model,
        settings=settings.walkers,
        temperatures_K=tuple(temperature for temperature, _ in conditions_of(0, settings)),
        pressures_MPa=tuple(pressure for _, pressure in conditions_of(0, settings)),
        variables=settings.hill_variables,
        starts=write_labels(place / "starts.h5", starts_of(intake)),
        resume=None,
        steps=steps,
        enough=0,
        born=(0,) * batch,
        seconds=1e9,
        output=str(place / "walk"),
        seed=seed_for(seed, Stream.WALK, 0, 0),
        threads=settings.site.walk_threads,
    )
    result = run_walk(task, Node(device=compute_device()))
    if result.status is not Status.DONE or result.candidates is None:
        raise TaskError(f"the walk failed: {result.reason}", "Look at the model and the settings of walkers.")
    walkers = settings.walkers
    series = series_of(
        [read_candidates(result.candidates)],
        volumes(intake),
        spacing=walkers.store_every,
        step_ps=walkers.timestep_fs / 1000.0,
    )
    return series, result


def compare(options: argparse.Namespace, intake: Intake, model: ModelRef, root: Path) -> list[dict[str, Any]]:
    """Walk with every strength of the bias stress from every seed; one entry per strength, seeds together."""
    results = []
    for tau in options.tau_stress:
        series: list[Series] = []
        steps, seconds, stops = 0, 0.0, dict[str, int]()
        for seed in options.seeds:
            chosen = open_campaign(intake_file(options), [*options.set, f"walkers.bias.tau_stress={tau}"])
            started = time.perf_counter()
            found, result = walk(chosen, model, seed, options.steps, root / f"seed{seed}-stress{tau:g}")
            seconds += time.perf_counter() - started
            # walkers of different seeds have the same names
            series += [dataclasses.replace(one, walker=f"{one.walker} of {seed}") for one in found]
            steps += result.walker_steps
            for reason, count in result.stops.items():
                stops[str(reason)] = stops.get(str(reason), 0) + count
        rows = [plain(row) for row in motion_rows(series)]
        facts = {"walker_steps": steps, "seconds": seconds, "stops": stops}
        results.append({"tau_stress": tau, **facts, "conditions": rows})
        draw(series, root, f"stress{tau:g}")
    return results


def plain(row: MotionRow) -> dict[str, Any]:
    """A row for JSON, which has no number for what is not known."""
    values = dataclasses.asdict(row).items()
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values}


def draw(series: list[Series], place: Path, name: str) -> None:
    """A figure for each system and variable: they have one axis."""
    groups: dict[str, list[Series]] = {}
    for one in series:
        groups.setdefault(f"{one.system}-{one.variable.name}", []).append(one)
    for group, own in groups.items():
        suffix = f"-{re.sub(r'[^A-Za-z0-9_.-]', '_', group)}" if len(groups) > 1 else ""
        motion_figure(own, place / f"{name}{suffix}.png")


def intake_file(options: argparse.Namespace) -> Path:
    """The campaign's file."""
    if options.smoke:
        return TEMPLATES / "copper" / "campaign.yaml"
    return Path(options.campaign)


def show(results: list[dict[str, Any]]) -> None:
    """Print a row per strength and condition, and the sums of each strength."""
    heads = (
        "tau_stress",
        "T K",
        "p MPa",
        "walkers",
        "frames",
        "coverage",
        "mean",
        "lowest",
        "highest",
        "corr ps",
        "period ps",
    )
    print("".join(f"{head:>11}" for head in heads))
    for result in results:
        for row in result["conditions"]:
            period = "" if row["period_ps"] is None else f"{row['period_ps']:.2f}"
            known = row["correlation_ps"]
            memory = "" if known is None else f"{'' if row['is_resolved'] else '>'}{known:.3f}"
            print(
                f"{result['tau_stress']:>11g}{row['temperature_K']:>11g}{row['pressure_MPa']:>11g}{row['walkers']:>11}"
                f"{row['frames']:>11}{row['coverage']:>11.3f}{row['mean']:>11.1f}{row['low']:>11.1f}{row['high']:>11.1f}"
                f"{memory:>11}{period:>11}"
            )
        print(f"  {result['walker_steps']} walker steps in {result['seconds']:.0f} s; stops: {result['stops']}")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="copper, some steps, for CI")
    parser.add_argument("--model", type=Path, default=None, help="campaign directory or model file")
    parser.add_argument("--campaign", default=str(TEMPLATES / "mil53-al" / "campaign.yaml"))
    parser.add_argument("--tau-stress", type=float, nargs="+", default=[0.0, 0.25])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--dir", type=Path, default=None)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    if options.smoke:
        options.steps, options.seeds, options.set = 60, [1], [*SMOKE, *options.set]
    elif options.model is None:
        parser.error("--model is needed: a campaign directory or a model file")
    return options


def main() -> None:
    """Walk, print a table, and end with one JSON line."""
    options = parsed()
    intake = open_campaign(intake_file(options), [*options.set, "site={kind: inline}"])
    with tempfile.TemporaryDirectory() as temporary:
        root = options.dir or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        model = trained(intake, root / "model") if options.smoke else model_of(options.model)
        results = compare(options, intake, model, root)
    show(results)
    facts = {"steps": options.steps, "seeds": options.seeds, "set": options.set, "device": compute_device()}
    line = {"benchmark": "volume", "smoke": options.smoke, **facts, "strengths": results, **provenance()}
    print(json.dumps(line, allow_nan=False))


if __name__ == "__main__":
    main()
