"""What stands for tasks and results while nothing is carried out."""

from dataclasses import dataclass
from enum import StrEnum

from pipeline.records import FileRef, Remark
from pipeline.requests import Request

NOWHERE = FileRef(path="simulated", sha256="")
"""Every file of a simulation."""


class Fate(StrEnum):
    """How a task will end."""

    DONE = "done"
    FAILED = "failed"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeUpTask:
    """A task that only takes its time.

    Attributes:
        request: what was asked for.
        seconds: how long it takes.
        version: of the model it uses or makes.
        candidates: a walk brings, or a selection looks at for the first time.
        part: of its segment that a walk makes.
        known: share of these that a selection drops.
        left: candidates that wait, which a selection looks at again; waiting: of these, those picked before.
        wanted: candidates a selection may pick; keep: and keep, those picked included.
    """

    request: Request
    seconds: float
    fate: Fate = Fate.DONE
    version: int = 0
    candidates: int = 0
    part: float = 1.0
    known: float = 0.0
    left: int = 0
    waiting: int = 0
    wanted: int = 0
    keep: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeUpResult:
    """When a task ran, seconds since the campaign began."""

    started: float
    ended: float
    remarks: tuple[Remark, ...] = ()
