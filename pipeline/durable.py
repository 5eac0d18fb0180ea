"""Files that are either there as a whole or not at all, whatever instant the power fails."""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import DiskFullError, StoreError
from pipeline.records import FileRef

FREE_SPACE = "Free space on that file system (or raise the quota), and make sure that it can be written to."
"""What to do about a disk that takes no more."""


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync_directory(directory: Path) -> None:
    """Make renames and new names in a directory survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make a file's content survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, write: Callable[[Path], None]) -> FileRef:
    """Write under a temporary name, fsync, rename.

    Args:
        path: the final name; replaced when it exists.
        write: writes the whole content to the path it is given.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        sync_file(temporary)
        digest = sha256_of(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)
    return FileRef(path=str(path.resolve()), sha256=digest)


def write_bytes_durably(path: Path, data: bytes) -> FileRef:
    """:func:`write_durably` of bytes."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    return write_durably(path, write)


def write_text_durably(path: Path, text: str) -> FileRef:
    """:func:`write_durably` of UTF-8 text."""
    return write_bytes_durably(path, text.encode("utf-8"))


def verify(file: FileRef) -> Path:
    """The path of a file whose bytes are the ones the reference names.

    Raises:
        StoreError: missing or changed.
    """
    path = Path(file.path)
    if not path.is_file():
        raise StoreError(f"{path}: the file is missing.", "Restore it from a copy of the campaign directory.")
    if (found := sha256_of(path)) != file.sha256:
        raise StoreError(
            f"{path}: its content changed (sha256 {found[:12]}…, recorded {file.sha256[:12]}…).",
            "Restore it from a copy of the campaign directory.",
        )
    return path


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What a disk says that takes no more: full, quota spent, read-only."""


@contextmanager
def written_into(directory: Path) -> Iterator[None]:
    """Make a directory and write files into it.

    Raises:
        StoreError: one of them cannot be written; DiskFullError where the disk takes no more.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise not_written(directory, error) from error


def not_written(place: Path, error: OSError) -> StoreError:
    """What to tell a person of a file or directory that could not be written."""
    kind = DiskFullError if error.errno in NO_ROOM else StoreError
    return kind(f"{place}: cannot be written: {error.strerror or error}.", FREE_SPACE)


def full_disk(error: BaseException, place: Path) -> DiskFullError | None:
    """Whether something failed because a disk takes no more, in its own words or, without any, about a place."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, DiskFullError):
            return cause
        if isinstance(cause, OSError) and cause.errno in NO_ROOM:
            full = not_written(place, cause)
            assert isinstance(full, DiskFullError)
            return full
        cause = cause.__cause__ or cause.__context__
    return None
