"""What a task should know of the machine it happens to run on. The worker finds out; tasks never read the environment."""

import time
from dataclasses import dataclass
from pathlib import Path

SHARE_OF_REST = 0.5
"""A walk takes at most this share of the wall time its job has left: what it found must still be written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The node of a worker.

    Attributes:
        cache: directory on the node's own disk for copies of model files; None: read them where they are.
        ends: when the job that holds the worker ends, seconds since the epoch; None: it does not.
    """

    cache: Path | None = None
    ends: float | None = None

    def allowed_s(self, wanted_s: float) -> float:
        """Seconds a task may take that could stop at any time and would like ``wanted_s``."""
        if self.ends is None:
            return wanted_s
        return max(min(wanted_s, SHARE_OF_REST * (self.ends - time.time())), 0.0)


ANYWHERE = Node()
"""A machine nothing is known of."""
