"""Processes of a calculation: found by a mark in their environment, ended all together.

MPI launchers give ranks process groups (some even sessions) of their own, so that neither finds them all; what a process was
started with, it hands on to its children.
"""

import logging
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

MARK = "FARWALK_CALCULATION"
"""Variable that holds the directory of the calculation a process belongs to."""
GRACE_S = 10.0
"""From asking a program to end to ending it: MPI launchers take their ranks on other nodes along."""
KILL_GRACES = 3
"""Grace periods that killed processes have to go: one that waits for a dead disk may never."""
_PROC = Path("/proc")


def processes_of(directory: Path) -> list[int]:
    """Process ids on this machine that belong to the calculation in a directory; none where there is no /proc."""
    mark = f"{MARK}={directory}".encode()
    found = []
    for entry in _PROC.iterdir() if _PROC.is_dir() else ():
        if entry.name.isdigit():
            with suppress(OSError):  # ended meanwhile, or somebody else's
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def end_processes(directory: Path, process: subprocess.Popen[bytes] | None = None, *, grace_s: float = GRACE_S) -> bool:
    """Leave no process of a calculation on this machine: TERM, a grace period, KILL.

    Args:
        directory: of the calculation.
        process: the leader of its process group, where the caller started it.
        grace_s: time to end by themselves; that to go once killed is some times as long.

    Returns:
        Whether none is left: a process in an uninterruptible sleep cannot be ended.
    """

    def is_left() -> bool:
        return bool(processes_of(directory)) or (process is not None and process.poll() is None)

    deadline = time.monotonic() + grace_s
    if process is not None and process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    else:
        _send(signal.SIGTERM, directory)
    while time.monotonic() < deadline and is_left():
        time.sleep(0.05)
    if process is not None and process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + KILL_GRACES * grace_s
    while is_left():
        if time.monotonic() > deadline:
            logger.warning("%s: processes that cannot be killed: %s", directory, processes_of(directory))
            return False
        _send(signal.SIGKILL, directory)  # one that forks meanwhile is seen the next time
        time.sleep(0.02)
    return True


def oom_kills() -> int:
    """Processes that the kernel killed for want of memory in this process's control group; 0 where it does not say."""
    try:
        groups = [line.split(":", 2) for line in (_PROC / "self/cgroup").read_text().splitlines()]
    except OSError:
        return 0
    kills = 0
    for _, controllers, path in groups:
        name = path.lstrip("/")
        if not controllers:
            file = Path("/sys/fs/cgroup") / name / "memory.events"
        elif "memory" in controllers.split(","):
            file = Path("/sys/fs/cgroup/memory") / name / "memory.oom_control"
        else:
            continue
        with suppress(OSError, ValueError):
            kills += sum(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith("oom_kill "))
    return kills


def _send(which: signal.Signals, directory: Path) -> None:
    """Send a signal to each process of a calculation."""
    for pid in processes_of(directory):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, which)
