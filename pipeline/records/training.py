"""Train tasks, their scores and results."""

from dataclasses import dataclass, field

from pipeline.records.basics import FileRef, ModelRef, Remark, Status, Timing
from pipeline.settings.launch import LaunchSettings
from pipeline.settings.potential import PotentialSettings
from pipeline.settings.training import TrainingSettings
from pipeline.settings.uncertainty import UncertaintySettings


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainTask:
    """Train the next model on the labels in ``labels``, from ``parent`` where warm start is on.

    Attributes:
        labels: shards, or lists of shards.
        fresh: identities of the labels that came after ``parent`` was calibrated: its errors and coverage are measured on them.
        output: path the worker writes the model to; the driver publishes it by rename.
        progress: path of a small JSON file the worker rewrites while it trains.
        ranks: MPI ranks that share the work; 1: the worker alone. launch: how they are started.
    """

    task: str
    version: int
    parent: ModelRef | None
    labels: tuple[FileRef, ...]
    fresh: tuple[str, ...]
    potential: PotentialSettings
    uncertainty: UncertaintySettings
    settings: TrainingSettings
    output: str
    progress: str
    seed: int
    threads: int
    ranks: int = 1
    launch: LaunchSettings = field(default_factory=LaunchSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Errors of one model on one set of labels.

    Attributes:
        count: structures in the set.
        energy_rmse, energy_mae: eV/atom.
        force_rmse, force_mae: eV/Å, over components.
        coverage_total: share of structures whose energy error per atom is at most the calibrated total uncertainty.
        coverage_atomic: share of atoms whose force error norm is at most the calibrated atom-based uncertainty.
    """

    count: int
    energy_rmse: float
    energy_mae: float
    force_rmse: float
    force_mae: float
    coverage_total: float | None = None
    coverage_atomic: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """The new model's file and scores.

    Attributes:
        fresh: the *parent's* scores on labels that came after its calibration; None for the first model.
        validation, train: the new model's scores.
        factors: conformal factors (total, atom-based) and how many points fitted each.
        history: one row per logged epoch: epoch, loss, validation energy and force MAE.
    """

    task: str
    status: Status
    reason: str
    file: FileRef | None
    fresh: Scores | None
    train: Scores | None
    validation: Scores | None
    factors: dict[str, float]
    epochs: int
    history: tuple[dict[str, float], ...]
    timing: Timing
    remarks: tuple[Remark, ...] = ()
