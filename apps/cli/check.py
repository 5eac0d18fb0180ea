"""``farwalk check CAMPAIGN.yaml``: try everything in small, where it will run, before hours are spent."""

import functools
import json
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
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
from apps.cli.report import (
    campaign_table,
    estimate_tables,
    findings_error,
    is_stream,
    not_counted,
    plain,
    started_text,
    stream_text,
    walk_device,
    workers_table,
)
from apps.cli.scan import ScanReport, WantedScans, not_compared, wanted_scans
from apps.preflight import Executor, ask_workers, jobs_for_labels, one_job_each
from apps.program import ask_program
from apps.slurm.names import job_prefix
from apps.slurm.workers import no_jobs_left
from apps.steps import open_steps
from pipeline.convergence import ScanRun
from pipeline.errors import PipelineError, SiteError
from pipeline.estimate import Costs, Estimate, estimate
from pipeline.intake import Intake, open_campaign
from pipeline.references.started import Started
from pipeline.settings.dft import CP2KReference, QuantumEspressoReference
from pipeline.settings.site import Site, SlurmSite
from pipeline.steps import Notice, Steps
from pipeline.trial import Trial

BYTES_PER_ATOM = 3 * 8 * 3
"""Bytes a stored structure takes per atom: positions, forces or velocities, uncertainties."""
CHECK = ".check"
"""What follows the name of the campaign directory in that of its check."""
MARK = "of-farwalk-check"
"""File that tells the directory of a check from anything else."""
KEEP = "keep"
"""File in the directory of a check that is to stay: labels failed, and their files tell why."""
ERRORS = Console(stderr=True, highlight=False, soft_wrap=True)
REMOVE_S = 10.0
"""How long to try to remove the directory of a check: ended jobs may still write to it, seconds."""


@dataclass(slots=True, kw_only=True)
class Found:
    """What a check has found so far."""

    executors: list[Executor] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    program: Started | None = None
    costs: Costs | None = None
    expected: Estimate | None = None
    scans: list[ScanReport] = field(default_factory=list)


def check(
    campaign: CampaignFile,
    directory: CampaignDirectory = None,
    site: SiteOption = None,
    overrides: Overrides = None,
    scan: Annotated[
        list[str] | None,
        typer.Option(
            "--scan", metavar="KEY=VALUES", help="compare values of a key of labels.reference: cutoff_Ry=200,300,400"
        ),
    ] = None,
    frame: Annotated[
        str | None,
        typer.Option(
            "--scan-frame",
            metavar="SYSTEM[:INDEX]",
            help="start structure to scan as it is; without index, a rattled one [default: of the first system]",
        ),
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option("--scan-tolerance", help="force error that is small enough, meV/Å [default: 10]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print what was found as JSON")] = False,
) -> None:
    """Check settings, structures, machine and disk; label, train and walk in small; estimate the whole."""
    intake = open_campaign(campaign, overrides or (), site, SITES)
    wanted = wanted_scans(scan or (), frame, tolerance, intake)
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
            if wanted is None:
                _try_campaign(intake, own, found, quiet=as_json)
            else:
                _scan(intake, own, found, wanted, quiet=as_json)
    except PipelineError as error:
        if as_json:
            _print_json(intake, place, found, error)
        raise
    if as_json:
        _print_json(intake, place, found, None)
    elif wanted is None:
        _print_tables(intake, f"{place}: {size(free)} free, about {size(needed)} needed", found)
        options = [
            *([] if directory is None else ["--dir", str(directory)]),
            *([] if site is None else ["--site", site]),
            *(part for text in overrides or () for part in ("--set", text)),
        ]
        verb = "submit" if isinstance(intake.settings.site, SlurmSite) else "run"
        OUT.print(f"all right; next: {shlex.join(['farwalk', verb, str(campaign), *options])}", markup=False)


def _try_campaign(intake: Intake, own: Path, found: Found, *, quiet: bool) -> None:
    """Start the site, ask its workers, run the trial; fills ``found`` as far as it gets.

    Raises:
        PipelineError: what is wrong.
    """
    site, notice = one_job_each(intake.settings.site), functools.partial(_notice, found)
    with _tried_site(intake, site, own, found, labels=None, quiet=quiet) as (steps, tell):
        trial = Trial(
            settings=intake.settings, frames=intake.frames, steps=steps, directory=own, tell=tell, notice=notice
        )
        found.costs = trial.run()
        found.expected = estimate(intake.settings, found.costs)
        tell("ending the site")


def _scan(intake: Intake, own: Path, found: Found, wanted: WantedScans, *, quiet: bool) -> None:
    """Start the site for labels alone, and scan; fills ``found`` as far as it gets.

    Raises:
        PipelineError: what is wrong, also that a scan has nothing to compare.
    """
    site = jobs_for_labels(intake.settings.site, wanted.count)
    with _tried_site(intake, site, own, found, labels=[site.routes["label"]], quiet=quiet) as (steps, tell):
        run = ScanRun(
            settings=intake.settings,
            scans=wanted.scans,
            frame=wanted.frame.frame,
            tolerance_meV_per_A=wanted.tolerance_meV_per_A,
            steps=steps,
            directory=own,
            tell=tell,
            done=lambda text: ERRORS.print(text, markup=False),
            notice=functools.partial(_notice, found),
        )
        found.scans = [
            ScanReport(found=one, frame=wanted.frame, moved=(str(own), str(_kept(own)))) for one in run.run()
        ]
        tell("ending the site")
    if any(report.failed for report in found.scans):
        (own / KEEP).touch()
    if not quiet:
        for report in found.scans:
            OUT.print(report.table())
            for line in report.lines():
                OUT.print(line, markup=False)
    if problem := not_compared(found.scans):
        raise problem


@contextmanager
def _tried_site(
    intake: Intake, site: Site, own: Path, found: Found, *, labels: Sequence[str] | None, quiet: bool
) -> Iterator[tuple[Steps, Callable[[str], None]]]:
    """The site, started: its workers have answered, and the program of the reference has started.

    Args:
        intake: the campaign.
        site: its site, or less of it.
        own: directory of the check.
        found: is filled.
        labels: of the executors to ask; None: all.
        quiet: print no table.

    Raises:
        PipelineError: what is wrong.
    """
    prefix, reference = job_prefix(own), intake.settings.labels.reference  # not the campaign's: a driver of it may run
    with (
        _progress() as tell,
        no_jobs_left(site, prefix),
        open_steps(site, own / "site", prefix=prefix) as steps,
    ):
        found.executors = ask_workers(site, own, prefix, tell, labels)
        if found.executors and not quiet:
            OUT.print(workers_table(found.executors))
        for one in steps.notices():
            _notice(found, one)
        for executor in found.executors:
            for text in executor.notes:
                _notice(found, Notice(text=f"{executor.label}: {text}"))
        findings = [finding for executor in found.executors for finding in executor.findings]
        if findings:
            raise findings_error(findings)
        if isinstance(reference, CP2KReference | QuantumEspressoReference):
            found.program = ask_program(site, reference, own, tell)
            if not quiet:
                OUT.print(started_text(found.program), markup=False)
        yield steps, tell


def _print_tables(intake: Intake, directory: str, found: Found) -> None:
    assert found.costs is not None
    assert found.expected is not None
    OUT.print(campaign_table(intake, directory))
    for table in estimate_tables(found.costs, found.expected, intake, walk_device(found.executors)):
        OUT.print(table)
    OUT.print(not_counted(found.executors), markup=False)
    if is_stream(intake):
        OUT.print(stream_text(found.costs, found.expected, intake), markup=False)


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

    When an error names a file in it, or it says so itself, it stays as ``<campaign directory>.check`` until the next check.
    """
    nearest = next(parent for parent in place.parents if parent.exists())
    own = Path(tempfile.mkdtemp(prefix=f".{place.name}{CHECK}-", dir=nearest))
    kept = _kept(own)
    (own / MARK).touch()
    try:
        yield own
        if _remove_kept(kept) and (own / KEEP).exists():
            own.rename(kept)
    except PipelineError as error:
        texts = (error.message, error.remedy)
        wanted = (own / KEEP).exists() or any(str(own) in text for text in texts)
        if not wanted or not _remove_kept(kept):
            raise
        own.rename(kept)
        message, remedy = (text.replace(str(own), str(kept)) for text in texts)
        raise type(error)(message, remedy) from error
    finally:
        _remove(own)


def _kept(own: Path) -> Path:
    """Where the directory of a check stays."""
    name, _, _ = own.name.removeprefix(".").rpartition("-")
    return own.with_name(name)


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
        "program": plain(found.program),
        "executors": {executor.label: plain(executor) for executor in found.executors},
        "notices": [plain(notice) for notice in found.notices],
        "measured": plain(found.costs),
        "scans": [report.plain() for report in found.scans],
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
