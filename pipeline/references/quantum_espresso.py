"""pw.x of Quantum ESPRESSO as a reference."""

from pipeline.frames import Frame
from pipeline.references.base import Calculation, Labeler, Properties
from pipeline.settings.dft import QuantumEspressoReference


class QuantumEspressoLabeler(Labeler):
    """pw.x.

    Args:
        settings: level of theory.
    """

    def __init__(self, settings: QuantumEspressoReference) -> None:
        self._settings = settings

    @property
    def provides_stress(self) -> bool:
        """Always, where the structure is periodic in three directions."""
        return True

    def label(self, frame: Frame, calculation: Calculation) -> Properties:
        """Compute one structure."""
        raise NotImplementedError


def espresso_facts(settings: QuantumEspressoReference) -> dict[str, object]:
    """What the level of theory depends on: settings, contents of files."""
    return settings.model_dump(mode="json")
