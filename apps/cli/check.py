"""``farwalk check CAMPAIGN.yaml``: try everything in small before hours are spent."""

import tempfile
from pathlib import Path

from ase.data import chemical_symbols
from rich.table import Table

from apps.cli.console import OUT, duration, size
from apps.cli.options import CampaignDirectory, CampaignFile, Overrides
from apps.cli.places import campaign_directory, check_writable
from apps.steps import open_steps
from pipeline.errors import SiteError
from pipeline.intake import Intake, open_campaign
from pipeline.trial import Costs, Estimate, run_trial

BYTES_PER_ATOM = 3 * 8 * 3
"""Bytes a stored structure takes per atom: positions, forces or velocities, uncertainties."""


def check(
    campaign: CampaignFile,
    directory: CampaignDirectory = None,
    overrides: Overrides = None,
) -> None:
    """Check settings, structures, machine and disk; label, train and walk in small; estimate the whole."""
    intake = open_campaign(campaign, overrides or ())
    place = campaign_directory(intake, directory)
    free = check_writable(place)
    needed = stored_bytes(intake)
    if needed > free:
        raise SiteError(
            f"{place}: about {size(needed)} are needed and {size(free)} are free.",
            "Free space or choose another --dir.",
        )
    with tempfile.TemporaryDirectory(prefix="farwalk-check-") as scratch:
        with OUT.status("starting the site"), open_steps(intake.settings.site, Path(scratch) / "site"):
            pass
        with OUT.status("labelling") as status:
            costs, estimate = run_trial(intake.settings, intake.frames, Path(scratch), status.update)
    OUT.print(report(intake, place, free, costs, estimate))
    OUT.print(f"all right; next: farwalk run {campaign}")


def stored_bytes(intake: Intake) -> float:
    """A bound on what the campaign writes: labels, and every candidate of every round."""
    settings = intake.settings
    atoms = max(len(frame) for group in intake.frames.values() for frame in group)
    rounds = -(-settings.labels.budget // settings.selection.batch)
    per_round = settings.walkers.count * (2 + settings.walkers.segment_steps / settings.walkers.store_every)
    return (settings.labels.budget + rounds * per_round) * atoms * BYTES_PER_ATOM


def report(intake: Intake, place: Path, free: int, costs: Costs, estimate: Estimate) -> Table:
    """What was found, as a table."""
    settings = intake.settings
    table = Table(show_header=False, title=f"campaign {settings.name}", title_justify="left")
    for name, group in intake.frames.items():
        elements = sorted({chemical_symbols[z] for frame in group for z in frame.numbers})
        atoms = sorted({len(frame) for frame in group})
        table.add_row(f"system {name}", f"{len(group)} start structures, {atoms} atoms, {' '.join(elements)}")
    table.add_row("directory", f"{place}: {size(free)} free, about {size(stored_bytes(intake))} needed")
    table.add_row("site", f"{settings.site.kind} starts")
    table.add_row("label", f"{duration(costs.label_s)} each with {settings.labels.reference.kind}")
    table.add_row("training", f"{duration(costs.structure_epoch_s)} per structure and epoch")
    steps_per_s = settings.walkers.batch / costs.walker_step_s
    table.add_row("walkers", f"{steps_per_s:.4g} walker steps/s per task, in batches of {settings.walkers.batch}")
    parts = f"labels {duration(estimate.label_s)}, training {duration(estimate.train_s)}"
    table.add_row(
        "whole campaign",
        f"at most {duration(estimate.total_s)} in {estimate.rounds} rounds: {parts}, walks {duration(estimate.walk_s)}",
    )
    return table
