"""A calculator that kills its own process: always, or the first time only."""

import os
import signal
from pathlib import Path

from ase.calculators.emt import EMT


class Deadly(EMT):
    """``marker`` names a file that keeps it alive once it is there; None: it dies every time."""

    def __init__(self, marker: str | None = None):
        super().__init__()
        self.marker = marker

    def calculate(self, *args, **kwargs):
        if self.marker is None or not Path(self.marker).exists():
            if self.marker is not None:
                Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        super().calculate(*args, **kwargs)
