"""``farwalk run CAMPAIGN.yaml``: run a campaign, or go on with it."""

import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from apps.cli.boundary import EXIT_STOPPED, logging_to
from apps.cli.console import OUT
from apps.cli.interrupt import StopRequests
from apps.cli.options import SITES, CampaignDirectory, CampaignFile, Overrides, SiteOption
from apps.cli.places import LOG, STOP, campaign_directory, check_writable
from apps.cli.progress import Display
from apps.slurm.driver_job import DriverJob
from apps.slurm.names import job_prefix
from apps.slurm.script import SCRIPT
from apps.slurm.workers import no_jobs_left
from apps.steps import open_steps
from pipeline.campaign import Campaign, Outcome
from pipeline.errors import DiskFullError, SettingsError
from pipeline.events import EndReason, Event
from pipeline.intake import Intake, open_campaign
from pipeline.lock import DriverLock
from pipeline.settings.site import Site, SlurmSite


def run(
    campaign: CampaignFile,
    directory: CampaignDirectory = None,
    site: SiteOption = None,
    overrides: Overrides = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress, only the outcome")] = False,
    as_job: Annotated[
        int | None, typer.Option("--as-job", min=0, hidden=True, help="this is the driver's batch script")
    ] = None,
) -> None:
    """Run a campaign; run it again to go on where it stopped."""
    intake = open_campaign(campaign, overrides or (), site, SITES)
    place = campaign_directory(intake, directory)
    job = None if as_job is None else driver_job(intake.settings.site, place, fruitless=as_job)
    outcome = run_campaign(intake, place, quiet=quiet, job=job)
    if job is not None and job.signalled and outcome.reason is EndReason.INTERRUPTED:
        return  # whoever goes on is named already
    options = [*(["--site", site] if site else []), *(word for text in overrides or () for word in ("--set", text))]
    tell_outcome(outcome, place, campaign, options, verb="run" if job is None else "submit")


def driver_job(site: Site, place: Path, *, fruitless: int) -> DriverJob:
    """The job that this process is, as `farwalk submit` made it.

    Raises:
        SettingsError: the site has no jobs, or this is none.
    """
    if not isinstance(site, SlurmSite):
        raise SettingsError(f"site.kind is {site.kind} now, which has no jobs.", "Use `farwalk run`.")
    before = site.driver.stop_before
    return DriverJob.here(job_prefix(place), place / SCRIPT, stop_before_s=before, fruitless=fruitless)


def run_campaign(intake: Intake, place: Path, *, quiet: bool, job: DriverJob | None = None) -> Outcome:
    """Run until the campaign ends or a stop is asked for, with progress and a log file in the campaign directory.

    Args:
        intake: what to run.
        place: the campaign directory.
        quiet: show no progress.
        job: the job that this driver is, if it is one.

    Raises:
        PipelineError: what the user can mend.
        Crash: a bug.
    """
    check_writable(place)
    campaign = Campaign.create_or_open(intake.settings, intake.frames, place)
    site, prefix = intake.settings.site, job_prefix(place)
    with (
        DriverLock(campaign.store.lock_path) as lock,  # before anything that another driver could feel
        logging_to(place / LOG),
        Display(campaign.store, quiet=quiet) as display,
        StopRequests(display.note, place / STOP, job) as stop,
        no_jobs_left(site, prefix, job.id if job else "", campaign.store.lock_path),
        open_steps(site, campaign.store.runinfo, prefix=prefix) as steps,
    ):

        def on_event(event: Event) -> None:
            with suppress(OSError):  # output into a file on a full disk
                display(event)
            if job is not None:
                job.take_note(event)

        is_unfinished = False
        try:
            outcome = campaign.run(
                steps,
                on_event=on_event,
                stop_requested=stop.stop_requested,
                leave_requested=stop.leave_requested,
                lock=lock,
            )
            is_unfinished = outcome.reason is EndReason.INTERRUPTED
        except DiskFullError:  # the next driver waits for space as this one did
            is_unfinished = True
            raise
        finally:
            if is_unfinished and job is not None and job.signalled:
                following = job.hand_over(place / STOP)
                with suppress(OSError):
                    OUT.print(following, markup=False)
        return outcome


def tell_outcome(outcome: Outcome, place: Path, campaign: Path, options: Sequence[str], *, verb: str = "run") -> None:
    """Say how it ended and what to do next.

    Args:
        outcome: of the campaign.
        place: its directory.
        campaign: its file.
        options: of the command line, that change site and settings.
        verb: of the command that goes on with it.

    Raises:
        typer.Exit: with code 130 when a stop was asked for.
    """
    if outcome.reason is EndReason.INTERRUPTED:
        words = ["farwalk", verb, str(campaign), "--dir", str(place)]
        again = shlex.join([*words, *options])
        sys.stderr.write(f"stopped on request; go on with: {again}\n")
        raise typer.Exit(EXIT_STOPPED)
    OUT.print(f"done: {outcome.message}", markup=False)
    OUT.print(f"{outcome.state.labelled} labels, {len(outcome.state.models)} models in {place}", markup=False)
