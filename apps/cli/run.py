"""``farwalk run CAMPAIGN.yaml``: run a campaign, or go on with it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from apps.cli.boundary import EXIT_STOPPED, logging_to
from apps.cli.console import OUT
from apps.cli.interrupt import SoftStop
from apps.cli.options import CampaignDirectory, CampaignFile, Overrides
from apps.cli.places import LOG, campaign_directory, check_writable
from apps.cli.progress import Display
from apps.steps import open_steps
from pipeline.campaign import Campaign, Outcome
from pipeline.errors import StoreError
from pipeline.events import EndReason
from pipeline.intake import Intake, open_campaign
from pipeline.lock import holder_of

SOFT = "stopping: finishing what is in flight; Ctrl-C again stops at once"


def run(
    campaign: CampaignFile,
    directory: CampaignDirectory = None,
    overrides: Overrides = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress, only the outcome")] = False,
) -> None:
    """Run a campaign; run it again to go on where it stopped."""
    intake = open_campaign(campaign, overrides or ())
    place = campaign_directory(intake, directory)
    outcome = run_campaign(intake, place, quiet=quiet)
    tell_outcome(outcome, place, campaign, overrides or ())


def run_campaign(intake: Intake, place: Path, *, quiet: bool) -> Outcome:
    """Run until the campaign ends or Ctrl-C, with progress and a log file in the campaign directory.

    Raises:
        PipelineError: what the user can mend.
        Crash: a bug.
    """
    check_writable(place)
    if holder := holder_of(place / "lock"):
        raise StoreError(
            f"{place}: another driver runs this campaign ({holder}).", f"Watch it with `farwalk status {place}`."
        )
    campaign = Campaign.create_or_open(intake.settings, intake.frames, place)
    with (
        logging_to(place / LOG),
        Display(campaign.store, quiet=quiet) as display,
        SoftStop(lambda: display.note(SOFT)) as stop,
        open_steps(intake.settings.site, campaign.store.runinfo) as steps,
    ):
        return campaign.run(steps, on_event=display, stop_requested=stop)


def tell_outcome(outcome: Outcome, place: Path, campaign: Path, overrides: Sequence[str]) -> None:
    """Say how it ended and what to do next.

    Raises:
        typer.Exit: with code 130 when a stop was asked for.
    """
    if outcome.reason is EndReason.INTERRUPTED:
        again = " ".join(["farwalk run", str(campaign), f"--dir {place}", *(f"--set '{text}'" for text in overrides)])
        sys.stderr.write(f"stopped on request; go on with: {again}\n")
        raise typer.Exit(EXIT_STOPPED)
    OUT.print(f"done: {outcome.message}", markup=False)
    OUT.print(f"{len(outcome.state.labels)} labels, {len(outcome.state.models)} models in {place}", markup=False)
