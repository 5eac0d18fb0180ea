"""What every record is made of: status, timing, references to files and models."""

import os
import socket
import time
from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How a task ended."""

    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRef:
    """A file by path (absolute, on a disk all workers see) and sha256 of its bytes."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameRows:
    """Some rows of a shard of candidates, in this order."""

    file: FileRef
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """A published model."""

    version: int
    file: FileRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """What a worker has to say about its machine besides its result: one line, and what a person must do."""

    text: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When and where a task ran: seconds since the epoch, CPU seconds of the process, host name."""

    started: float
    ended: float
    cpu_s: float
    host: str

    @property
    def wall_s(self) -> float:
        """Elapsed seconds."""
        return self.ended - self.started


class Stopwatch:
    """Measures a task: ``watch = Stopwatch(); ...; watch.stop()``."""

    def __init__(self) -> None:
        self._started = time.time()
        self._cpu = time.process_time()

    @property
    def elapsed_s(self) -> float:
        """Wall clock since construction."""
        return time.time() - self._started

    def stop(self) -> Timing:
        """The timing from construction to now."""
        return Timing(
            started=self._started,
            ended=time.time(),
            cpu_s=time.process_time() - self._cpu,
            host=f"{socket.gethostname()}:{os.getpid()}",
        )
