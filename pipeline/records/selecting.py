"""Select tasks: which candidates are worth a label."""

from dataclasses import dataclass

from pipeline.frames import Frame
from pipeline.records.basics import FileRef, ModelRef, Status, Timing
from pipeline.records.walking import Candidate
from pipeline.settings.selection import SelectionSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectTask:
    """Pick frames to label among the candidates in ``candidates`` (shard files), given the labels in ``labels``."""

    task: str
    round: int
    model: ModelRef
    settings: SelectionSettings
    candidates: tuple[FileRef, ...]
    labels: tuple[FileRef, ...]
    in_flight: tuple[Frame, ...]
    count: int
    seed: int
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectResult:
    """The picked candidates in order of value, and how many were dropped for which reason."""

    task: str
    status: Status
    reason: str
    picks: tuple[Candidate, ...]
    dropped: dict[str, int]
    timing: Timing
