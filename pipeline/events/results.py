"""What came of tasks."""

from dataclasses import dataclass, field
from typing import Literal

from pipeline.records import Cause, FileRef, Found, GateReport, GroupFactor, Measure, Scores, Split, Timing, Try


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
