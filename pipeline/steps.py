"""Who carries tasks out: the border between the loop and an engine."""

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from pipeline.events import Work
from pipeline.records import Result, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something about the machine that a person should read: one line, and what to do where a person must act."""

    text: str
    remedy: str = ""


class Steps(Protocol):
    """Task in, future of its result out.

    A future holds an exception only when the worker was lost for good (:class:`pipeline.errors.LostWorkerError`), the machine
    is unusable (:class:`pipeline.errors.SiteError`), or a task has a bug.
    """

    def submit(self, task: Task, priority: int = 0) -> Future[Result]:
        """Hand a task out; returns at once. Of tasks that wait for the same workers, the lowest ``priority`` begins first."""
        ...

    def capacity(self, work: Work) -> int:
        """How many tasks of a kind to hand out at a time: enough to keep all workers busy, few enough to stop soon."""
        ...

    def notices(self) -> tuple[Notice, ...]:
        """What was noticed since the last call: lost workers, jobs that ended, submissions that were refused."""
        ...
