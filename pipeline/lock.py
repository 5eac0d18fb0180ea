"""One driver per campaign directory."""

import fcntl
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.errors import StoreError

TRIES, PAUSE_S = 10, 0.03


class DriverLock:
    """Holds the lock file of a campaign directory while the ``with`` block runs.

    The kernel lets go of it when the process ends, however it ends, so a dead driver's lock is simply taken over. The file
    names host and process, for the message to whoever comes second.

    Args:
        path: the lock file; made when it is not there, never removed.

    Raises:
        StoreError: another process holds it, or its file system has no locks (on entering).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def __enter__(self) -> Self:
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            taken = _taken(self._descriptor)
        except OSError as error:
            os.close(self._descriptor)
            raise StoreError(
                f"{self._path}: this file system has no locks ({error.strerror}).",
                "Put the campaign where flock works: home or project space, or Lustre mounted with -o flock.",
            ) from None
        if not taken:
            holder = os.pread(self._descriptor, 200, 0).decode(errors="replace").strip() or "an unknown process"
            os.close(self._descriptor)
            raise StoreError(
                f"{self._path.parent}: another driver runs this campaign ({holder}).",
                f"Watch it with `farwalk status {self._path.parent}`, or stop it with `farwalk stop {self._path.parent}`.",
            )
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"host {socket.gethostname()} pid {os.getpid()}\n".encode(), 0)
        os.fsync(self._descriptor)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)


def _taken(descriptor: int) -> bool:
    """Try for a moment: somebody may just be looking with :func:`holder_of`."""
    for _ in range(TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(PAUSE_S)
        else:
            return True
    return False


def holder_of(path: Path) -> str:
    """Who holds a lock file (``host … pid …``), empty when nobody does. Only looks."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return ""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(descriptor, 200, 0).decode(errors="replace").strip()
    except OSError:  # a file system without locks: a driver says so when it starts
        return ""
    finally:
        os.close(descriptor)
    return ""
