"""What a batch of walkers brings back, and how it keeps to its time."""

import time
from dataclasses import dataclass

from pipeline.records import Candidate, WalkerState


@dataclass(frozen=True, slots=True)
class Journey:
    """What a segment, or a leg of it, brought.

    Attributes:
        candidates: in visiting order.
        walkers: as they stand.
        stops: walkers that stopped, per reason.
        steps: MD steps each slot made.
        steps_left: of those asked for; 0 also when the segment ended early because enough walkers had stopped.
    """

    candidates: tuple[Candidate, ...]
    walkers: tuple[WalkerState, ...]
    stops: dict[str, int]
    steps: int
    steps_left: int

    @property
    def walker_steps(self) -> int:
        """MD steps of all slots together."""
        return self.steps * len(self.walkers)


class Pace:
    """Whether another stretch like the last ones fits into the time."""

    def __init__(self, seconds: float) -> None:
        self._last = time.monotonic()
        self._end = self._last + seconds
        self._longest_recent = 0.0

    def is_over(self) -> bool:
        """Call it at the end of each stretch."""
        now = time.monotonic()
        # a stretch in which walkers were replaced is longer than others: the next one may be too
        self._longest_recent = max(now - self._last, 0.9 * self._longest_recent)
        self._last = now
        return now + self._longest_recent > self._end
