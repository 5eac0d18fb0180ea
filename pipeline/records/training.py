"""Train tasks, their scores and results."""

from dataclasses import dataclass, field
from typing import Literal

from pipeline.records.basics import FileRef, ModelRef, Remark, Status, Timing
from pipeline.settings.launch import LaunchSettings
from pipeline.settings.potential import PotentialSettings
from pipeline.settings.training import TrainingSettings
from pipeline.settings.uncertainty import UncertaintySettings
from pipeline.settings.walkers import WalkerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainTask:
    """Train the next model on the labels in ``labels``, from ``parent`` where warm start is on.

    Attributes:
        attempt: 0, or 1 for the training from scratch after a model that did not pass the gate.
        walkers: what the short walks of the gate have in common with those of the campaign.
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
    walkers: WalkerSettings
    attempt: int = 0
    ranks: int = 1
    launch: LaunchSettings = field(default_factory=LaunchSettings)


Quantity = Literal["total", "atomic"]
"""Energy per atom of a structure, or force on an atom."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFactor:
    """A conformal factor and what it was fitted on.

    Attributes:
        group: ``all``, an element symbol (atomic) or the name of a system (total).
        value: factor s of the calibrated bound s·u, the shift included.
        shift: by how much bounds had to grow lately to hold for selected structures; 1: they held.
        count: calibration structures (total) or atoms (atomic); structures: how many structures these are from.
        exact: enough of them for the quantile.
        own: whether the group has a factor of its own; otherwise ``value`` is that of ``all``.
    """

    quantity: Quantity
    group: str
    value: float
    shift: float
    count: int
    structures: int
    exact: bool
    own: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCoverage:
    """How often calibrated bounds held on labels that came later.

    Attributes:
        group: as in :class:`GroupFactor`.
        count: structures (total) or atoms (atomic) looked at; held: of these, how many errors were within their bounds.
        structures: how many structures these are from: atoms of one are not independent.
        low, high: share of bounds that may hold by chance where they are right, from the calibration points there were.
    """

    quantity: Quantity
    group: str
    count: int
    held: int
    structures: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """Bounds that held, of all."""
        return self.held / self.count

    @property
    def is_off(self) -> bool:
        """Whether it is outside of what chance explains."""
        return not self.low <= self.share <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Errors of one model on one set of labels.

    Attributes:
        count: structures in the set.
        energy_rmse, energy_mae: eV/atom.
        force_rmse, force_mae: eV/Å, over components.
        coverage_total: share of structures whose energy error per atom is at most the calibrated total uncertainty.
        coverage_atomic: share of atoms whose force error norm is at most the calibrated atom-based uncertainty.
        groups: the same per element and per system, with what chance allows; empty where it was not asked for.
    """

    count: int
    energy_rmse: float
    energy_mae: float
    force_rmse: float
    force_mae: float
    coverage_total: float | None = None
    coverage_atomic: float | None = None
    groups: tuple[GroupCoverage, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """Whether a new model may replace the running one.

    Attributes:
        passed: it may; reason: why not.
        parent, model: scores on the validation labels.
        walks: short walks made with each; parent_unsound, model_unsound: how many ended in what cannot be.
    """

    passed: bool
    reason: str
    parent: Scores | None
    model: Scores | None
    walks: int
    parent_unsound: int
    model_unsound: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """The new model's file and scores.

    Attributes:
        fresh: the *parent's* scores on labels that came after its calibration; None for the first model.
        validation, train: the new model's scores.
        factors: conformal factors: of all, of each system and of each element.
        gate: whether it may replace the parent; None for the first model and where there is no gate.
        history: one row per logged epoch: epoch, loss, validation energy and force MAE.
    """

    task: str
    status: Status
    reason: str
    file: FileRef | None
    fresh: Scores | None
    train: Scores | None
    validation: Scores | None
    factors: tuple[GroupFactor, ...]
    epochs: int
    history: tuple[dict[str, float], ...]
    timing: Timing
    gate: GateReport | None = None
    remarks: tuple[Remark, ...] = ()
