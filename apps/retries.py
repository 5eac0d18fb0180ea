"""What is tried again: tasks whose worker or node was lost, never a task that failed by itself."""

from parsl.dataflow.taskrecord import TaskRecord
from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost

LOST = (WorkerLost, ManagerLost)

NEVER = 1000.0
"""A cost above any number of retries."""


def retry_handler(error: Exception, task: TaskRecord) -> float:
    """Cost of a failure, to be paid from the configuration's ``retries``."""
    return 1.0 if isinstance(error, LOST) else NEVER
