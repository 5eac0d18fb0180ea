"""CP2K as a reference."""

from pipeline.frames import Frame
from pipeline.references.base import Calculation, Labeler, Properties
from pipeline.settings.dft import CP2KReference


class CP2KLabeler(Labeler):
    """CP2K, Quickstep.

    Args:
        settings: level of theory.
    """

    def __init__(self, settings: CP2KReference) -> None:
        self._settings = settings

    @property
    def provides_stress(self) -> bool:
        """Always, where the structure is periodic in three directions."""
        return True

    def label(self, frame: Frame, calculation: Calculation) -> Properties:
        """Compute one structure."""
        raise NotImplementedError


def cp2k_facts(settings: CP2KReference) -> dict[str, object]:
    """What the level of theory depends on: settings, contents of files."""
    return settings.model_dump(mode="json")
