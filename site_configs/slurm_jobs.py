"""The jobs of one executor: submitted, watched and cancelled with SLURM's own commands."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from parsl.jobs.states import JobState, JobStatus
from parsl.providers.base import ExecutionProvider

from site_configs.slurm_commands import SchedulerError, call, sbatch
from site_configs.slurm_script import JobKind, script

POLL_S = 5
"""How often the queue is looked at, seconds: what a lost job costs before it is replaced."""

UNLISTED_S = 120.0
"""How long a job that was submitted may be missing in the queue before it is given up, seconds: queues answer from caches."""

VANISHED = "gone from the queue"
"""State of a job that the queue no longer lists and whose end nobody saw."""

_STATES = {
    "PENDING": JobState.PENDING,
    "CONFIGURING": JobState.PENDING,
    "REQUEUED": JobState.PENDING,
    "RUNNING": JobState.RUNNING,
    "COMPLETING": JobState.RUNNING,
    "STAGE_OUT": JobState.RUNNING,
    "SIGNALING": JobState.RUNNING,
    "STOPPED": JobState.RUNNING,
    "SUSPENDED": JobState.RUNNING,
    "CANCELLED": JobState.CANCELLED,
    "COMPLETED": JobState.COMPLETED,
    "TIMEOUT": JobState.TIMEOUT,
    "DEADLINE": JobState.TIMEOUT,
    "PREEMPTED": JobState.TIMEOUT,
    VANISHED: JobState.COMPLETED,
}
"""SLURM's states as Parsl's; all others are failures."""


@dataclass(slots=True)
class Job:
    """One job.

    Attributes:
        id: SLURM's number.
        output: path of its script; its streams have the same with a suffix.
        submitted: monotonic clock.
        state: as SLURM calls it.
        node: where it runs or ran; empty before.
        reason: why it waits.
        ours: cancelled by this driver.
        missed_at: when the queue was last asked and did not list it, monotonic clock; 0: it did.
        was_listed: the queue has listed it.
    """

    id: str
    output: Path
    submitted: float
    state: str = "PENDING"
    node: str = ""
    reason: str = ""
    ours: bool = False
    missed_at: float = 0.0
    was_listed: bool = False

    @property
    def status(self) -> JobStatus:
        """As Parsl sees it."""
        return JobStatus(_STATES.get(self.state, JobState.FAILED))


@dataclass(slots=True)
class Queue:
    """The campaign's jobs in the queue, asked for once for all executors.

    Attributes:
        names: of the jobs.
        on_silence: called with what SLURM says when it stops answering, with None when it answers again.
    """

    names: tuple[str, ...]
    on_silence: Callable[[str | None], None]
    _asked: float = -POLL_S
    _jobs: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    _silent: bool = False

    def look(self) -> tuple[float, dict[str, tuple[str, str, str]]] | None:
        """When the queue was last asked (monotonic clock), and state, node and reason by job; None while it does not answer."""
        if time.monotonic() - self._asked < POLL_S / 2:
            return None if self._silent else (self._asked, self._jobs)
        asked = time.monotonic()
        # by name: asking for a single job by number fails once SLURM has forgotten it
        command = ["squeue", "--me", "--noheader", "--states=all", f"--name={','.join(self.names)}"]
        try:
            answer = call([*command, "--format=%i|%T|%N|%r"])
        except SchedulerError as error:
            self._tell(str(error))
            self._asked = time.monotonic()
            return None
        self._tell(None)
        rows = [line.split("|", 3) for line in answer.splitlines() if line.count("|") >= 3]
        self._jobs = {number.strip(): (state, node, reason) for number, state, node, reason in rows}
        self._asked = asked
        return self._asked, self._jobs

    def _tell(self, problem: str | None) -> None:
        if self._silent != (problem is not None):
            self._silent = problem is not None
            self.on_silence(problem)


class SlurmJobs(ExecutionProvider):  # type: ignore[misc]  # Parsl's classes have no types
    """Parsl's provider for the jobs of one executor.

    Args:
        kind: what they have in common.
        queue: the campaign's jobs.
    """

    def __init__(self, kind: JobKind, queue: Queue) -> None:
        super().__init__()
        allocation = kind.allocation
        self.kind, self.queue = kind, queue
        self.jobs: dict[str, Job] = {}
        self.script_dir: str | None = None  # Parsl sets it
        self.nodes_per_block = allocation.nodes_per_block
        self.init_blocks = self.min_blocks = allocation.min_blocks
        self.max_blocks = allocation.max_blocks
        self.parallelism = 1.0
        self._lost_answer = False

    @property
    def label(self) -> str:
        """What kind of provider this is."""
        return "slurm"

    @property
    def status_polling_interval(self) -> int:
        """Seconds."""
        return POLL_S

    def submit(self, command: str, tasks_per_node: int, job_name: str = "") -> str:
        """Write the script of a job and submit it.

        Raises:
            SchedulerError: it was refused.
        """
        assert self.script_dir is not None
        path = Path(self.script_dir) / f"{job_name or self.kind.label}.sh"
        output = path.with_suffix("")
        try:
            path.write_text(script(self.kind, command, output), encoding="utf-8")
        except OSError as error:
            raise SchedulerError(f"{path}: {error.strerror}") from None
        try:
            number = sbatch(path)
        except SchedulerError:
            self._lost_answer = True  # it may have been accepted all the same
            raise
        self.jobs[number] = Job(number, output, time.monotonic())
        return number

    def status(self, job_ids: Sequence[object]) -> list[JobStatus]:
        """What is known of jobs; what was known last while SLURM does not answer."""
        if any(not job.status.terminal for job in self.jobs.values()) or self._lost_answer:
            seen = self.queue.look()
            if seen is not None:
                self._update(*seen)
        return [self.jobs[str(number)].status for number in job_ids]

    def _update(self, asked: float, queue: dict[str, tuple[str, str, str]]) -> None:
        for job in self.jobs.values():
            if job.status.terminal:
                continue
            if job.id in queue:
                job.state, node, job.reason = queue[job.id]
                job.node, job.missed_at, job.was_listed = node or job.node, 0.0, True
            elif job.submitted < asked and asked > job.missed_at:
                is_gone = job.missed_at > 0 if job.was_listed else asked - job.submitted > UNLISTED_S
                job.missed_at = asked
                if is_gone:
                    job.state = VANISHED
                    with suppress(SchedulerError):  # should it be there all the same, it has been replaced
                        call(["scancel", "--quiet", job.id])
        if self._lost_answer:
            self._lost_answer = False
            self._cancel_unknown()

    def _cancel_unknown(self) -> None:
        """Jobs of this name that nobody here knows: sbatch did not answer, but accepted them."""
        try:
            listed = call(["squeue", "--me", "--noheader", f"--name={self.kind.name}", "--format=%i"]).split()
            unknown = [number for number in listed if number not in self.jobs]
            if unknown:
                call(["scancel", *unknown])
        except SchedulerError:
            self._lost_answer = True

    def cancel(self, job_ids: Sequence[object]) -> list[bool]:
        """Cancel jobs."""
        numbers = [str(number) for number in job_ids]
        if not numbers:
            return []
        try:
            call(["scancel", *numbers])
        except SchedulerError:
            return [False] * len(numbers)
        for number in numbers:
            self.jobs[number].ours = True
            self.jobs[number].state = "CANCELLED"
        return [True] * len(numbers)

    def cancel_all(self) -> str:
        """Cancel every job of this name, also those nobody here knows; says what went wrong, else nothing."""
        try:
            call(["scancel", "--me", f"--name={self.kind.name}"])
        except SchedulerError as error:
            return str(error)
        return ""
