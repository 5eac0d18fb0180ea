"""What a task should know of the machine it happens to run on. The worker finds out; tasks never read the environment."""

import logging
import math
import os
import re
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.durable import sha256_of
from pipeline.records import FileRef, Remark

logger = logging.getLogger(__name__)

SHARE_OF_REST = 0.5
"""A walk takes at most this share of the wall time its job has left: what it found must still be written."""
KEPT = 3
"""Copies of model files that stay on a node."""
UNUSED_S = 600.0
"""Copies used in the last so many seconds stay too: another worker may be about to read one."""
_COPY = re.compile(r"[0-9a-f]{64}\.pt|\.[0-9a-f]{64}\.pt\.\d+\.tmp")
"""Names of copies, finished and not; nothing else is ever removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The node of a worker.

    Attributes:
        cache: directory on the node's own disk for copies of model files; None: read them where they are.
        scratch: directory on the node's own disk, of this user alone, for files of tasks while they run; None: they are
            written where they are kept.
        name: of the node, as SLURM knows it; empty where SLURM has nothing to do with it.
        device: what models compute on: ``cpu``, or ``cuda`` where the worker has a GPU (NVIDIA or AMD).
        ends: when the job that holds the worker ends, seconds since the epoch; None: it does not.
    """

    cache: Path | None = None
    scratch: Path | None = None
    name: str = ""
    device: str = "cpu"
    ends: float | None = None

    @property
    def left_s(self) -> float:
        """Seconds that the job has left; infinite where it does not end."""
        return math.inf if self.ends is None else self.ends - time.time()

    def allowed_s(self, wanted_s: float) -> float:
        """Seconds a task may take that could stop at any time and would like ``wanted_s``."""
        return max(min(wanted_s, SHARE_OF_REST * self.left_s), 0.0)

    def model_file(self, file: FileRef, tell: Callable[[Remark], None] = lambda remark: None) -> Path:
        """Where to read a model file from: a copy on this node that all its workers share.

        Args:
            file: the model file on the shared disk.
            tell: called when no copy could be made; the file itself is then read.

        Returns:
            A copy with the right content, or the file itself, unchecked.
        """
        if self.cache is None:
            return Path(file.path)
        copy = self.cache / f"{file.sha256}.pt"
        try:
            make_private(self.cache)
            if not _is_good(copy, file.sha256) and not _copied(Path(file.path), copy, file.sha256):
                return Path(file.path)  # whoever reads it says what is wrong with it
            os.utime(copy)
            _prune(self.cache)
        except OSError as error:
            text = f"{socket.gethostname()}: no copy of the model in {self.cache}: {error.strerror or error}"
            logger.warning("%s", text)
            tell(
                Remark(text=text, remedy="Walks go on with the shared file. Free the node's disk, or set site.scratch.")
            )
            return Path(file.path)
        return copy


def make_private(directory: Path) -> None:
    """Make a directory that nobody else can write to.

    Raises:
        OSError: it cannot be made, or belongs to somebody else.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.is_symlink() or directory.stat().st_uid != os.getuid():
        raise PermissionError(None, "it belongs to somebody else")


def _is_good(copy: Path, sha256: str) -> bool:
    return copy.is_file() and sha256_of(copy) == sha256


def _copied(source: Path, copy: Path, sha256: str) -> bool:
    """Copy under a temporary name, check, rename; False when the source is missing or another file."""
    if not source.is_file():
        return False
    temporary = copy.with_name(f".{copy.name}.{os.getpid()}.tmp")
    try:
        shutil.copyfile(source, temporary)
        if sha256_of(temporary) != sha256:
            return False
        temporary.replace(copy)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _prune(directory: Path) -> None:
    """Remove copies that were not used for some time, but for the newest ones."""
    ages: list[tuple[float, Path]] = []
    for path in directory.iterdir():
        if _COPY.fullmatch(path.name):
            with suppress(FileNotFoundError):  # another worker was faster
                ages.append((time.time() - path.stat().st_mtime, path))
    for age, path in sorted(ages)[KEPT:]:
        if age > UNUSED_S:
            path.unlink(missing_ok=True)


ANYWHERE = Node()
"""A machine nothing is known of."""
