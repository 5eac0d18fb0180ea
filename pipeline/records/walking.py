"""Walk tasks, what walkers carry, and what they find.

Shapes: N atoms, W samples of a window. Units: Å, eV/Å, eV/atom, K; velocities in Å per internal time unit.
"""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from pipeline.frames import FloatArray, Frame
from pipeline.records.basics import FileRef, ModelRef, Remark, Status, Timing
from pipeline.settings.variables import Variable
from pipeline.settings.walkers import WalkerSettings

Float32Array = npt.NDArray[np.float32]


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
    CELL = "cell"


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasState:
    """One walker's running estimate of the relative bias strengths (carried over segments).

    Attributes:
        force_squared: (W,) float64 window of Σ_i |F_i|² samples, eV²/Å², oldest first.
        gradient_squared: (W,) float64 window of Σ_i |w_i ∂u/∂R_i|² samples at the same steps.
        stress_squared: (W',) float64 window of |∂E/∂ε|² samples (sum over 9 components), eV²; empty where the cell stays.
        strain_squared: (W',) float64 window of |∂u/∂ε|² samples at the same steps.
    """

    force_squared: FloatArray
    gradient_squared: FloatArray
    stress_squared: FloatArray = field(default_factory=lambda: np.zeros(0))
    strain_squared: FloatArray = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Hills:
    """The hills one walker has left behind in metadynamics.

    Attributes:
        centers: (H, D) float64 values of the D variables (degrees, Å, Å³), oldest first.
        heights: (H,) float64 tempered heights, eV.
    """

    centers: FloatArray
    heights: FloatArray


@dataclass(frozen=True, slots=True)
class Checked:
    """A geometry that passed the checks: (N, 3) positions and (3, 3) cell, its age, total (eV/atom) and (N,) atom-based
    (eV/Å) uncertainty."""

    positions: FloatArray
    cell: FloatArray
    age: int
    total: float
    atomic: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkerState:
    """All that is needed to continue one walker bit for bit, as far as the device adds in a fixed order (:class:`WalkTask`).

    Random numbers need no generator state: they are a pure function of ``seed`` and ``age``.

    Attributes:
        walker: campaign-wide name, e.g. ``r0003-b01-s02-000``.
        frame: current positions and cell, Å.
        velocities: (N, 3) float64, Å per internal time unit (ASE's).
        temperature_K, pressure_MPa: of this walker.
        tau: relative strength of its bias force as it stands; schedules change it.
        seed: of its thermostat noise.
        age: MD steps since its start.
        clock: MD steps its batch has made over all segments; updates of the bias strength follow it.
        bias: running strength estimate.
        forces: (N, 3) float64 biased forces at ``frame``, eV/Å.
        virial: (3, 3) float64 biased virial −∂E_b/∂ε at ``frame``, eV; zero where the cell stays.
        strain_rate: (3, 3) float64 symmetric rate at which the cell deforms, 1 per internal time unit; zero where it stays.
        model: sha256 of the model file that gave ``forces``; another model computes them anew.
        anchor, anchor_cell: (N, 3) and (3, 3) float64 positions and cell at which its neighbour rows were built, Å.
        start, start_cell: (N, 3) and (3, 3) float64 positions and cell it started from, Å (the references of the checks of
            bonds and heights of the cell).
        hills: of metadynamics; none without.
        good: where it stood at the last stop check; None before the first one with this model.
    """

    walker: str
    frame: Frame
    velocities: FloatArray
    temperature_K: float
    pressure_MPa: float
    tau: float
    seed: int
    age: int
    clock: int
    bias: BiasState
    forces: FloatArray
    virial: FloatArray
    strain_rate: FloatArray
    model: str
    anchor: FloatArray
    anchor_cell: FloatArray
    start: FloatArray
    start_cell: FloatArray
    hills: Hills
    good: Checked | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A frame a walker proposes for labelling.

    Attributes:
        frame: geometry.
        walker: which walker; step: its age in MD steps; temperature_K, pressure_MPa, tau: of the walker.
        model_version: of the model that moved it.
        reason: ``RUNNING`` for a frame stored at an interval, else why the walker stopped here.
        total_uncertainty: calibrated, eV/atom.
        atomic_uncertainty: (N,) float32 calibrated, eV/Å.
    """

    frame: Frame
    walker: str
    step: int
    temperature_K: float
    pressure_MPa: float
    tau: float
    model_version: int
    reason: StopReason
    total_uncertainty: float
    atomic_uncertainty: Float32Array


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkTask:
    """One leg of a batch of walkers: all of a segment of MD steps with one model, or as much of it as the time allows.

    However a segment is cut into legs, its candidates and walkers are the same: to the bit on CPUs while the batch is evaluated
    in as many parts; to rounding on GPUs, which add in no fixed order, and where memory asks for another number of parts.

    Attributes:
        leg: how many legs of this segment came before.
        volumes_A3: of each periodic system, the smallest and the largest volume among the campaign's start structures, which
            limits of the volume are counted from; a walker of a system that is missing counts from its own start.
        starts: shard of labels whose structures new walkers may start from (drawn with ``seed``).
        resume: shard of walkers to continue, one per slot; slots without one, and all slots where it is None, start fresh.
        steps: MD steps that each slot has left to make in this segment.
        enough: the segment may end early once it holds this many more walkers stopped for uncertainty or physics; 0: never.
        born: walkers that each slot has had so far in this segment.
        shares: of the systems in new walkers; those that are missing start none; empty: by their share of ``starts``.
        followed: of each system, the variables whose coverage is followed; empty without.
        seconds: wall clock, counted from the start of the task, after which the leg hands over.
        temperatures_K, pressures_MPa: (slots,) temperature and pressure of each slot.
        variables: of each system, those that metadynamics puts hills along, in the order of its widths; empty without.
        seed: of the segment, the same for all its legs.
        output: directory the worker writes its shards to; the driver publishes them by rename.
    """

    task: str
    round: int
    item: int
    leg: int
    model: ModelRef
    settings: WalkerSettings
    temperatures_K: tuple[float, ...]
    pressures_MPa: tuple[float, ...]
    variables: dict[str, tuple[Variable, ...]]
    volumes_A3: dict[str, tuple[float, float]] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    followed: dict[str, tuple[Variable, ...]] = field(default_factory=dict)
    starts: FileRef
    resume: FileRef | None
    steps: int
    enough: int
    born: tuple[int, ...]
    seconds: float
    output: str
    seed: int
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What walkers of one system brought in a leg.

    Attributes:
        count: candidates.
        mean_bound: mean over them of the largest calibrated atom-based uncertainty, eV/Å.
        cells: of the finest level of the coverage of its variables, those visited, as flat indices, sorted; empty without.
    """

    count: int
    mean_bound: float
    cells: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkResult:
    """What a leg brought.

    Attributes:
        candidates: shard in visiting order, ``count`` of them; None when the leg failed.
        walkers: shard with the walker of each slot as it stands; None when the leg failed.
        steps: MD steps each slot made in this leg.
        steps_left: what is left of the segment; 0 when it is over, also when ``enough`` walkers had stopped.
        born: walkers each slot has had so far in this segment.
        stops: walkers that stopped in this leg, per reason.
        walker_steps: ``steps`` of all slots together.
        found: per system.
    """

    task: str
    status: Status
    reason: str
    candidates: FileRef | None
    count: int
    walkers: FileRef | None
    steps: int
    steps_left: int
    born: tuple[int, ...]
    stops: dict[str, int]
    walker_steps: int
    found: dict[str, Found]
    timing: Timing
    remarks: tuple[Remark, ...] = ()
