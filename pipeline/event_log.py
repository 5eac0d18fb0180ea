"""The event log: an append-only file, one line per event, on disk before ``append`` returns.

A line is ``{"seq": n, "crc": "xxxxxxxx", "event": {...}}``; ``crc`` is the CRC-32 of the event's text. What follows the last
newline is a torn line: a write that never finished, so nothing was done because of it. It is ignored, and cut off before the
next append. Any other damage is refused.
"""

import json
import os
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.durable import not_written
from pipeline.errors import StoreError
from pipeline.events import SCHEMA, Event, from_plain, to_plain

_RESTORE = "Restore events.jsonl from a copy of the campaign directory."


class Reading:
    """Reads a log from its beginning, one event at a time, also while a driver writes to it.

    Args:
        path: the log.

    Attributes:
        count: events read so far.
        length: bytes that hold them.

    Raises:
        StoreError: missing, empty, damaged before its last line, or of another schema version (while iterating).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.count = 0
        self.length = 0

    def __iter__(self) -> Iterator[Event]:
        try:
            stream = self._path.open("rb")
        except FileNotFoundError:
            raise StoreError(f"{self._path}: there is no event log.", "Give the directory of a campaign.") from None
        with stream:
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                event = _decode(line[:-1], self.count, self._path)
                self.count += 1
                self.length += len(line)
                yield event
        if not self.count:
            raise StoreError(
                f"{self._path}: the event log is empty.", "Remove the directory and run the campaign anew."
            )


def encode(event: Event, sequence: int) -> bytes:
    """One line of the log."""
    body = json.dumps(to_plain(event), ensure_ascii=False, separators=(",", ":"))
    crc = zlib.crc32(body.encode())
    return f'{{"seq":{sequence},"crc":"{crc:08x}","event":{body}}}\n'.encode()


def read_events(path: Path) -> tuple[Event, ...]:
    """All events of a log at once; also while a driver writes to it.

    Raises:
        StoreError: missing, empty, damaged before its last line, or of another schema version.
    """
    return tuple(Reading(path))


def _decode(line: bytes, number: int, path: Path) -> Event:
    where = f"{path}, line {number + 1}"
    try:
        plain: Any = json.loads(line)
        sequence, crc, event = plain["seq"], plain["crc"], plain["event"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{where}: damaged.", _RESTORE) from error
    # the checksum covers the text as written; the frame around it has a fixed form
    body = line[line.index(b'"event":') + len(b'"event":') : -1]
    if sequence != number or crc != f"{zlib.crc32(body):08x}":
        raise StoreError(f"{where}: damaged (sequence number or checksum does not fit).", _RESTORE)
    if number == 0 and event.get("schema") != SCHEMA:
        raise StoreError(
            f"{path}: events of schema version {event.get('schema')}, this farwalk reads version {SCHEMA}.",
            "Open the campaign with the farwalk version that wrote it.",
        )
    return from_plain(event, where=where)


class EventLog:
    """Writes events. There must be one writer only: the campaign's lock sees to that.

    Args:
        path: the log, made when it is not there.
        after: a reading of the whole log; None reads it here.
    """

    def __init__(self, path: Path, after: Reading | None = None) -> None:
        self._path = path
        if after is None:
            after = Reading(path)
            if path.exists():
                deque(after, maxlen=0)
        self._sequence, self._length, self._is_torn = after.count, after.length, False
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        if os.fstat(self._descriptor).st_size > self._length:
            os.ftruncate(self._descriptor, self._length)
            os.fsync(self._descriptor)

    @property
    def next_sequence(self) -> int:
        """Number of the next event."""
        return self._sequence

    def append(self, events: Sequence[Event]) -> None:
        """Write events and wait until they are on disk.

        Raises:
            StoreError: they could not be written (DiskFullError: the disk takes no more); the log is as before.
        """
        if not events:
            return
        data = b"".join(encode(event, self._sequence + k) for k, event in enumerate(events))
        try:
            if self._is_torn:
                os.ftruncate(self._descriptor, self._length)
                self._is_torn = False
            _write_all(self._descriptor, data)
        except OSError as error:  # a full disk: half a line must not stay in front of the next one
            self._is_torn = True
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._length)
                self._is_torn = False
            raise not_written(self._path, error) from error
        self._sequence += len(events)
        self._length += len(data)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
    os.fsync(descriptor)
