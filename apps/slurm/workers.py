"""No job of a campaign without a driver: orphans are cancelled at the start, all at the end, also when the driver is killed."""

import logging
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from apps.slurm import guardian
from apps.slurm.client import SilenceError, cancel_named, driver_jobs
from apps.slurm.names import worker_names
from pipeline.errors import PipelineError, SiteError
from pipeline.settings.site import Site, SlurmSite
from site_configs.slurm_commands import environment

logger = logging.getLogger(__name__)

PATIENCE_S, PAUSE_S = 600.0, 10.0
"""How long a driver that is a job waits for SLURM to answer, and between two tries, seconds: nobody would start it again."""
GUARDIAN_S = 5.0
"""How long a guardian may take to end, seconds."""


@contextmanager
def no_jobs_left(site: Site, prefix: str, own_job: str = "", lock: Path | None = None) -> Iterator[None]:
    """While the block runs, jobs of this campaign's name belong to this driver; none is left afterwards.

    Args:
        site: nothing happens where it is not SLURM.
        prefix: of the names of the campaign's jobs.
        own_job: number of the job that this driver is, if it is one.
        lock: held by this driver; whoever holds it after its death is another driver, whose jobs these then are.

    Raises:
        SiteError: another driver's job is in the queue, or SLURM does not answer (on entering).
    """
    if not isinstance(site, SlurmSite):
        yield
        return
    names = worker_names(prefix)
    _clear(prefix, names, own_job)
    process = _start_guardian(names, lock)
    try:
        yield
    finally:
        _end(process, names)


def _clear(prefix: str, names: Sequence[str], own_job: str) -> None:
    deadline = time.monotonic() + (PATIENCE_S if own_job else 0.0)
    while True:
        try:
            refuse_other_driver(prefix, own_job)
            cancel_named(names)
        except SilenceError as error:
            if time.monotonic() > deadline:
                raise
            logger.warning("%s", error)
            time.sleep(PAUSE_S)
        else:
            return


def refuse_other_driver(prefix: str, own_job: str = "") -> None:
    """Make sure that no job holds, or will hold, another driver of this campaign.

    Raises:
        SiteError: one does, or SLURM does not answer.
    """
    for job in driver_jobs(prefix):
        if job.id != own_job:
            what = f"waits in the queue ({job.reason})" if job.waits else f"runs on {job.node}"
            raise SiteError(
                f"this campaign's driver is job {job.id}, which {what}.",
                "Watch it with `farwalk jobs`, or end it with `farwalk stop`.",
            )


def _start_guardian(names: Sequence[str], lock: Path | None) -> subprocess.Popen[bytes]:
    # -I and -S: nothing but the standard library, whatever the environment says
    command = [sys.executable, "-I", "-S", str(Path(guardian.__file__)), str(lock or ""), *names]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
        cwd="/",  # the campaign directory may be removed
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes], names: Sequence[str]) -> None:
    """Cancel what is left. The guardian goes on trying when that fails."""
    assert process.stdin is not None
    try:
        cancel_named(names)
    except PipelineError as error:
        logger.warning("%s Jobs named %s are cancelled as soon as it answers.", error, ", ".join(names))
        process.stdin.close()
        return
    try:
        process.stdin.write(guardian.WELL)
        process.stdin.close()
        process.wait(GUARDIAN_S)
    except (BrokenPipeError, subprocess.TimeoutExpired):  # somebody killed it
        process.kill()
        process.wait()
