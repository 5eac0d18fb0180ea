"""Label tasks and labels.

Shapes: N atoms. Units: eV, Å, eV/Å³.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from pipeline.frames import FloatArray, Frame
from pipeline.records.basics import Remark, Status, Timing
from pipeline.records.failures import Cause, Measure, Try
from pipeline.settings.labels import LabelSettings, RecoverySettings, Reference
from pipeline.settings.launch import LaunchSettings


class Split(StrEnum):
    """What a label is used for. ``CALIBRATION`` labels are never trained on nor used to pick an epoch."""

    TRAIN = "train"
    VALIDATION = "validation"
    CALIBRATION = "calibration"


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """A frame with its reference energy (eV), forces (N, 3) eV/Å, optional stress (6,) Voigt eV/Å³ (ASE sign), and provenance.

    Attributes:
        origin: walker, step, model_version, temperature_K, pressure_MPa, tau, uncertainties when selected; empty for
            start structures.
        cost_cpu_s: core seconds that the reference held, all tries.
        reference: digest of the reference's physics settings.
        charges: (N,) atomic charges, e, where they were asked for.
        magnetic_moments: (N,) atomic magnetic moments, μB, where they were asked for.
        program: name and version of the program behind the reference; empty: none.
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
    charges: FloatArray | None = None
    magnetic_moments: FloatArray | None = None
    program: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a label must keep to enter the data set.

    Attributes:
        max_force_eV_per_A: on one atom.
        max_net_force_eV_per_A: |Σ F| / √N, for noise of a grid is random from atom to atom; None: not checked.
        energy_eV: lowest and highest plausible energy; None: not checked.
    """

    max_force_eV_per_A: float = 200.0
    max_net_force_eV_per_A: float | None = None
    energy_eV: tuple[float, float] | None = None

    @classmethod
    def of(cls, labels: LabelSettings, energy_eV: tuple[float, float] | None = None) -> Self:
        """The limits that settings set, with a window of energies."""
        return cls(
            max_force_eV_per_A=labels.max_force_eV_per_A,
            max_net_force_eV_per_A=labels.max_net_force_eV_per_A,
            energy_eV=energy_eV,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelTask:
    """One label: a reference calculation in its own directory, tried again in other ways where it fails.

    Attributes:
        scratch: on the campaign's disk; it keeps what is needed to go on after a lost worker, and all of a failed label.
        threads: CPU cores of the worker, on each node of the label.
        limits: what the label must keep.
        recovery: how often it is tried.
        launch: how a program is started.
        guess: directory with restart files of a nearby label; empty: none.
        keep_guess: whether restart files are wanted: the result then names their directory.
    """

    task: str
    round: int
    item: int
    frame: Frame
    reference: Reference
    scratch: str
    threads: int
    limits: Limits = field(default_factory=Limits)
    recovery: RecoverySettings = field(default_factory=RecoverySettings)
    launch: LaunchSettings = field(default_factory=LaunchSettings)
    guess: str = ""
    keep_guess: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelResult:
    """Energy in eV, forces (N, 3) in eV/Å, stress (6,) Voigt in eV/Å³ where the reference has it.

    Attributes:
        charges, magnetic_moments, program: as in :class:`Label`.
        cause: why it failed; None for a good one.
        tries: the failed ones, in their order, whichever workers made them.
        measures: what the try that succeeded did differently from the settings.
        core_s: core seconds held by all tries.
        guess: directory with restart files inside the task's scratch; empty: none.
    """

    task: str
    status: Status
    reason: str
    energy: float | None
    forces: FloatArray | None
    stress: FloatArray | None
    reference: str
    timing: Timing
    charges: FloatArray | None = None
    magnetic_moments: FloatArray | None = None
    program: str = ""
    cause: Cause | None = None
    tries: tuple[Try, ...] = ()
    measures: tuple[Measure, ...] = ()
    core_s: float = 0.0
    guess: str = ""
    remarks: tuple[Remark, ...] = ()
