"""Select tasks: which candidates are worth a label."""

from dataclasses import dataclass, field

from pipeline.records.basics import FileRef, FrameRows, ModelRef, Remark, Status, Timing
from pipeline.settings.launch import LaunchSettings
from pipeline.settings.selection import SelectionSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectTask:
    """Pick frames to label among the candidates in ``candidates``, given the labels in ``labels``.

    Attributes:
        candidates, labels: shards, or lists of shards.
        pool: candidates that earlier selections kept, those that were waiting for a label first; None: there are none.
        waiting: how many of the pool's rows, from the first, were waiting for a label.
        in_flight: candidates that are being labelled.
        unlearned: shards of labels that the model was not trained on; ``labels`` are the others.
        sigma: ridge σ of the posterior, dimensionless.
        keep: how many candidates may be kept for later, those picked included.
        known_eV_per_A: candidates whose calibrated bound is below this on every atom are dropped; None: none is.
        shares: of each system in all labels, which picks follow as well as they can; empty: what is worth most is picked.
        labelled: labels that each system has, in flight ones included; what ``shares`` are counted from.
        output: directory the worker writes the picks to; the driver publishes them by rename.
        ranks: MPI ranks that share the work; 1: the worker alone. launch: how they are started.
    """

    task: str
    round: int
    model: ModelRef
    settings: SelectionSettings
    candidates: tuple[FileRef, ...]
    labels: tuple[FileRef, ...]
    pool: FrameRows | None
    waiting: int
    in_flight: tuple[FrameRows, ...]
    unlearned: tuple[FileRef, ...]
    count: int
    keep: int
    output: str
    seed: int
    threads: int
    sigma: float
    known_eV_per_A: float | None = None
    shares: dict[str, float] = field(default_factory=dict)
    labelled: dict[str, int] = field(default_factory=dict)
    ranks: int = 1
    launch: LaunchSettings = field(default_factory=LaunchSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectResult:
    """A shard of candidates (None when it failed), and how many were dropped for which reason.

    Attributes:
        picks: the picked ones in order of value, then those kept for later, most uncertain first.
        count: picked; kept: rows of the shard, picked ones included.
        saved: of those that were waiting for a label, how many need none any more: the model knows them, or the like of them
            was labelled.
        dropped: per reason: ``duplicate``, ``known``, ``not_finite``, ``force``, ``thinned``, ``surplus`` (beyond ``keep``).
    """

    task: str
    status: Status
    reason: str
    picks: FileRef | None
    count: int
    kept: int
    saved: int
    dropped: dict[str, int]
    timing: Timing
    remarks: tuple[Remark, ...] = ()
