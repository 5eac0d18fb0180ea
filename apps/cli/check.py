"""``farwalk check CAMPAIGN.yaml``: try everything in small, where it will run, before hours are spent."""

import functools
import json
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from apps.cli.console import OUT, size
from apps.cli.options import SITES, CampaignDirectory, CampaignFile, Overrides, SiteOption
from apps.cli.places import campaign_directory, check_writable
from apps.cli.report import campaign_table, estimate_tables, findings_error, not_counted, plain, workers_table
from apps.preflight import Executor, ask_workers, one_job_each
from apps.slurm.names import job_prefix
from apps.slurm.workers import no_jobs_left
from apps.steps import open_steps
from pipeline.errors import PipelineError, SiteError
from pipeline.estimate import Costs, Estimate, estimate
from pipeline.intake import Intake, open_campaign
from pipeline.settings.site import SlurmSite
from pipeline.steps import Notice, Steps
from pipeline.trial import Trial

BYTES_PER_ATOM = 3 * 8 * 3
"""Bytes a stored structure takes per atom: positions, forces or velocities, uncertainties."""
MARK = "of-farwalk-check"
"""File that tells the directory of a check from anything else."""
ERRORS = Console(stderr=True, highlight=False, soft_wrap=True)
REMOVE_S = 10.0
"""How long to try to remove the directory of a check: ended jobs may still write to it, seconds."""


@dataclass(slots=True, kw_only=True)
class Found:
    """What a check has found so far."""

    executors: list[Executor] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    costs: Costs | None = None
    expected: Estimate | None = None


def check(
    campaign: CampaignFile,
    directory: CampaignDirectory = None,
    site: SiteOption = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="print what was found as JSON")] = False,
) -> None:
    """Check settings, structures, machine and disk; label, train and walk in small; estimate the whole."""
    intake = open_campaign(campaign, overrides or (), site, SITES)
    place = campaign_directory(intake, directory)
    free = check_writable(place)
    needed = stored_bytes(intake)
    if needed > free:
        raise SiteError(
            f"{place}: about {size(needed)} are needed and {size(free)} are free.",
            "Free space or choose another --dir.",
        )
    found = Found()
    try:
        with _own_directory(place) as own, _ended_like_interrupted():
            _try_site(intake, own, found, quiet=as_json)
    except PipelineError as error:
        if as_json:
            _print_json(intake, place, found, error)
        raise
    if as_json:
        _print_json(intake, place, found, None)
        return
    assert found.costs is not None
    assert found.expected is not None
    OUT.print(campaign_table(intake, f"{place}: {size(free)} free, about {size(needed)} needed"))
    for table in estimate_tables(found.costs, found.expected, intake):
        OUT.print(table)
    OUT.print(not_counted(found.executors), markup=False)
    options = [
        *([] if directory is None else ["--dir", str(directory)]),
        *([] if site is None else ["--site", site]),
        *(part for text in overrides or () for part in ("--set", text)),
    ]
    verb = "submit" if isinstance(intake.settings.site, SlurmSite) else "run"
    OUT.print(f"all right; next: {shlex.join(['farwalk', verb, str(campaign), *options])}", markup=False)


def _try_site(intake: Intake, own: Path, found: Found, *, quiet: bool) -> None:
    """Start the site, ask its workers, run the trial; fills ``found`` as far as it gets.

    Raises:
        PipelineError: what is wrong.
    """
    settings, site = intake.settings, one_job_each(intake.settings.site)
    prefix = job_prefix(own)  # not the campaign's: a driver of it may be running
    notice = functools.partial(_notice, found)
    with (
        _progress() as tell,
        no_jobs_left(site, prefix),
        open_steps(site, own / "site", prefix=prefix) as steps,
    ):
        found.executors = ask_workers(site, own, prefix, tell)
        if found.executors and not quiet:
            OUT.print(workers_table(found.executors))
        _take_notices(steps, notice)
        for executor in found.executors:
            for text in executor.notes:
                notice(Notice(text=f"{executor.label}: {text}"))
        findings = [finding for executor in found.executors for finding in executor.findings]
        if findings:
            raise findings_error(findings)
        trial = Trial(settings=settings, frames=intake.frames, steps=steps, directory=own, tell=tell, notice=notice)
        found.costs = trial.run()
        found.expected = estimate(settings, found.costs)
        tell("ending the site")


def _take_notices(steps: Steps, notice: Callable[[Notice], None]) -> None:
    for one in steps.notices():
        notice(one)


def _notice(found: Found, one: Notice) -> None:
    found.notices.append(one)
    ERRORS.print(f"{one.text} {one.remedy}".rstrip(), markup=False)


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """One line that changes on a terminal, one line per change elsewhere; on standard error."""
    with ERRORS.status("starting the site") as status:
        yield status.update if ERRORS.is_terminal else lambda text: ERRORS.print(text, markup=False)


@contextmanager
def _own_directory(place: Path) -> Iterator[Path]:
    """A new directory beside the campaign directory, which all nodes must see; gone afterwards.

    When an error names a file in it, it stays as ``<campaign directory>.check`` until the next check.
    """
    nearest = next(parent for parent in place.parents if parent.exists())
    own = Path(tempfile.mkdtemp(prefix=f".{place.name}.check-", dir=nearest))
    kept = nearest / f"{place.name}.check"
    (own / MARK).touch()
    try:
        yield own
        _remove_kept(kept)
    except PipelineError as error:
        texts = (error.message, error.remedy)
        if not any(str(own) in text for text in texts) or not _remove_kept(kept):
            raise
        own.rename(kept)
        message, remedy = (text.replace(str(own), str(kept)) for text in texts)
        raise type(error)(message, remedy) from error
    finally:
        _remove(own)


def _remove_kept(kept: Path) -> bool:
    """Remove what an earlier check left; False when something else is there."""
    if (kept / MARK).exists():
        _remove(kept)
    return not kept.exists()


def _remove(directory: Path) -> None:
    """Remove the directory of a check. Jobs that were cancelled may still write to it for a moment."""
    deadline = time.monotonic() + REMOVE_S
    while directory.exists() and time.monotonic() < deadline:
        shutil.rmtree(directory, ignore_errors=True)
        time.sleep(0.1 if directory.exists() else 0.0)


@contextmanager
def _ended_like_interrupted() -> Iterator[None]:
    """While the block runs, SIGTERM ends it as Ctrl-C does: its jobs are cancelled on the way out."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_json(intake: Intake, place: Path, found: Found, error: PipelineError | None) -> None:
    """One JSON object on standard output."""
    site = intake.settings.site
    answer = {
        "campaign": intake.settings.name,
        "directory": str(place),
        "site": site.kind,
        "ready": error is None,
        "error": None if error is None else {"text": error.message, "remedy": error.remedy},
        "executors": {executor.label: plain(executor) for executor in found.executors},
        "notices": [plain(notice) for notice in found.notices],
        "measured": plain(found.costs),
        "expected": None if found.expected is None else {**plain(found.expected), "total_s": found.expected.total_s},
    }
    sys.stdout.write(json.dumps(answer, indent=2) + "\n")


def stored_bytes(intake: Intake) -> float:
    """A bound on what the campaign writes: labels, and every candidate of every round."""
    settings = intake.settings
    atoms = max(len(frame) for group in intake.frames.values() for frame in group)
    rounds = -(-settings.labels.budget // settings.selection.batch)
    per_round = settings.walkers.count * (2 + settings.walkers.segment_steps / settings.walkers.store_every)
    return (settings.labels.budget + rounds * per_round) * atoms * BYTES_PER_ATOM
