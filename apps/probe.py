"""Which farwalk a process runs, so that tasks never run with another one than the driver's."""

import functools
import hashlib
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import apps
import pipeline

SAME_FARWALK = "Let site.python and site.worker_init use the environment that the driver runs in."
"""What to do about a worker of another farwalk."""


@dataclass(frozen=True, slots=True)
class Place:
    """The farwalk of a process.

    Attributes:
        version: of farwalk.
        digest: of its source files, see :func:`code_digest`.
        location: directory of the package ``pipeline``.
        python: version of the interpreter.
        executable: path of the interpreter.
    """

    version: str
    digest: str
    location: str
    python: str
    executable: str


def whereabouts() -> Place:
    """Of this process."""
    location = str(Path(pipeline.__file__).resolve().parent)
    return Place(pipeline.__version__, code_digest(), location, platform.python_version(), sys.executable)


@functools.cache
def code_digest() -> str:
    """First 16 hexadecimal digits of the sha256 over names and bytes of all sources of ``pipeline`` and ``apps``.

    The same for copies in different directories; read once per process (about 10 ms).
    """
    digest = hashlib.sha256()
    for package in (apps, pipeline):
        root = Path(str(package.__file__)).resolve().parent
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{root.name}/{path.relative_to(root).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def mismatch(there: Place, here: Place) -> str:
    """In which way a worker's farwalk is not the driver's; empty when it is the same.

    One and the same directory is accepted as it is: a worker reads it later than the driver, and who edits it meanwhile knows.
    """
    if there.version != here.version:
        return f"farwalk {there.version} from {there.location}; the driver's is {here.version} from {here.location}"
    if there.digest != here.digest and there.location != here.location:
        return f"another code of farwalk {there.version}, from {there.location}; the driver's is from {here.location}"
    if there.python.split(".")[:2] != here.python.split(".")[:2]:
        return f"python {there.python} ({there.executable}); the driver's is {here.python} ({here.executable})"
    return ""
