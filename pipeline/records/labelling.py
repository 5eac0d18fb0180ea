"""Label tasks and labels.

Shapes: N atoms. Units: eV, Å, eV/Å³.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pipeline.frames import FloatArray, Frame
from pipeline.records.basics import Remark, Status, Timing
from pipeline.settings.labels import Reference


class Split(StrEnum):
    """What a label is used for. ``CALIBRATION`` labels are never trained on nor used to pick an epoch."""

    TRAIN = "train"
    VALIDATION = "validation"
    CALIBRATION = "calibration"


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
class LabelTask:
    """One reference calculation in its own directory. ``scratch`` is kept when it fails.

    A force on one atom above ``max_force_eV_per_A`` makes it fail.
    """

    task: str
    round: int
    item: int
    frame: Frame
    reference: Reference
    scratch: str
    threads: int
    max_force_eV_per_A: float = 200.0


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
    remarks: tuple[Remark, ...] = ()
