"""Everything that crosses a process border: tasks in, results out.

Frozen records of scalars, strings, tuples, numpy arrays and settings; no calculators, no GPU tensors. Big arrays travel as
files named by path and sha256 (:class:`FileRef`). Every result names the task it answers and carries a status: an expected
failure is a value, not an exception.
"""

import os
import socket
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.frames import FloatArray, Frame
from pipeline.settings.labels import Reference
from pipeline.settings.potential import PotentialSettings
from pipeline.settings.selection import SelectionSettings
from pipeline.settings.training import TrainingSettings
from pipeline.settings.uncertainty import UncertaintySettings
from pipeline.settings.variables import Variable
from pipeline.settings.walkers import WalkerSettings

Float32Array = npt.NDArray[np.float32]


class Status(StrEnum):
    """How a task ended."""

    DONE = "done"
    FAILED = "failed"


class StopReason(StrEnum):
    """Why a walker stopped; ``RUNNING`` means it goes on in its next segment."""

    RUNNING = "running"
    COMPLETED = "completed"
    UNCERTAIN = "uncertain"
    NOT_FINITE = "not_finite"
    ISOLATED_ATOM = "isolated_atom"
    TOO_CLOSE = "too_close"
    FORCE = "force"
    BONDS = "bonds"


class Split(StrEnum):
    """What a label is used for. ``CALIBRATION`` labels are never trained on nor used to pick an epoch."""

    TRAIN = "train"
    VALIDATION = "validation"
    CALIBRATION = "calibration"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRef:
    """A file by path (absolute, on a disk all workers see) and sha256 of its bytes."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When and where a task ran: seconds since the epoch, CPU seconds of the process, host name."""

    started: float
    ended: float
    cpu_s: float
    host: str

    @property
    def wall_s(self) -> float:
        """Elapsed seconds."""
        return self.ended - self.started


class Stopwatch:
    """Measures a task: ``watch = Stopwatch(); ...; watch.stop()``."""

    def __init__(self) -> None:
        self._started = time.time()
        self._cpu = time.process_time()

    def stop(self) -> Timing:
        """The timing from construction to now."""
        return Timing(
            started=self._started,
            ended=time.time(),
            cpu_s=time.process_time() - self._cpu,
            host=f"{socket.gethostname()}:{os.getpid()}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasState:
    """One walker's running estimate of the relative bias strength (carried over segments).

    Attributes:
        force_squared: (W,) float64 window of Σ_i |F_i|² samples, eV²/Å², oldest first.
        gradient_squared: (W,) float64 window of Σ_i |w_i ∂u/∂R_i|² samples at the same steps.
    """

    force_squared: FloatArray
    gradient_squared: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkerState:
    """All that is needed to continue one walker bit for bit.

    Random numbers need no generator state: they are a pure function of ``seed`` and ``age``.

    Attributes:
        walker: campaign-wide name, e.g. ``r0003-b01-s02-000``.
        frame: current positions and cell, Å.
        velocities: (N, 3) float64, Å per internal time unit (ASE's).
        temperature_K, tau: of this walker.
        seed: of its thermostat noise.
        age: MD steps since its start.
        clock: MD steps its batch has made over all segments; updates of the bias strength follow it.
        bias: running strength estimate.
        forces: (N, 3) float64 biased forces at ``frame``, eV/Å.
        model: sha256 of the model file that gave ``forces``; another model computes them anew.
        anchor: (N, 3) float64 positions at which its neighbour rows were built, Å.
        start: (N, 3) float64 positions it started from, Å (its bond graph is the reference of the bond check).
    """

    walker: str
    frame: Frame
    velocities: FloatArray
    temperature_K: float
    tau: float
    seed: int
    age: int
    clock: int
    bias: BiasState
    forces: FloatArray
    model: str
    anchor: FloatArray
    start: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A frame a walker proposes for labelling.

    Attributes:
        frame: geometry.
        walker: which walker; step: its age in MD steps; temperature_K, tau: of the walker.
        model_version: of the model that moved it.
        reason: ``RUNNING`` for a frame stored at an interval, else why the walker stopped here.
        total_uncertainty: calibrated, eV/atom.
        atomic_uncertainty: (N,) float32 calibrated, eV/Å.
    """

    frame: Frame
    walker: str
    step: int
    temperature_K: float
    tau: float
    model_version: int
    reason: StopReason
    total_uncertainty: float
    atomic_uncertainty: Float32Array


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """A published model."""

    version: int
    file: FileRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """A frame with its reference energy (eV), forces (N, 3) eV/Å, optional stress (6,) Voigt eV/Å³ (ASE sign), and provenance.

    Attributes:
        origin: walker, step, model_version, temperature_K, tau, uncertainties when selected; empty for start structures.
        cost_cpu_s: CPU seconds the reference took.
        reference: digest of the reference's physics settings.
    """

    frame: Frame
    energy: float
    forces: FloatArray
    stress: FloatArray | None
    split: Split
    round: int
    origin: dict[str, Any] = field(default_factory=dict)
    cost_cpu_s: float = 0.0
    reference: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkTask:
    """One batch of walkers for one segment of MD steps with one model.

    Attributes:
        resume: one state per slot to continue; slots without one start fresh from ``starts``.
        starts: labelled structures new walkers may start from (drawn with ``seed``).
        steps: MD steps each slot makes in this segment.
        enough: the batch may end early once it holds this many frames of walkers stopped for uncertainty or physics; 0: never.
        temperatures_K: (slots,) temperature of each slot.
    """

    task: str
    round: int
    item: int
    model: ModelRef
    settings: WalkerSettings
    temperatures_K: tuple[float, ...]
    starts: tuple[Frame, ...]
    resume: tuple[WalkerState | None, ...]
    steps: int
    enough: int
    seed: int
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkResult:
    """What a segment brought: candidates in visiting order, one state per slot (None: start fresh), stop counts, steps."""

    task: str
    status: Status
    reason: str
    candidates: tuple[Candidate, ...]
    walkers: tuple[WalkerState | None, ...]
    stops: dict[str, int]
    walker_steps: int
    timing: Timing


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


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelTask:
    """One reference calculation in its own directory. ``scratch`` is kept when it fails."""

    task: str
    round: int
    item: int
    frame: Frame
    reference: Reference
    scratch: str
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelResult:
    """Energy in eV, forces (N, 3) in eV/Å, stress (6,) Voigt in eV/Å³ where the reference has it."""

    task: str
    status: Status
    reason: str
    energy: float | None
    forces: FloatArray | None
    stress: FloatArray | None
    reference: str
    timing: Timing


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainTask:
    """Train the next model on the labels in ``labels`` (shard files), from ``parent`` where warm start is on.

    Attributes:
        fresh: identities of the labels that came after ``parent`` was calibrated: its errors and coverage are measured on them.
        output: path the worker writes the model to; the driver publishes it by rename.
        progress: path of a small JSON file the worker rewrites while it trains.
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


Task = WalkTask | SelectTask | LabelTask | TrainTask
Result = WalkResult | SelectResult | LabelResult | TrainResult

VariableSet = tuple[Variable, ...]
