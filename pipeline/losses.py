"""What becomes of a task whose worker gave no result. Pure functions of the error and of how often that happened."""

from collections.abc import Sequence

from pipeline.errors import DiskFullError, LostWorkerError, PipelineError, PostponedError
from pipeline.events import TaskFailed, TaskLost, Work
from pipeline.records import Cause
from pipeline.requests import Request

MOST_TRIES = 3
"""How often a task is made again whose worker was lost for good, whose disk was full, or whose job ended too soon."""


def label_cause(request: Request, error: BaseException, losses: int) -> Cause | None:
    """Why a label failed for good; None where it is made again, its task has a bug, or it is no label.

    Args:
        request: what was asked for.
        error: what came instead of a result.
        losses: how often it was lost before.
    """
    if request.work is not Work.LABEL:
        return None
    if isinstance(error, LostWorkerError):
        return Cause.WORKER_LOST
    return Cause.TIME_LIMIT if isinstance(error, PostponedError) and losses >= MOST_TRIES else None


def unknown_so_far(failures: Sequence[TaskLost | TaskFailed], known: TaskFailed | None) -> list[TaskLost | TaskFailed]:
    """Failures without those for a reason the campaign failed for already: an executor that ends fails all its tasks.

    Args:
        failures: in their order.
        known: the failure of the campaign.
    """
    reasons = {known.reason} if known is not None else set()
    new: list[TaskLost | TaskFailed] = []
    for failure in failures:
        if isinstance(failure, TaskLost) or failure.reason not in reasons:
            new.append(failure)
            reasons.add(failure.reason)
    return new


def task_lost(request: Request, error: BaseException, losses: int, *, now: float) -> TaskLost | TaskFailed:
    """The task is made again, or the campaign cannot go on: the arguments of :func:`label_cause`, and the time."""
    name = request.name
    if isinstance(error, LostWorkerError | DiskFullError | PostponedError) and losses < MOST_TRIES:
        return TaskLost(
            time=now, work=request.work, round=request.round, task=name, reason=error.message, remedy=error.remedy
        )
    reason, remedy = f"{type(error).__name__}: {error}", ""
    if isinstance(error, PipelineError):
        reason, remedy = error.message, error.remedy
    return TaskFailed(time=now, work=request.work, round=request.round, task=name, reason=reason, remedy=remedy)
