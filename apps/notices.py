"""What happened to the machine, gathered from all threads until the driver asks for it."""

from queue import Empty, SimpleQueue

from pipeline.steps import Notice


class Notices:
    """Thread-safe; callbacks of the engine put notices in, the driver's loop takes them out."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Notice] = SimpleQueue()

    def add(self, text: str, remedy: str = "") -> None:
        """Something happened: one line, and what to do where a person must act."""
        self._queue.put(Notice(text=text, remedy=remedy))

    def take(self) -> tuple[Notice, ...]:
        """All since the last call, oldest first."""
        taken = []
        while True:
            try:
                taken.append(self._queue.get_nowait())
            except Empty:
                return tuple(taken)
