"""The campaign directory: where its files are, and how they get there.

::

    campaign.yaml   resolved settings at the beginning, for people
    events.jsonl    what happened; all that counts
    lock            held by the driver
    models/         v0001.pt, …
    shards/         immutable HDF5 files of labels, candidates and walkers
    scratch/        of tasks; those of failed labels stay
    guesses/        restart files of labels, where a reference starts from them
    runinfo/        logs of the engine

Files are named in events relative to the directory and handed to tasks as absolute paths. Only the driver writes.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.durable import sync_directory, sync_file, verify, write_text_durably, written_into
from pipeline.errors import StoreError
from pipeline.event_log import EventLog, Reading, read_events
from pipeline.events import Event, Labelled
from pipeline.fold import fold
from pipeline.records import FileRef, Label
from pipeline.shards import read_labels, write_labels
from pipeline.state import CampaignState

SCRATCH_PREFIX = "farwalk-"
"""Scratch directories have this prefix; nothing else is ever removed."""


ROOM_B = 2_000_000
"""Bytes that must be free before a driver that waited for space goes on."""


@dataclass(frozen=True, slots=True)
class Store:
    """The files of one campaign directory."""

    root: Path

    @classmethod
    def create(cls, root: Path, *, settings_yaml: str, first: Event) -> "Store":
        """Make a campaign directory, whole or not at all.

        Args:
            root: new, or an empty directory.
            settings_yaml: resolved settings as text.
            first: the first event.

        Raises:
            StoreError: the directory holds something else already.
        """
        root = root.absolute()
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise StoreError(f"{root}: exists and is not a campaign.", "Give a new or an empty directory.")
        root.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
        try:
            _fill(temporary, settings_yaml, first)
            temporary.rename(root)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise StoreError(f"{root}: cannot be made: {error.strerror}.", "Give another directory.") from error
        sync_directory(root.parent)
        return cls(root)

    @classmethod
    def open(cls, root: Path) -> "Store":
        """An existing campaign directory; reads nothing yet.

        Raises:
            StoreError: it is not one.
        """
        store = cls(root.absolute())
        if not store.log_path.is_file():
            raise StoreError(f"{root}: not a campaign directory (no events.jsonl).", "Start one with `farwalk run`.")
        return store

    @property
    def log_path(self) -> Path:
        """The event log."""
        return self.root / "events.jsonl"

    @property
    def lock_path(self) -> Path:
        """The driver's lock file."""
        return self.root / "lock"

    @property
    def scratch(self) -> Path:
        """Parent of all scratch directories."""
        return self.root / "scratch"

    @property
    def guesses(self) -> Path:
        """Restart files of labels."""
        return self.root / "guesses"

    @property
    def runinfo(self) -> Path:
        """Where an engine may write its logs."""
        return self.root / "runinfo"

    def open_log(self) -> tuple[EventLog, CampaignState]:
        """The event log for writing, and the state after all its events; hold the lock first.

        Raises:
            StoreError: the log is damaged or of another version.
        """
        reading = Reading(self.log_path)
        state = fold(reading)
        return EventLog(self.log_path, reading), state

    def reading(self) -> Reading:
        """All events so far, one at a time; only reads."""
        return Reading(self.log_path)

    def events(self) -> tuple[Event, ...]:
        """All events so far; only reads.

        Raises:
            StoreError: the log is damaged or of another version.
        """
        return read_events(self.log_path)

    def state(self) -> CampaignState:
        """What the campaign knows; only reads.

        Raises:
            StoreError: the log is damaged or of another version.
        """
        return fold(self.reading())

    def absolute(self, file: FileRef) -> FileRef:
        """A file of an event, for a task."""
        return replace(file, path=str(self.root / file.path))

    def relative(self, file: FileRef) -> FileRef:
        """A file of this directory, for an event."""
        return replace(file, path=str(Path(file.path).relative_to(self.root.resolve())))

    def put_labels(self, name: str, labels: Sequence[Label]) -> FileRef:
        """Write a shard of labels; returns it as an event names it.

        Raises:
            StoreError: it cannot be written.
        """
        path = self._shard(name)
        with written_into(path.parent):
            return self.relative(write_labels(path, labels))

    def publish_shard(self, file: FileRef, name: str) -> FileRef:
        """Move a shard that a worker wrote to its place; returns it as an event names it.

        Raises:
            StoreError: the file is missing or not the one the worker wrote.
        """
        return self._publish(file, self._shard(name))

    def rows(self, rows: Sequence[Labelled]) -> list[Label]:
        """The labels of some events, in their order.

        Raises:
            StoreError: a shard is missing or changed, or holds another label than the event says.
        """
        shards = {file: read_labels(self.absolute(file)) for file in dict.fromkeys(row.file for row in rows)}
        labels = [shards[row.file][row.row] for row in rows]
        for label, row in zip(labels, rows, strict=True):
            if label.frame.identity != row.identity:
                raise StoreError(
                    f"{self.root / row.file.path}: row {row.row} is not the label {row.identity} of the event log.",
                    "Restore the campaign directory from a copy.",
                )
        return labels

    def reference(self, state: CampaignState) -> str:
        """Digest of the level of theory of the labels there are: of one of them, where their events do not say it.

        Raises:
            StoreError: its shard is missing or changed.
        """
        if state.reference or not state.labelled:
            return state.reference
        files = [*(event.file for event in state.gathered), *(row.file for row in state.round_labels)]
        return read_labels(self.absolute(files[0]))[0].reference

    def labels(self, state: CampaignState) -> list[Label]:
        """All labels of a campaign, round by round, each by number.

        Raises:
            StoreError: a shard is missing or changed.
        """
        return read_labels([self.absolute(event.file) for event in state.gathered]) + self.rows(state.loose)

    def scratch_of(self, task: str) -> Path:
        """The scratch directory of a task, the same on every run, so that what it left there is found again."""
        return self.scratch / f"{SCRATCH_PREFIX}{task}"

    def clear_scratch(self, task: str) -> None:
        """Remove the scratch directory of a task whose result is recorded."""
        path = self.scratch_of(task)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)

    def discard_shard(self, file: FileRef) -> None:
        """Remove a shard that nothing will be read from any more."""
        (self.root / file.path).unlink(missing_ok=True)

    def keep_walkers(self, files: Sequence[FileRef]) -> None:
        """Remove all shards of walkers but these."""
        kept = {Path(file.path).name for file in files}
        for path in (self.root / "shards").glob("walkers-*.h5"):
            if path.name not in kept:
                path.unlink(missing_ok=True)

    def publish_model(self, file: FileRef, version: int) -> FileRef:
        """Move a model that a worker wrote to its place; returns it as an event names it.

        Raises:
            StoreError: the file is missing or not the one the worker wrote.
        """
        return self._publish(file, self.root / "models" / f"v{version:04d}.pt")

    def discard_unfinished(self) -> None:
        """Remove what a killed driver did not finish; hold the lock first.

        That is temporary files of its writes, and scratch of its walks, selections and trainings: they are made again in
        other directories, while finished labels are found again.
        """
        for work in ("walk", "select", "train"):
            for path in self.scratch.glob(f"{SCRATCH_PREFIX}{work}-*"):
                self.clear_scratch(path.name.removeprefix(SCRATCH_PREFIX))
        for folder in (self.root, self.root / "shards", self.root / "models"):
            for path in folder.glob(".*.tmp"):
                if re.fullmatch(r"\..+\.\d+\.tmp", path.name):
                    path.unlink(missing_ok=True)

    def check_room(self) -> None:
        """Write a file as large as what a round may bring, and remove it.

        Raises:
            DiskFullError: the disk does not take it.
        """
        with written_into(self.root):
            path = self.root / f".room.{os.getpid()}.tmp"
            try:
                path.write_bytes(bytes(ROOM_B))
                sync_file(path)
            finally:
                path.unlink(missing_ok=True)

    def _publish(self, file: FileRef, target: Path) -> FileRef:
        with written_into(target.parent):
            # a disk that was full may have stopped it after the rename
            is_there = target.exists() and not Path(file.path).exists()
            source = verify(replace(file, path=str(target)) if is_there else file)
            sync_file(source)
            source.replace(target)
            sync_directory(target.parent)
        return self.relative(FileRef(path=str(target.resolve()), sha256=file.sha256))

    def _shard(self, name: str) -> Path:
        return self.root / "shards" / f"{name}.h5"


def _fill(directory: Path, settings_yaml: str, first: Event) -> None:
    directory.chmod(0o777 & ~_umask())  # mkdtemp's 0700 would lock out colleagues and workers of other users
    for name in ("models", "shards", "scratch"):
        (directory / name).mkdir()
    write_text_durably(directory / "campaign.yaml", settings_yaml)
    log = EventLog(directory / "events.jsonl")
    log.append([first])
    log.close()
    sync_directory(directory)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
