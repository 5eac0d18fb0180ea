"""A force field that takes as long as quantum chemistry would: a label of a structure always takes the same time."""

import random
import time
from pathlib import Path
from typing import ClassVar

from ase.calculators.calculator import Calculator, all_changes

from pipeline.frames import Frame
from pipeline.references import Calculation
from pipeline.references.openmm import OpenMMLabeler
from pipeline.settings.labels import OpenMMReference


class SlowForceField(Calculator):
    """OpenMM as farwalk has it, then sleep.

    Args:
        topology, force_field: as in ``labels.reference``.
        seconds: shortest and longest time of a label; its logarithm is uniform between, a pure function of the geometry.
    """

    implemented_properties: ClassVar = ["energy", "forces"]

    def __init__(self, topology: str, force_field: list[str], seconds: tuple[float, float]) -> None:
        super().__init__()
        self._labeler = OpenMMLabeler(OpenMMReference(topology=topology, force_field=tuple(force_field)))
        self._seconds = seconds

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        """Energy and forces of the structure."""
        super().calculate(atoms, properties, system_changes)
        frame = Frame.from_atoms(self.atoms, system="")
        found = self._labeler.label(frame, Calculation(directory=Path()))
        self.results = {"energy": found.energy, "forces": found.forces}
        shortest, longest = self._seconds
        time.sleep(shortest * (longest / shortest) ** random.Random(frame.identity).random())
