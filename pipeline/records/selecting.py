"""Select tasks: which candidates are worth a label."""

from dataclasses import dataclass, field

from pipeline.frames import Frame
from pipeline.records.basics import FileRef, ModelRef, Remark, Status, Timing
from pipeline.settings.launch import LaunchSettings
from pipeline.settings.selection import SelectionSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectTask:
    """Pick frames to label among the candidates in ``candidates``, given the labels in ``labels``.

    Attributes:
        candidates, labels: shards, or lists of shards.
        output: directory the worker writes the picks to; the driver publishes them by rename.
        ranks: MPI ranks that share the work; 1: the worker alone. launch: how they are started.
    """

    task: str
    round: int
    model: ModelRef
    settings: SelectionSettings
    candidates: tuple[FileRef, ...]
    labels: tuple[FileRef, ...]
    in_flight: tuple[Frame, ...]
    count: int
    output: str
    seed: int
    threads: int
    ranks: int = 1
    launch: LaunchSettings = field(default_factory=LaunchSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectResult:
    """A shard of the picked candidates in order of value (None when it failed), and how many were dropped for which reason."""

    task: str
    status: Status
    reason: str
    picks: FileRef | None
    count: int
    dropped: dict[str, int]
    timing: Timing
    remarks: tuple[Remark, ...] = ()
