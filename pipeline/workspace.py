"""Where a try of a label runs, on the node's own disk where there is one, and what is kept of its files."""

import logging
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.node import Node, make_private
from pipeline.records import Remark
from pipeline.references.processes import end_processes

logger = logging.getLogger(__name__)

KEPT_BYTES = 200_000_000
"""Of a try's files without restart files, smallest first, so much is kept."""
PREFIX = "farwalk-label-"
_OURS = re.compile(rf"{PREFIX}(\d+)-.+")


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
    local = None
    if node.scratch is not None and not shared:
        try:
            make_private(node.scratch)
            remove_leftovers(node.scratch)
            local = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=node.scratch))
        except OSError as error:
            text = f"{socket.gethostname()}: {node.scratch} cannot be used: {error.strerror or error}"
            logger.warning("%s", text)
            tell(Remark(text=text, remedy="Labels run on the campaign's disk. Free the node's, or set site.scratch."))
    if local is None:
        kept.mkdir()
        yield kept
        return
    try:
        yield local
    finally:
        shutil.rmtree(local, ignore_errors=True)


def remove_leftovers(scratch: Path) -> None:
    """Remove directories of workers that were killed, and end what still runs in them."""
    for directory in scratch.iterdir():
        match = _OURS.fullmatch(directory.name)
        if match and not _is_alive(int(match[1])):
            end_processes(directory)
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
        OSError: they cannot be copied.
    """
    names = _restart_files(directory, restart)
    sizes = {path: path.stat().st_size for path in directory.rglob("*") if path.is_file() and not path.is_symlink()}
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


def _restart_files(directory: Path, patterns: Iterable[str]) -> set[Path]:
    """Files that match, and all files below directories that match."""
    matches = [path for pattern in patterns for path in directory.glob(pattern)]
    files = {path for path in matches if path.is_file()}
    return files | {path for match in matches if match.is_dir() for path in match.rglob("*") if path.is_file()}


def _copy(files: Collection[Path], directory: Path, kept: Path) -> None:
    """Copy files with their folders."""
    kept.mkdir(exist_ok=True)
    for path in files:
        target = kept / path.relative_to(directory)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
