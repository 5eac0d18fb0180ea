"""A small JSON file that says how far a training is: for people and monitors, never read back by a task."""

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

logger = logging.getLogger(__name__)

INTERVAL_S = 0.5


class Progress:
    """Rewrites ``path`` atomically, at most twice a second unless it is the last time.

    Args:
        path: the file; empty: nothing is written.
        task: name of the task.
    """

    def __init__(self, path: str, task: str) -> None:
        self._path = Path(path) if path else None
        self._task = task
        self._last = 0.0

    def __call__(self, facts: Mapping[str, float], *, last: bool = False) -> None:
        """Write ``facts`` with the task's name and the time."""
        now = time.time()
        if self._path is None or (now - self._last < INTERVAL_S and not last):
            return
        self._last = now
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps({"task": self._task, "updated": now, **facts}) + "\n", encoding="utf-8")
            temporary.replace(self._path)
        except OSError as error:  # the training is worth more than the news of it
            logger.warning("%s cannot be written: %s", self._path, error)
