"""Time that passes only when the driver waits for it."""

import heapq
import math
from array import array
from collections.abc import Callable
from itertools import count
from queue import Empty, SimpleQueue
from time import thread_time
from typing import TypeVar

from pipeline.driver import POLL_S

T = TypeVar("T")


class VirtualClock:
    """The time of a simulation, which jumps from one thing that happens to the next.

    A wait as long as the driver's ``POLL_S`` is a look for something from outside, such as a stop. There is no outside: it
    lasts up to ``patience_s``, or until something happens. The few milliseconds in which the driver gathers what else is done
    are kept.

    Args:
        patience_s: what depends on time alone, such as a training that has waited long enough, is seen so late at most,
            seconds.

    Attributes:
        turns_s: real CPU seconds from the end of each look to the next one: what the driver did in between.
        turns_open: tasks under way at the end of each.
        open: tasks under way, which whoever carries them out keeps.
    """

    def __init__(self, patience_s: float = POLL_S) -> None:
        self._now, self._patience_s = 0.0, max(patience_s, POLL_S)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._looked = math.nan
        self.turns_s, self.turns_open = array("d"), array("q")
        self.open = 0

    def now(self) -> float:
        """Seconds since the campaign began."""
        return self._now

    def monotonic(self) -> float:
        """The same."""
        return self._now

    def at(self, when: float, happen: Callable[[], None]) -> None:
        """Let something happen; of what happens at the same time, what was announced first happens first."""
        heapq.heappush(self._heap, (max(when, self._now), next(self._order), happen))

    def wait(self, done: SimpleQueue[T], seconds: float) -> T | None:
        """The next item, or None after so many seconds; a look may take longer, as said above."""
        is_look = seconds >= POLL_S
        if is_look:
            self._note()
        item = self._next(done, self._now + (self._patience_s if is_look else max(0.0, seconds)))
        if is_look:
            self._looked = thread_time()
        return item

    def sleep(self, seconds: float) -> None:
        """Let everything happen that does within this time."""
        until = self._now + seconds
        while self._heap and self._heap[0][0] <= until:
            self._step()
        self._now = until

    def _next(self, done: SimpleQueue[T], until: float) -> T | None:
        while True:
            try:
                return done.get_nowait()
            except Empty:
                if not self._heap or self._heap[0][0] > until:
                    self._now = until
                    return None
                self._step()

    def _step(self) -> None:
        self._now, _, happen = heapq.heappop(self._heap)
        happen()

    def _note(self) -> None:
        if not math.isnan(self._looked):
            self.turns_s.append(thread_time() - self._looked)
            self.turns_open.append(self.open)
