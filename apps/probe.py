"""What a worker says about itself, so that tasks never run with another farwalk than the driver's."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pipeline


@dataclass(frozen=True, slots=True)
class Place:
    """Version and location of farwalk, and the Python that runs it."""

    version: str
    location: str
    python: str


def whereabouts() -> Place:
    """Of this process."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Place(pipeline.__version__, str(Path(pipeline.__file__).resolve().parent), version)
