"""The time a driver lives in: that of the wall, or of a simulation."""

import time
from queue import Empty, SimpleQueue
from typing import Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    """Time, and waiting for it to pass."""

    def now(self) -> float:
        """Seconds since the epoch; it may be set back."""
        ...

    def monotonic(self) -> float:
        """Seconds since some moment; never set back."""
        ...

    def wait(self, done: SimpleQueue[T], seconds: float) -> T | None:
        """The next item of a queue; None when none has come within so many seconds.

        A simulation may come back later from a wait in which nothing but time passes.
        """
        ...

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        ...


class WallClock:
    """The time on the wall."""

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since the machine started, or so."""
        return time.monotonic()

    def wait(self, done: SimpleQueue[T], seconds: float) -> T | None:
        """The next item; without time left only what is there already."""
        try:
            return done.get(timeout=seconds) if seconds > 0 else done.get_nowait()
        except Empty:
            return None

    def sleep(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)
