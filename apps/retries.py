"""What is tried again: tasks whose worker or job was lost, never a task that failed by itself."""

from parsl.dataflow.taskrecord import TaskRecord
from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost

from apps.notices import Notices
from pipeline.errors import LostWorkerError
from site_configs.workers import RETRIES

LOST = (WorkerLost, ManagerLost)

NEVER = 1000.0
"""A price above all that may be spent."""

WORKER_RETRIES = 2
"""A worker dies of what its task does to it (memory, a segmentation fault), so few times more."""
JOB_RETRIES = RETRIES
"""A job ends for reasons of its own (scancel, node down, preemption, wall time), so more often."""


def price_of(error: Exception) -> float:
    """What a failure costs of :data:`RETRIES`."""
    if isinstance(error, WorkerLost):
        return RETRIES / WORKER_RETRIES
    return RETRIES / JOB_RETRIES if isinstance(error, ManagerLost) else NEVER


class RetryHandler:
    """Prices of failures for Parsl; tells each lost worker or job.

    Args:
        notices: where it is told.
    """

    def __init__(self, notices: Notices) -> None:
        self._notices = notices

    def __call__(self, error: Exception, record: TaskRecord) -> float:
        """Price of a failure, to be paid from the configuration's ``retries``."""
        price = price_of(error)
        if price < NEVER:
            spent = record["fail_cost"] + price
            again = round(spent / price)
            allowed = WORKER_RETRIES if isinstance(error, WorkerLost) else JOB_RETRIES
            fate = f"tried again ({again} of {allowed})" if spent <= RETRIES else "given up"
            self._notices.add(f"{_task_of(record)}: {what_was_lost(error)}; {fate}")
        return price


def what_was_lost(error: Exception) -> str:
    """In words."""
    if isinstance(error, WorkerLost):
        return f"worker {error.worker_id} on node {error.hostname} died"
    assert isinstance(error, ManagerLost)
    return f"its job on node {error.hostname} was lost"


def lost_for_good(error: Exception, section: str | None) -> LostWorkerError:
    """What a task ends with that may not be tried again.

    Args:
        error: the last loss.
        section: of the site file that describes its job, e.g. ``site.label``; None where workers have no jobs.
    """
    more = f" Raise {section}.memory_GB_per_node where memory ran out." if section else ""
    if isinstance(error, WorkerLost):
        return LostWorkerError(
            f"its worker died {WORKER_RETRIES + 1} times: {what_was_lost(error)}.",
            f"Look for memory that ran out or a crash of the program it runs.{more}",
        )
    longer = f" If it takes longer than its job lasts, raise {section}.walltime and {section}.drain." if section else ""
    return LostWorkerError(
        f"its job was lost {JOB_RETRIES + 1} times: {what_was_lost(error)}.",
        f"Look at the outputs of jobs in runinfo/.{longer}",
    )


def _task_of(record: TaskRecord) -> str:
    arguments = record["args"]
    return str(getattr(arguments[0], "task", record["func_name"])) if arguments else str(record["func_name"])
