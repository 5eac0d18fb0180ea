"""Tasks in the driver process, one after another, without an engine."""

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from pipeline.events import Work
from pipeline.label import run_label
from pipeline.node import ANYWHERE, Node
from pipeline.records import LabelTask, Result, SelectTask, Task, TrainTask, WalkTask
from pipeline.select import run_select
from pipeline.steps import Notice
from pipeline.train import run_train
from pipeline.walk import run_walk


def run_task(task: Task, node: Node = ANYWHERE) -> Result:
    """Carry out any task in this process."""
    match task:
        case WalkTask():
            return run_walk(task, node)
        case SelectTask():
            return run_select(task, node)
        case LabelTask():
            return run_label(task, node)
        case TrainTask():
            return run_train(task, node)


class InlineSteps:
    """One thread beside the loop; use as a context manager. On leaving, tasks that have not begun are dropped.

    Args:
        node: this machine.
    """

    def __init__(self, node: Node = ANYWHERE) -> None:
        self._node = node
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="farwalk")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def submit(self, task: Task, priority: int = 0) -> Future[Result]:
        """Put a task at the end of the queue, which is too short for priorities."""
        return self._thread.submit(run_task, task, self._node)

    def capacity(self, work: Work) -> int:
        """One is carried out while the next one waits."""
        return 2

    def notices(self) -> tuple[Notice, ...]:
        """Nothing ever happens to this process that it could tell."""
        return ()
