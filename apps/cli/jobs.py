"""``farwalk jobs DIR``: a campaign's jobs in the queue."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from apps.cli.console import OUT, duration
from apps.cli.places import may_have_jobs, site_in_force
from apps.slurm.client import Job, cancel_named, jobs_named
from apps.slurm.names import DRIVER, job_name, job_prefix, worker_names
from pipeline.errors import SettingsError, StoreError
from pipeline.lock import holder_of
from pipeline.store import Store


def jobs(
    directory: Annotated[Path, typer.Argument(help="campaign directory")],
    cancel: Annotated[bool, typer.Option("--cancel", help="cancel jobs of workers that no driver uses")] = False,
) -> None:
    """Show a campaign's SLURM jobs."""
    store = Store.open(directory)
    if not may_have_jobs(store):
        kind = site_in_force(store).kind
        raise SettingsError(f"{directory}: runs on {kind}, which has no jobs.", "Use `farwalk status`.")
    prefix = job_prefix(store.root)
    workers = worker_names(prefix)
    found = jobs_named([job_name(prefix, DRIVER), *workers])
    if not found:
        OUT.print("no jobs of this campaign are in the queue")
        return
    OUT.print(jobs_table(found, prefix))
    left = [job for job in found if job.name in workers and not job.ends]
    driver = driver_of(found, prefix, holder_of(store.lock_path))
    if cancel and driver:
        raise StoreError(f"{directory}: {driver} uses these jobs.", f"Stop it with `farwalk stop {directory}`.")
    if cancel:
        cancel_named(workers)
        OUT.print(f"cancelled {len(left)} job{'s' if len(left) != 1 else ''}")
    elif left and not driver:
        OUT.print(f"no driver uses them; cancel them with: farwalk jobs {directory} --cancel", markup=False)


def driver_of(found: Sequence[Job], prefix: str, holder: str) -> str:
    """Which driver the workers belong to; empty when there is none.

    Args:
        found: the campaign's jobs.
        prefix: of their names.
        holder: who holds the campaign's lock.
    """
    if holder:
        return f"a driver ({holder})"
    name = job_name(prefix, DRIVER)
    return next(
        (f"the driver's job {job.id}" for job in found if job.name == name and not job.waits and not job.ends), ""
    )


def jobs_table(found: Sequence[Job], prefix: str) -> Table:
    """One row per job."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("job", "role", "state", "node", "elapsed", "left", "reason"):
        table.add_column(head, no_wrap=True)
    for job in found:
        elapsed, left = ("" if seconds is None else duration(seconds) for seconds in (job.elapsed_s, job.left_s))
        reason = "" if job.reason in ("None", "") else job.reason
        role = job.name.removeprefix(f"{prefix}-")
        table.add_row(job.id, role, job.state.lower(), job.node, "" if job.waits else elapsed, left, reason)
    return table
