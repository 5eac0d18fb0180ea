"""``farwalk stop DIR``: ask a campaign's driver to stop, wherever it runs."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from apps.cli.console import OUT
from apps.cli.interrupt import NOW, SOFT
from apps.cli.places import STOP, may_have_jobs
from apps.slurm.client import Job, cancel_jobs, driver_jobs
from apps.slurm.names import job_prefix
from pipeline.durable import write_text_durably
from pipeline.lock import holder_of
from pipeline.store import Store

POLL_S = 1.0
"""How often to look whether the driver has ended, seconds."""


def stop(
    directory: Annotated[Path, typer.Argument(help="campaign directory")],
    now: Annotated[bool, typer.Option("--now", help="leave what is in flight behind; it is asked for again")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="return when the driver has ended")] = False,
) -> None:
    """Stop a campaign: no new tasks, wait for those in flight, no further driver."""
    store = Store.open(directory)
    on_slurm = may_have_jobs(store)
    # first the file: a driver that is just handing over sees it, and submits no successor
    write_text_durably(store.root / STOP, f"{NOW if now else SOFT}\n")
    idle = cancel_idle(store) if on_slurm else ()
    holder = holder_of(store.lock_path)
    for job in idle:
        OUT.print(
            f"cancelled the driver's job {job.id}, which {'waited in the queue' if job.waits else 'was starting'}"
        )
    if holder:
        what = "leaves what is in flight behind" if now else "finishes what is in flight (do not wait: --now)"
        OUT.print(f"asked the driver to stop ({holder}): it {what}", markup=False)
    elif not idle:
        OUT.print("no driver runs this campaign")
    if wait and (holder or idle):
        _wait(store, on_slurm)
    if not holder_of(store.lock_path):
        (store.root / STOP).unlink(missing_ok=True)  # nobody is left to read it


def cancel_idle(store: Store) -> Sequence[Job]:
    """Cancel the driver's jobs that hold no driver yet, and one that a driver submits in this very moment.

    A job that runs but holds no lock has begun nothing, or nothing any more; it would take the stop file for an old one.

    Returns:
        The jobs.

    Raises:
        SiteError: SLURM does not answer.
    """
    found: list[Job] = []
    while idle := [job for job in driver_jobs(job_prefix(store.root)) if job.waits or not holder_of(store.lock_path)]:
        cancel_jobs([job.id for job in idle])
        found += [job for job in idle if job.id not in {known.id for known in found}]
        time.sleep(POLL_S)
    return found


def _wait(store: Store, on_slurm: bool) -> None:
    with OUT.status("waiting for the driver"):
        while holder_of(store.lock_path) or (on_slurm and driver_jobs(job_prefix(store.root))):
            time.sleep(POLL_S)
    OUT.print("the driver has ended")
