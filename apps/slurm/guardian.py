"""A tiny process that outlives the driver by a moment: when the driver dies without a word, it cancels the jobs by name.

Run by its path, with nothing but the standard library: it must cost no memory and must not depend on the environment.
Its standard input is a pipe that the driver holds open; whatever kills the driver closes it. Measured in a batch job: after
kill -9 of the driver the guardian has cancelled before SLURM clears the rest of the job away.
"""

import fcntl
import signal
import subprocess
import sys
import time
from pathlib import Path

WELL = b"q"
"""What a driver writes that ended well: there is nothing to cancel any more."""
AGAIN_S = (0.0, 1.0)
"""When it cancels: at once, and what an sbatch that was under way has submitted since."""
PAUSE_S, PATIENCE_S = 5.0, 600.0
"""How long it waits between tries and altogether while SLURM does not answer."""
TIMEOUT_S = 30.0


def cancel(names: list[str]) -> bool:
    """Cancel all jobs of these names; whether SLURM took it."""
    runs = [subprocess.Popen(["scancel", "--me", f"--name={name}"], stderr=subprocess.DEVNULL) for name in names]
    codes = []
    for run in runs:
        try:
            codes.append(run.wait(TIMEOUT_S))
        except subprocess.TimeoutExpired:
            run.kill()
            codes.append(run.wait())
    return not any(codes)


def has_driver(lock: str) -> bool:
    """Whether a new driver holds the campaign's lock already: it has cleared up itself, and the jobs are its own."""
    if not lock:
        return False
    try:
        with Path(lock).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # it is gone, or its file system has no locks
        return False
    return False


def main(lock: str, names: list[str]) -> None:
    """Wait for the driver's end, then clear up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # scancel of a driver's job signals every process in it
    if sys.stdin.buffer.read(1) == WELL:
        return
    deadline = time.monotonic() + PATIENCE_S
    for pause in AGAIN_S:
        time.sleep(pause)
        while not has_driver(lock) and not cancel(names) and time.monotonic() < deadline:
            time.sleep(PAUSE_S)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
