"""What happened in a campaign, as facts: the only thing a campaign remembers besides its files.

An event is written after the files it names and before anything is done because of it. File paths are relative to the
campaign directory, so that it can be moved and copied.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from pipeline.errors import StoreError
from pipeline.records import Cause, FileRef, Found, GateReport, GroupFactor, Measure, Scores, Split, Timing, Try

SCHEMA = 3
"""Version of the events. Reading refuses any other."""


class Work(StrEnum):
    """Kinds of tasks."""

    WALK = "walk"
    SELECT = "select"
    LABEL = "label"
    TRAIN = "train"


class EndReason(StrEnum):
    """Why a campaign ended, or paused."""

    TARGET = "target"
    BUDGET = "budget"
    MAX_ROUNDS = "max_rounds"
    MAX_WALL = "max_wall_h"
    MAX_CPU = "max_cpu_h"
    MAX_GPU = "max_gpu_h"
    COVERAGE = "coverage"
    NOTHING_NEW = "nothing_new"
    LABELS_FAILED = "labels_failed"
    LABELS_PAUSED = "labels_paused"
    TASK_FAILED = "task_failed"
    INTERRUPTED = "interrupted"


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
class Walked:
    """A batch of walkers finished a leg of its segment.

    Attributes:
        round: of the campaign; in a stream each batch counts its own segments.
        item: which batch; leg: counts from 0 in each segment.
        candidates, walkers: shards; ``count`` candidates.
        stops: walkers that stopped in this leg, per reason.
        walker_steps: MD steps of all slots together in this leg; steps: of each slot.
        steps_left: of each slot, to the end of the segment; 0: the segment is over, also when it ended early.
        born: walkers that each slot has had so far in this segment.
        found: what came of it, per system.
        core_s, gpu_s: core and GPU seconds it held, as in the other events.
    """

    kind: Literal["walked"] = "walked"
    time: float
    round: int
    item: int
    leg: int
    version: int
    candidates: FileRef
    walkers: FileRef
    count: int
    stops: dict[str, int]
    walker_steps: int
    steps: int
    steps_left: int
    born: tuple[int, ...]
    timing: Timing
    found: dict[str, Found] = field(default_factory=dict)
    core_s: float = 0.0
    gpu_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """Frames to label were chosen.

    Attributes:
        round: of the campaign; a stream counts its selections from 1.
        picks: shard of candidates, ``count`` picked ones first; None when no walker had proposed any.
        kept: rows of the shard: those picked, and those kept for the next selection.
        version: of the model that judged them.
        saved: candidates that were waiting for a label and need none any more.
    """

    kind: Literal["selected"] = "selected"
    time: float
    round: int
    picks: FileRef | None
    count: int
    dropped: dict[str, int]
    timing: Timing | None
    kept: int = 0
    version: int = 0
    saved: int = 0
    core_s: float = 0.0
    gpu_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """A reference calculation succeeded.

    Attributes:
        item: index of the frame within the round.
        number: index of the request within the campaign, failed ones counted.
        file, row: where the label lies.
        reference: digest of the level of theory.
        tries: failed ones before it succeeded; core_s: core seconds held by all.
        measures: what the try that succeeded did differently from the settings.
    """

    kind: Literal["labelled"] = "labelled"
    time: float
    round: int
    item: int
    number: int
    identity: str
    system: str
    split: Split
    file: FileRef
    row: int
    timing: Timing
    reference: str = ""
    tries: tuple[Try, ...] = ()
    measures: tuple[Measure, ...] = ()
    core_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelFailed:
    """A reference calculation failed for good: it is quarantined, and its directory is kept.

    Attributes:
        cause: of the last try; tries: all of them; core_s: core seconds they held.
    """

    kind: Literal["label_failed"] = "label_failed"
    time: float
    round: int
    item: int
    number: int
    identity: str
    system: str
    reason: str
    scratch: str
    timing: Timing | None
    cause: Cause = Cause.UNKNOWN
    tries: tuple[Try, ...] = ()
    core_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Requeued:
    """Quarantined labels are tried again.

    Attributes:
        failures: as they were recorded.
        picks: of each, the shard of the frames selected in its round; None for those of round 0.
    """

    kind: Literal["requeued"] = "requeued"
    time: float
    failures: tuple[LabelFailed, ...]
    picks: tuple[FileRef | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """Labels that no model knows lie in one shard, in the order of their numbers, whatever order they came in.

    Those of a round; in a stream those that came since the last training began.
    """

    kind: Literal["gathered"] = "gathered"
    time: float
    round: int
    file: FileRef
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A model was published.

    Attributes:
        labels: how many labels it knows.
        fresh: scores of the *previous* model on labels newer than it; None for the first.
    """

    kind: Literal["trained"] = "trained"
    time: float
    round: int
    version: int
    file: FileRef
    labels: int
    fresh: Scores | None
    train: Scores | None
    validation: Scores | None
    factors: tuple[GroupFactor, ...]
    epochs: int
    history: tuple[dict[str, float], ...]
    timing: Timing
    gate: GateReport | None = None
    attempt: int = 0
    core_s: float = 0.0
    gpu_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A new model did not pass the gate: the running one stays.

    Attributes:
        attempt: 0: it is trained anew from scratch; 1: it is given up until there are more labels.
        fresh: scores of the running model on labels newer than it.
    """

    kind: Literal["rejected"] = "rejected"
    time: float
    round: int
    version: int
    attempt: int
    gate: GateReport
    fresh: Scores | None
    epochs: int
    timing: Timing
    core_s: float = 0.0
    gpu_s: float = 0.0


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


Event = (
    Created
    | Resumed
    | Submitted
    | Walked
    | Selected
    | Labelled
    | LabelFailed
    | Requeued
    | Gathered
    | Trained
    | Rejected
    | TaskFailed
    | TaskLost
    | Noticed
    | Idled
    | Stopped
)

_ADAPTER: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


def to_plain(event: Event) -> dict[str, Any]:
    """The event as JSON-able values."""
    plain: dict[str, Any] = _ADAPTER.dump_python(event, mode="python")
    return plain


def from_plain(plain: dict[str, Any], *, where: str) -> Event:
    """The event of :func:`to_plain`, after JSON.

    Raises:
        StoreError: no such event, or fields that do not fit.
    """
    try:
        return _ADAPTER.validate_python(plain)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise StoreError(
            f"{where}: not an event this version knows ({place}: {first['msg']}).",
            "Open the campaign with the farwalk version that wrote it, or restore events.jsonl from a copy.",
        ) from error
