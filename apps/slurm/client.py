"""The queue: jobs by name, submit, cancel. Argument lists only, each call with a time limit, refusals in SLURM's own words.

Needs no accounting (sacct): what is asked is only ever about jobs that wait or run.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from apps.slurm.names import DRIVER, job_name
from pipeline.errors import SiteError
from site_configs.slurm_commands import SchedulerError, call, refusal, sbatch


class SilenceError(SiteError):
    """SLURM did not answer: it may do so later."""


FIELDS = "%i|%j|%T|%N|%M|%L|%r"
"""Number, name, state, nodes, elapsed, left, reason; the last may hold anything."""

_CLOCK = re.compile(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job in the queue.

    Attributes:
        id: SLURM's number.
        name: see :mod:`apps.slurm.names`.
        state: as SLURM calls it, e.g. ``RUNNING``.
        node: where it runs; empty while it waits.
        elapsed_s, left_s: seconds since it began and to its wall time; None where there is none.
        reason: why it waits; ``None`` (SLURM's word) when it does not.
    """

    id: str
    name: str
    state: str
    node: str
    elapsed_s: int | None
    left_s: int | None
    reason: str

    @property
    def waits(self) -> bool:
        """It holds no node yet."""
        return self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "CONFIGURING")

    @property
    def ends(self) -> bool:
        """It is over but for the clearing up."""
        return not self.waits and self.state not in ("RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING")


def jobs_named(names: Sequence[str]) -> tuple[Job, ...]:
    """The caller's jobs of these names that wait, run or are just ending, by number.

    Raises:
        SiteError: SLURM does not answer.
    """
    # --me is known to squeue since 20.02
    answer = _ask(["squeue", "--me", "--noheader", f"--name={','.join(names)}", f"--format={FIELDS}"])
    return parse_jobs(answer)


def driver_jobs(prefix: str) -> tuple[Job, ...]:
    """Jobs of a campaign's driver that wait or run.

    Args:
        prefix: of the names of the campaign's jobs.

    Raises:
        SiteError: SLURM does not answer.
    """
    return tuple(job for job in jobs_named([job_name(prefix, DRIVER)]) if not job.ends)


def parse_jobs(answer: str) -> tuple[Job, ...]:
    """What squeue printed in the format :data:`FIELDS`."""
    rows = [line.split("|", 6) for line in answer.splitlines() if line.count("|") >= 6]
    jobs = [
        Job(
            id=number.strip(),
            name=name,
            state=state,
            node=node,
            elapsed_s=parse_clock(elapsed),
            left_s=parse_clock(left),
            reason=reason,
        )
        for number, name, state, node, elapsed, left, reason in rows
    ]
    return tuple(sorted(jobs, key=lambda job: (len(job.id), job.id)))


def parse_clock(text: str) -> int | None:
    """Seconds of ``D-HH:MM:SS``, ``HH:MM:SS`` or ``MM:SS``; None of ``UNLIMITED``, ``INVALID`` and ``NOT_SET``."""
    match = _CLOCK.fullmatch(text.strip())
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((24 * days + hours) * 60 + minutes) * 60 + seconds


def restarts_of(job_id: str) -> int:
    """How often SLURM has started a job anew; at once one more when it is being requeued, before it ends.

    Raises:
        SiteError: SLURM does not answer, or has forgotten the job.
    """
    match = re.search(r"\bRestarts=(\d+)", _ask(["scontrol", "--oneliner", "show", "job", job_id]))
    return int(match[1]) if match else 0


def submit_job(script: Path, arguments: Sequence[str] = ()) -> str:
    """Submit a batch script; returns the number of the job.

    Args:
        script: with its options as ``#SBATCH`` lines.
        arguments: of the script.

    Raises:
        SiteError: refused, or SLURM does not answer.
    """
    try:
        return sbatch(script, arguments)
    except SchedulerError as error:
        refused = refusal(str(error), "driver", trusted=False)
        remedy = refused.remedy or "This passes by itself: try again later."
        raise SiteError(f"SLURM refused the driver's job: {refused.words}.", _driver_keys(remedy)) from None


def cancel_named(names: Sequence[str]) -> None:
    """Cancel all of the caller's jobs of these names; nothing happens when there are none.

    Raises:
        SiteError: SLURM does not answer.
    """
    for name in names:  # scancel takes one name at a time
        _ask(["scancel", "--me", f"--name={name}"])


def cancel_jobs(ids: Sequence[str]) -> None:
    """Cancel jobs by number; those that are over already do no harm.

    Raises:
        SiteError: SLURM does not answer.
    """
    if ids:
        _ask(["scancel", "--quiet", *ids])


def _ask(command: Sequence[str]) -> str:
    try:
        return call(command)
    except SchedulerError as error:
        remedy = "Do this where SLURM's commands work (a login node), and when its controller answers."
        raise SilenceError(f"SLURM did not answer: {error}.", remedy) from None


def _driver_keys(remedy: str) -> str:
    """The driver's job has a node and a task of its own, so its keys are shorter than those of worker jobs."""
    return remedy.replace("memory_GB_per_node", "memory_GB").replace("cores_per_node", "cores")
