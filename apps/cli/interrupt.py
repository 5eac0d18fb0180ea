"""Everything that may ask a driver to stop, as one object: Ctrl-C, signals of a batch system, ``farwalk stop``.

Ctrl-C once: finish and record what is in flight, then stop. Twice: stop now.
"""

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from apps.slurm.driver_job import DriverJob

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what batch systems send before they kill."""

SOFT, NOW = "soft", "now"
"""What a stop file may hold."""

LOOK_S = 0.5
"""The stop file is looked at this often at most, seconds: on a shared file system that costs."""

ON_SIGNAL = "stopping: finishing what is in flight; Ctrl-C again stops at once"
ON_FILE = {
    SOFT: "stopping on request: finishing what is in flight",
    NOW: "stopping on request: what is in flight is left behind",
}


class StopRequests:
    """While the block runs, requests to stop are remembered; a second signal raises ``KeyboardInterrupt``.

    For a driver that is a job of its own, a signal is SLURM's: its meaning is asked for there, and no signal raises.

    Args:
        tell: is told once of each request, in one line. It may run inside a signal handler: it must be short.
        stop_file: is looked for; one that is there on entering was for an earlier driver and is removed.
        job: the job that this driver is.
    """

    def __init__(self, tell: Callable[[str], None], stop_file: Path, job: DriverJob | None = None) -> None:
        self._tell, self._file, self._job = tell, stop_file, job
        self._signals = self._handled = 0
        self._said = ""
        self._looked = -LOOK_S
        self._before: dict[signal.Signals, object] = {}

    def stop_requested(self) -> bool:
        """Whether no new task should begin."""
        self._look()
        return self._signals > 0 or bool(self._said)

    def leave_requested(self) -> bool:
        """Whether what is in flight should be left behind."""
        self._look()
        return self._said == NOW or (self._job is not None and self._job.must_leave())

    def __enter__(self) -> Self:
        self._file.unlink(missing_ok=True)
        self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # it is what signal.signal returned

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._job is not None:
            return  # a handler must not wait for SLURM: the loop asks
        if self._signals > 1:
            raise KeyboardInterrupt
        self._tell(ON_SIGNAL)

    def _look(self) -> None:
        if self._job is not None and self._handled < self._signals:
            self._handled = self._signals
            said = self._job.told_to_stop()
            with suppress(OSError):  # output into a file on a full disk
                self._tell(said)
        if time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        try:
            said = self._file.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return
        said = NOW if said == NOW else SOFT
        if said != self._said:
            self._said = said
            self._tell(ON_FILE[said])
