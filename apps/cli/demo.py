"""``farwalk demo``: a whole campaign in about five minutes, and how good its potential became."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from apps.cli.console import OUT
from apps.cli.init import copy_template
from apps.cli.places import campaign_directory
from apps.cli.run import run_campaign, tell_outcome
from pipeline.analysis.held_out import Sampling, held_out_set
from pipeline.export import ExportFormat
from pipeline.export import export as export_file
from pipeline.intake import open_campaign
from pipeline.monitor.figures import plane_figure
from pipeline.monitor.tables import WORK, RoundRow, fresh_coverage, round_rows
from pipeline.store import Store

TEMPLATE = "alanine-dipeptide"
HELD_OUT = Sampling(temperature_K=600.0, frames=100, runs=5, spacing_ps=0.5)
"""What the potential is judged by: the force field's own dynamics, hotter than the walkers."""


LEGEND = (
    "steps: of all walkers; φψ: share of the plane covered by walkers; RMSE on the 600 K frames: energy meV/atom, force eV/Å; "
    "in bounds: energy, force errors on new labels within their 95% bounds, %; walk, label, select, train: seconds of the tasks"
)


def demo(
    directory: Annotated[Path, typer.Option("--dir", help="where it goes; run again to go on")] = Path("demo"),
    seed: Annotated[int, typer.Option("--seed", min=0, help="of all random numbers")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress, only the outcome")] = False,
) -> None:
    """Build a small potential for alanine dipeptide from one structure, labelled by a force field."""
    file = directory / "campaign.yaml"
    if not file.is_file():
        copy_template(TEMPLATE, directory)
    overrides = (f"seed={seed}",)
    intake = open_campaign(file, overrides)
    place = campaign_directory(intake, None)
    outcome = run_campaign(intake, place, quiet=quiet)
    tell_outcome(outcome, place, file, [word for text in overrides for word in ("--set", text)])
    starts = intake.frames[TEMPLATE]
    if not quiet:
        OUT.print(f"judging every model by {HELD_OUT.frames} frames of reference dynamics at 600 K", markup=False)
    held_out = held_out_set(intake.settings.labels.reference, starts, HELD_OUT, directory / "held-out.h5")
    store = Store.open(place)
    rows = round_rows(store, held_out)
    OUT.print(rounds_table(rows))
    OUT.print(coverage_sentence(rows), markup=False)
    plane_figure(store, directory / "ramachandran.png", start=starts[0])
    for what, name in ((ExportFormat.EXTXYZ, "labels.extxyz"), (ExportFormat.MODEL, "model.pt")):
        export_file(place, what, directory / name)
    for name in ("ramachandran.png", "labels.extxyz", "model.pt"):
        OUT.print(f"wrote {directory / name}", markup=False)


def rounds_table(rows: Sequence[RoundRow]) -> Table:
    """One row per model: what it cost, where the walkers had been, how wrong it is on the held-out set; fits 80 columns.

    "in bounds" is how many of the energy and of the force errors of the model before were within their calibrated 95% bounds on
    this round's labels, which it had not seen.
    """
    table = Table(box=None, padding=(0, 1, 0, 0), caption=LEGEND, caption_justify="left")
    heads = ("round", "labels", "steps", "φψ", "E RMSE", "F RMSE", "in bounds", *(work for work in WORK))
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        errors, bounds = ("", ""), ""
        if row.held_out is not None:
            errors = (f"{1000 * row.held_out.energy_rmse:.1f}", f"{row.held_out.force_rmse:.3f}")
        if row.fresh is not None and row.fresh.coverage_total is not None and row.fresh.coverage_atomic is not None:
            bounds = f"{100 * row.fresh.coverage_total:.0f}, {100 * row.fresh.coverage_atomic:.0f}"
        covered = f"{next(iter(row.explored.values()), 0.0):.2f}"
        spent = [f"{row.seconds[work]:.1f}" for work in WORK]
        table.add_row(str(row.round), str(row.labels), str(row.walker_steps), covered, *errors, bounds, *spent)
    return table


def coverage_sentence(rows: Sequence[RoundRow]) -> str:
    """How often the claimed bounds held on labels the model had not seen."""
    share, (low, high), trials = fresh_coverage(rows)
    return (
        f"energy errors of newly selected structures were within their 95% bounds in {share:.0%} of {trials} cases "
        f"(95% interval {low:.0%} to {high:.0%}); walkers look for exceptions, so less than 95% is expected here"
    )
