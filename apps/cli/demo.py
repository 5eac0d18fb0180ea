"""``farwalk demo``: a whole campaign in about five minutes."""

from pathlib import Path
from typing import Annotated

import typer

from apps.cli.console import OUT
from apps.cli.init import copy_template
from apps.cli.places import campaign_directory
from apps.cli.run import run_campaign, tell_outcome
from apps.cli.status import show_status
from pipeline.export import ExportFormat
from pipeline.export import export as export_file
from pipeline.intake import open_campaign
from pipeline.monitor.figures import plane_figure
from pipeline.store import Store

TEMPLATE = "alanine-dipeptide"
OVERRIDES = (
    "labels.budget=144",
    "training.epochs=200",
    "training.warm_epochs=50",
    "site.walk_threads=2",
    "site.train_threads=2",
)
"""A campaign of four rounds, for two cores; the template itself is larger."""


def demo(
    directory: Annotated[Path, typer.Option("--dir", help="where it goes; run again to go on")] = Path("demo"),
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress, only the outcome")] = False,
) -> None:
    """Build a small potential for alanine dipeptide from one structure, labelled by a force field."""
    file = directory / "campaign.yaml"
    if not file.is_file():
        copy_template(TEMPLATE, directory)
    intake = open_campaign(file, OVERRIDES)
    place = campaign_directory(intake, None)
    outcome = run_campaign(intake, place, quiet=quiet)
    tell_outcome(outcome, place, file, OVERRIDES)
    show_status(place)
    for what, name in ((ExportFormat.EXTXYZ, "labels.extxyz"), (ExportFormat.MODEL, "model.pt")):
        export_file(place, what, directory / name)
        OUT.print(f"wrote {directory / name}", markup=False)
    figure = plane_figure(Store.open(place), directory / "ramachandran.png", start=intake.frames[TEMPLATE][0])
    OUT.print(f"wrote {figure}", markup=False)
