"""Effective-medium theory that takes its time and leaves a line behind for every calculation it finishes."""

import hashlib
import os
import time
from typing import ClassVar

from ase.calculators.calculator import all_changes
from ase.calculators.emt import EMT


class SlowEMT(EMT):
    """Takes so many seconds, then appends a digest of the positions to the file ``log``."""

    implemented_properties: ClassVar = EMT.implemented_properties

    def __init__(self, seconds: float, log: str):
        super().__init__()
        self.seconds, self.log = seconds, log

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        time.sleep(self.seconds)
        line = hashlib.sha256(atoms.positions.tobytes()).hexdigest() + "\n"
        descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, line.encode())
        os.close(descriptor)
