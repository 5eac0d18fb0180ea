"""What a driver did and noticed."""

from dataclasses import dataclass
from typing import Any, Literal

from pipeline.events.kinds import EndReason, Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    """The campaign began.

    Attributes:
        time: seconds since the epoch, as in every event.
        settings: resolved settings, plain values.
        digest: of the settings that may not change any more.
        structures: digest of the start structures.
        versions: of farwalk, python, torch, ase.
    """

    kind: Literal["created"] = "created"
    time: float
    schema: int
    settings: dict[str, Any]
    digest: str
    structures: str
    versions: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """A driver took the campaign up again, perhaps with another budget, stop rule or site."""

    kind: Literal["resumed"] = "resumed"
    time: float
    settings: dict[str, Any]
    host: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """Tasks were handed out."""

    kind: Literal["submitted"] = "submitted"
    time: float
    work: Work
    round: int
    tasks: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFailed:
    """A walk, selection or training failed: the campaign cannot go on. ``remedy``: what to do, where that is known."""

    kind: Literal["task_failed"] = "task_failed"
    time: float
    work: Work
    round: int
    task: str
    reason: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLost:
    """A task's worker was lost for good, or its disk was full; the task is made again while the rest goes on."""

    kind: Literal["task_lost"] = "task_lost"
    time: float
    work: Work
    round: int
    task: str
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Noticed:
    """Something happened to the machine: a worker or job was lost, a submission refused. ``remedy``: what a person must do."""

    kind: Literal["noticed"] = "noticed"
    time: float
    text: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Idled:
    """Workers had no task for a while, up to ``time``, for one reason.

    Attributes:
        work: the kind of task they are for.
        since: when it began; slot_s: seconds without a task, summed over them.
    """

    kind: Literal["idled"] = "idled"
    time: float
    work: Work
    since: float
    reason: str
    slot_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """The driver ended; what was still in flight, if anything, was left behind. ``remedy``: what a person must do."""

    kind: Literal["stopped"] = "stopped"
    time: float
    reason: EndReason
    message: str
    remedy: str = ""
