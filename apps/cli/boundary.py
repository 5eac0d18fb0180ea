"""The edge between farwalk and a person: errors become one message and an exit code; logging is configured here only.

Exit codes: 0 done, 1 a bug in farwalk, 2 something a person can mend, 130 stopped by Ctrl-C.
"""

import functools
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec

import typer

from pipeline.errors import PipelineError

logger = logging.getLogger(__name__)

EXIT_BUG = 1
EXIT_MEND = 2
EXIT_STOPPED = 130

P = ParamSpec("P")


class Crash(Exception):
    """A bug in farwalk, with its traceback already in ``log``."""

    def __init__(self, log: str, summary: str) -> None:
        super().__init__(log, summary)
        self.log = log
        self.summary = summary


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Write log records to a file, which is made at the first record, while the block runs.

    Raises:
        Crash: the block raised what farwalk never raises on purpose; the traceback is in the file.
    """
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.setLevel(logging.INFO)
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    except (PipelineError, Crash, OSError, typer.Exit, typer.Abort):
        raise
    except Exception as error:  # the boundary: whatever arrives here is a bug, and the user gets one line instead
        logger.exception("internal error")
        raise Crash(str(path), f"{type(error).__name__}: {error}") from error
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
        handler.close()


def guarded(verb: Callable[P, None]) -> Callable[P, None]:
    """A verb that ends with one clear message on standard error and an exit code, never with a traceback."""

    @functools.wraps(verb)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        log = Path(tempfile.gettempdir()) / f"farwalk-{os.getpid()}.log"
        try:
            with logging_to(log):
                verb(*args, **kwargs)
        except PipelineError as error:
            raise _leave(f"error: {error.message}", error.remedy, EXIT_MEND) from None
        except Crash as crash:
            text = f"internal error: {crash.summary}"
            raise _leave(text, f"This is a bug in farwalk. The traceback is in {crash.log}.", EXIT_BUG) from None
        except BrokenPipeError:
            raise  # the reader of a pipe has gone: typer ends quietly
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            remedy = "Check the path, its permissions and the free disk space."
            raise _leave(f"error: {place}{error.strerror or error}.", remedy, EXIT_MEND) from None
        except KeyboardInterrupt:
            raise _leave("stopped.", "", EXIT_STOPPED) from None

    return run


def _leave(message: str, remedy: str, code: int) -> typer.Exit:
    sys.stderr.write(f"{message}\n{remedy}\n" if remedy else f"{message}\n")
    return typer.Exit(code)
