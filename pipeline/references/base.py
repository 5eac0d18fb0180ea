"""The reference contract: a labeler turns a structure into energy, forces and, where it can, stress."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from pipeline.frames import FloatArray, Frame


@dataclass(frozen=True, slots=True, kw_only=True)
class Properties:
    """What a reference says of one structure.

    Attributes:
        energy: potential energy the forces derive from, eV.
        forces: (N, 3) eV/Å.
        stress: (6,) Voigt xx, yy, zz, yz, xz, xy, eV/Å³, ASE's sign (σ = ∂E/∂ε / V); None where there is none.
    """

    energy: float
    forces: FloatArray
    stress: FloatArray | None


class Labeler(ABC):
    """A reference method, ready to compute.

    The same structure gives the same numbers whatever was computed before. Not safe to share between threads.
    """

    @property
    @abstractmethod
    def provides_stress(self) -> bool:
        """Whether fully periodic structures get a stress."""

    @abstractmethod
    def label(self, frame: Frame, directory: Path) -> Properties:
        """Compute one structure.

        Args:
            frame: the structure.
            directory: existing directory for files of this calculation.

        Raises:
            TaskError: the structure is not one this reference can compute. The method behind it may raise anything.
        """
