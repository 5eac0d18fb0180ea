"""Where a try of a label runs, on the node's own disk where there is one, and what is kept of its files."""

import fcntl
import logging
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO

from pipeline.node import Node, make_private
from pipeline.records import Remark
from pipeline.references.processes import end_processes, processes_of

logger = logging.getLogger(__name__)

KEPT_BYTES = 200_000_000
"""Of a try's files without restart files, smallest first, so much is kept."""
PREFIX = "farwalk-label-"
LOCK, FILES = "lock", "files"
"""In a directory on the node's own disk: what its worker holds a lock of as long as it lives, and where the try runs."""
_STUCK: set[Path] = set()
"""Directories with processes that could not be killed: nobody waits for them a second time."""


@contextmanager
def workspace(kept: Path, node: Node, *, shared: bool, tell: Callable[[Remark], None]) -> Iterator[Path]:
    """An empty directory for one try; one on the node's own disk is removed on leaving.

    Args:
        kept: where files of the try are kept on the campaign's disk; the try runs there when it cannot run elsewhere. Its
            parent exists.
        node: of this worker.
        shared: the try takes several nodes, which all must see its files.
        tell: called when the node's own disk cannot be used.

    Raises:
        OSError: ``kept`` cannot be made.
    """
    held = None
    if node.scratch is not None and not shared:
        try:
            make_private(node.scratch)
            remove_leftovers(node.scratch)
            held = _hold_new(node.scratch)
        except OSError as error:
            text = f"{socket.gethostname()}: {node.scratch} cannot be used: {error.strerror or error}"
            logger.warning("%s", text)
            tell(Remark(text=text, remedy="Labels run on the campaign's disk. Free the node's, or set site.scratch."))
    if held is None:
        kept.mkdir()
        yield kept
        return
    local, lock = held
    try:
        yield local / FILES
    finally:
        _remove(local, lock)


def remove_leftovers(scratch: Path) -> None:
    """Remove directories of this host's workers that were killed, and end what still runs in them.

    Nodes may share the disk, so that each looks at its own directories alone, whatever locks reach; and containers that
    share it do not see each other's processes, so that a lock, not a process id, says whether a worker lives.
    """
    ours = re.compile(rf"{re.escape(_prefix())}[a-z0-9_]+")
    for directory in scratch.iterdir():
        if not ours.fullmatch(directory.name) or (directory in _STUCK and processes_of(directory / FILES)):
            continue
        with suppress(OSError):  # without a lock (being made), or somebody holds it
            lock = (directory / LOCK).open("r+")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.close()
                raise
            if end_processes(directory / FILES):
                _remove(directory, lock)
            else:
                _STUCK.add(directory)
                lock.close()


def _prefix() -> str:
    return f"{PREFIX}{socket.gethostname()}-"


def _hold_new(scratch: Path) -> tuple[Path, IO[str]]:
    """A new directory with an empty one for files in it, and its lock, held until closed.

    Raises:
        OSError: it cannot be made, or its disk has no locks.
    """
    directory = Path(tempfile.mkdtemp(prefix=_prefix(), dir=scratch))
    try:
        (directory / FILES).mkdir()
        new = directory / f"{LOCK}.new"
        lock = new.open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            new.rename(directory / LOCK)  # nobody sees it before it is held
        except OSError:
            lock.close()
            raise
    except OSError:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return directory, lock


def _remove(directory: Path, lock: IO[str]) -> None:
    """Remove a directory whose lock is held: the lock goes last, and closed, which network disks want."""
    shutil.rmtree(directory / FILES, ignore_errors=True)
    lock.close()
    shutil.rmtree(directory, ignore_errors=True)


def keep_files(
    directory: Path, kept: Path, *, restart: Iterable[str], wanted: bool, most_bytes: int = KEPT_BYTES
) -> list[str]:
    """Keep what matters of a try: its small files, and its restart files where they are wanted.

    Args:
        directory: where it ran.
        kept: where its files go; may be ``directory``, then all others are removed.
        restart: patterns of the names of restart files, relative to ``directory``.
        wanted: whether restart files are.
        most_bytes: of the other files.

    Returns:
        Names of the files, without unwanted restart files, that were too large.

    Raises:
        OSError: they cannot be copied. Files that vanish meanwhile (ranks on other nodes clean up) are none.
    """
    names = _restart_files(directory, restart)
    sizes: dict[Path, int] = {}
    for path in _files(directory):
        with suppress(FileNotFoundError):
            if not path.is_symlink():
                sizes[path] = path.stat().st_size
    others = sorted((path for path in sizes if path not in names), key=lambda path: (sizes[path], path))
    total, chosen = 0, set(names & sizes.keys()) if wanted else set()
    too_large = []
    for path in others:
        total += sizes[path]
        if total <= most_bytes:
            chosen.add(path)
        else:
            too_large.append(str(path.relative_to(directory)))
    if kept == directory:
        for path in sizes.keys() - chosen:
            path.unlink(missing_ok=True)
    else:
        _copy(chosen, directory, kept)
    return too_large


def drop_restart_files(directory: Path, restart: Iterable[str]) -> None:
    """Remove restart files that no try needs any more."""
    for path in _restart_files(directory, restart):
        with suppress(OSError):  # what stays costs space, nothing else
            path.unlink()


def _files(directory: Path) -> Iterator[Path]:
    """All files below a directory; folders that vanish meanwhile are none."""
    for folder, _, names in os.walk(directory):
        yield from (Path(folder) / name for name in names)


def _restart_files(directory: Path, patterns: Iterable[str]) -> set[Path]:
    """Files that match, and all files below directories that match."""
    anchored = [f"/{pattern}" for pattern in patterns]

    def matches(path: Path) -> bool:
        whole = PurePosixPath("/") / path.relative_to(directory)
        return any(part.match(pattern) for part in (whole, *whole.parents) for pattern in anchored)

    return {path for path in _files(directory) if matches(path)}


def _copy(files: Collection[Path], directory: Path, kept: Path) -> None:
    """Copy files with their folders."""
    kept.mkdir(exist_ok=True)
    for path in files:
        target = kept / path.relative_to(directory)
        target.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # vanished meanwhile
            shutil.copyfile(path, target)
