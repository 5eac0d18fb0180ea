"""Effective-medium theory that leaves a line behind for every calculation it finishes."""

import hashlib
import os
import time
from typing import ClassVar

from ase.calculators.calculator import all_changes
from ase.calculators.emt import EMT


class CountingEMT(EMT):
    """Takes 50 ms and appends a digest of the positions to the file named by ``COUNT_LOG``."""

    implemented_properties: ClassVar = EMT.implemented_properties

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        time.sleep(0.05)
        line = hashlib.sha256(atoms.positions.tobytes()).hexdigest() + "\n"
        descriptor = os.open(os.environ["COUNT_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, line.encode())
        os.close(descriptor)
