"""Parsl's executor on SLURM jobs: says what happens to them, and tells what passes from what a person must mend."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import InvalidStateError
from typing import Any

from parsl.executors import HighThroughputExecutor
from parsl.executors.high_throughput.errors import CommandClientBadError, CommandClientTimeoutError, VersionMismatch
from parsl.executors.status_handling import BlockProviderExecutor
from parsl.jobs.states import JobState, JobStatus

from pipeline.errors import SiteError
from site_configs.slurm_commands import SchedulerError, refusal
from site_configs.slurm_fate import fate_of, never_starts, why_no_worker
from site_configs.slurm_jobs import Job, SlurmJobs

logger = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 30.0, 300.0
"""Pauses after refusals that pass by themselves, and after jobs that end at once, each twice the one before, seconds."""
FAILED_STARTS = 3
"""Jobs in a row that end without a worker, after which the executor gives up unless another job works; one is enough while
none ever had a worker."""
INTERCHANGE_S = 10.0
"""How long the interchange, a process beside the driver, may take to answer, seconds."""


class SlurmExecutor(HighThroughputExecutor):  # type: ignore[misc]  # Parsl's classes have no types
    """One kind of jobs. All but ``submit`` runs in the one thread that looks after all jobs.

    Args:
        jobs: submits, watches and cancels them.
        notify: takes a line and a remedy.
        options: of the executor.
    """

    def __init__(self, *, jobs: SlurmJobs, notify: Callable[[str, str], None], **options: Any) -> None:  # noqa: ANN401
        super().__init__(provider=jobs, block_error_handler=False, **options)
        self.jobs, self.notify = jobs, notify
        self._open: set[str] = set()
        self._connected: set[str] = set()
        self._failed_starts = self._early_ends = 0
        self._accepted = False
        self._refusals = 0
        self._not_before = 0.0
        self._warned: set[tuple[str, str]] = set()

    def scale_out_facade(self, n: int) -> list[str]:
        """Submit jobs, unless the last refusal was too recent."""
        blocks: list[str] = []
        while len(blocks) < n and time.monotonic() >= self._not_before and not self.bad_state_is_set:
            block = str(self._block_id_counter.get_id())
            try:
                number = self._launch_block(block)
            except SchedulerError as error:
                self._refused(str(error))
                break
            self.blocks_to_job_id[block], self.job_ids_to_block[number] = number, block
            self._status[block] = JobStatus(JobState.PENDING)
            self._open.add(block)
            blocks.append(block)
            if self._refusals:
                self.notify(f"SLURM takes jobs for {self.label} again", "")
            self._accepted, self._refusals = True, 0
        return blocks

    def _refused(self, words: str) -> None:
        verdict = refusal(words, self.label, trusted=self._accepted)
        if verdict.final:
            self.set_bad_state_and_fail_all(
                SiteError(f"SLURM refuses the jobs of site.{self.label}: {words}.", verdict.remedy)
            )
            return
        if not self._refusals:
            self.notify(f"SLURM does not take another job for {self.label} now: {words}; it is asked again", "")
        self._refusals += 1
        self._not_before = time.monotonic() + pause_after(self._refusals)

    def scale_in(self, blocks: int, max_idletime: float | None = None) -> list[str]:
        """Cancel jobs: any, waiting ones first; with ``max_idletime`` only jobs whose workers were idle for so long.

        Parsl's own takes a job that waits in the queue for idle, and would give its place in the queue away.
        """
        if blocks <= 0:
            return []
        if max_idletime is None:
            running = [b for b in self._open if self.jobs.jobs[self.blocks_to_job_id[b]].node]
            chosen = [*sorted(self._open.difference(running), key=int), *sorted(running, key=int)][:blocks]
        else:
            chosen = self._idle_blocks(max_idletime)[:blocks]
            for block in chosen:
                self._hold_block(block)
        killed = self.jobs.cancel([self.blocks_to_job_id[block] for block in chosen])
        return [block for block, gone in zip(chosen, killed, strict=True) if gone]

    def _idle_blocks(self, longer_than_s: float) -> list[str]:
        idle: dict[str, float] = {}
        for manager in self.connected_managers():
            block = manager["block_id"]
            since = 0.0 if manager["tasks"] else manager["idle_duration"]
            idle[block] = min(idle.get(block, since), since)
        found = [block for block, since in idle.items() if since > longer_than_s and block in self._open]
        return sorted(found, key=lambda block: -idle[block])

    def status(self) -> dict[str, JobStatus]:
        """State of all jobs; looks at the interchange as well."""
        status: dict[str, JobStatus] = BlockProviderExecutor.status(self)
        if self.bad_state_is_set:
            return status
        try:
            connected = set(self._ask("CONNECTED_BLOCKS"))
        except (CommandClientTimeoutError, CommandClientBadError):
            remedy = f"Look for memory that ran out on this machine, and at {self.logdir}/interchange.log."
            error = SiteError(f"the process that hands tasks to the {self.label} workers is gone.", remedy)
            self.set_bad_state_and_fail_all(error)
            return status
        if connected - self._connected:
            self._failed_starts = self._early_ends = 0
        self._connected |= connected
        return status

    def connected_managers(self) -> list[dict[str, Any]]:
        """What the interchange knows of the worker pools."""
        managers: list[dict[str, Any]] = self._ask("MANAGERS")
        return managers

    def _hold_manager(self, manager_id: str) -> None:
        self._ask(["HOLD_MANAGER", manager_id])

    def _ask(self, message: object) -> Any:  # noqa: ANN401
        """Parsl itself would wait for ever for an interchange that died."""
        if self.interchange_proc is None or self.interchange_proc.poll() is not None:
            raise CommandClientTimeoutError("the interchange is gone")
        return self.command_client.run(message, timeout_s=INTERCHANGE_S)

    def handle_errors(self, status: dict[str, JobStatus]) -> None:
        """Judge every job that ended since the last look, and warn of those that will never start."""
        if self.bad_state_is_set:
            self._fail_all()
            return
        for block in sorted(self._open, key=int):
            job = self.jobs.jobs[self.blocks_to_job_id[block]]
            if job.status.terminal:
                self._open.discard(block)
                if not job.ours:
                    self._ended(block, job)
            elif job.state == "PENDING" and (job.id, job.reason) not in self._warned:
                self._warned.add((job.id, job.reason))
                if remedy := never_starts(job.reason, self.label):
                    self.notify(f"{self.label} job {job.id} cannot start: {job.reason}", remedy)

    def _ended(self, block: str, job: Job) -> None:
        fate = fate_of(job, self.label)
        if block in self._connected:
            if fate.text:
                self.notify(f"{_name(job, self.label)} {fate.text}; its tasks are done again elsewhere", fate.remedy)
            self._hold_block(block)  # until the heartbeat is missed, its dead workers would be sent new tasks
            return
        self._early_ends += 1
        if self._early_ends > 1:  # whatever ends them will end the next one too
            self._not_before = time.monotonic() + pause_after(self._early_ends - 1)
        if fate.excused:
            self.notify(f"{_name(job, self.label)} {fate.text} before it had a worker; another one is asked for", "")
            return
        self._failed_starts += 1
        are_working = bool(self._connected & self._open)
        if self._connected and (are_working or self._failed_starts < FAILED_STARTS):
            self.notify(f"{_name(job, self.label)} ended without a worker; another one is asked for", "")
            return
        self.set_bad_state_and_fail_all(why_no_worker(job, self.label, self._failed_starts))

    def set_bad_state_and_fail_all(self, exception: Exception) -> None:
        """No more jobs, no more tasks: all of them fail with a ``SiteError`` that says why."""
        if self.bad_state_is_set:
            return
        if isinstance(exception, VersionMismatch):
            there, here = exception.manager_version, exception.interchange_version
            message = f"the {self.label} workers run another Python or Parsl ({there}) than the driver ({here})."
            exception = SiteError(message, "Let site.python and site.worker_init use the environment of the driver.")
        logger.error("%s: %s", self.label, exception)
        self._executor_exception = exception
        self._executor_bad_state.set()
        self._fail_all()
        self._cancel_all()

    def _fail_all(self) -> None:
        for number in list(self.tasks):
            future = self.tasks.pop(number, None)
            if future is not None and not future.done():
                try:
                    future.set_exception(self._executor_exception)
                except InvalidStateError:  # its result came at this moment
                    logger.debug("task %s was done", number)

    def _cancel_all(self) -> None:
        if problem := self.jobs.cancel_all():
            logger.warning("jobs named %s could not be cancelled: %s", self.jobs.kind.name, problem)

    def shutdown(self, timeout: float = 10.0) -> None:
        """Cancel all jobs, waiting ones too, also in a bad state; then end the interchange."""
        self._cancel_all()
        super().shutdown(timeout)


def pause_after(times: int) -> float:
    """Seconds to wait before another job is asked for, when that was in vain so many times in a row."""
    pause_s = FIRST_PAUSE_S
    for _ in range(times - 1):
        pause_s *= 2
        if pause_s >= LONGEST_PAUSE_S:
            return LONGEST_PAUSE_S
    return pause_s


def _name(job: Job, label: str) -> str:
    return f"{label} job {job.id}{f' on {job.node}' if job.node else ''}"
