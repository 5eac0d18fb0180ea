"""The reference contract: a labeler turns a structure into energy, forces and, where it can, stress."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.frames import FloatArray, Frame
from pipeline.records import Cause, Measure
from pipeline.settings.launch import LONGEST_S, LaunchSettings


class CalculationFailed(Exception):
    """A calculation gave no label. Caught by the label task, which makes a value of it; it never leaves the worker.

    Args:
        cause: why, as the recovery ladder knows it.
        reason: one line: what, where, the value or the program's own words.
        remedy: what a person can change, naming the key or file; empty where there is nothing to say.
        final: no measure changes it, whatever may help against the cause otherwise.
    """

    def __init__(self, cause: Cause, reason: str, remedy: str = "", *, final: bool = False) -> None:
        super().__init__(cause, reason, remedy)
        self.cause, self.reason, self.remedy, self.final = cause, reason, remedy, final

    def __str__(self) -> str:
        return f"{self.reason.rstrip('.')}. {self.remedy}" if self.remedy else self.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Properties:
    """What a reference says of one structure.

    Attributes:
        energy: potential energy the forces derive from, eV (with smearing the free energy).
        forces: (N, 3) eV/Å.
        stress: (6,) Voigt xx, yy, zz, yz, xz, xy, eV/Å³, ASE's sign (σ = ∂E/∂ε / V); None where there is none.
        charges: (N,) e; magnetic_moments: (N,) μB; None where they were not asked for.
        program: name and version of the program, from its own output, e.g. ``CP2K 2023.1``; empty: none.
    """

    energy: float
    forces: FloatArray
    stress: FloatArray | None
    charges: FloatArray | None = None
    magnetic_moments: FloatArray | None = None
    program: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calculation:
    """One try of a label: where, with what, and what it does differently from the settings.

    Attributes:
        directory: existing, empty, for the files of this try alone.
        measures: in the order they were taken; a measure may be there twice.
        launch: how programs are started.
        host: node of the worker as SLURM knows it, where a calculation on one node runs; empty: not known.
        ranks: MPI ranks, threads: of each rank.
        memory_GB: cap on the address space of a rank; None: none.
        time_s: wall time it may take.
        previous: directory of the try before, where its files may be of use (restart files); None for the first.
        guess: directory with restart files of a nearby structure of the same reference; None: none, or not wanted.
    """

    directory: Path
    measures: tuple[Measure, ...] = ()
    launch: LaunchSettings = field(default_factory=LaunchSettings)
    host: str = ""
    ranks: int = 1
    threads: int = 1
    memory_GB: float | None = None
    time_s: float = LONGEST_S
    previous: Path | None = None
    guess: Path | None = None


class Labeler(ABC):
    """A reference method, ready to compute.

    The same structure gives the same numbers whatever was computed before. Not safe to share between threads.
    """

    measures: frozenset[Measure] = frozenset()
    """What it can do differently; none for references that compute in the worker itself and always do the same."""
    restart_files: tuple[str, ...] = ()
    """Names (glob patterns) of the files in a calculation's directory that another calculation can start from."""

    @property
    @abstractmethod
    def provides_stress(self) -> bool:
        """Whether fully periodic structures get a stress."""

    @abstractmethod
    def label(self, frame: Frame, calculation: Calculation) -> Properties:
        """Compute one structure.

        Raises:
            CalculationFailed: there is no label; says why.
            TaskError: the structure is not one this reference can compute. The method behind it may raise anything.
        """
