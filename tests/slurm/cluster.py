"""A SLURM to test on: the user's own, or a private one on this machine whose daemons tests may break."""

import getpass
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

DAEMONS = ("slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
PORTS = 16
"""A private cluster uses so many ports from its base on."""


@dataclass(frozen=True, slots=True)
class Job:
    """One line of squeue: a job that waits or runs."""

    id: str
    name: str
    partition: str
    state: str
    node: str
    reason: str


def command(*arguments: str, timeout_s: float = 60) -> str:
    """Standard output of one of SLURM's commands."""
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, f"{' '.join(arguments)}: {done.stderr}"
    return done.stdout


def wait_until(happened: Callable[[], Any], what: str, timeout_s: float = 60) -> Any:
    """Ask again and again, until the answer is true; the answer.

    Raises:
        TimeoutError: it was not in time.
    """
    deadline = time.monotonic() + timeout_s
    while not (answer := happened()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.1)
    return answer


@dataclass(frozen=True, slots=True)
class Cluster:
    """What any SLURM can be asked for. Commands find it through SLURM_CONF.

    Attributes:
        site: a ``site:`` section with small jobs.
        shared: directory on a disk that the nodes share, for campaigns.
    """

    site: dict[str, Any]
    shared: Path

    def squeue(self, prefix: str = "") -> list[Job]:
        """Jobs of this user that wait or run, whose name begins so."""
        listed = command("squeue", "--noheader", "--user", getpass.getuser(), "--format=%i|%j|%P|%T|%N|%r")
        jobs = [Job(*line.split("|", 5)) for line in listed.splitlines()]
        return [job for job in jobs if job.name.startswith(prefix)]

    def scancel(self, *jobs: str) -> None:
        """Cancel jobs."""
        command("scancel", *jobs)

    def wait_for_job(self, name: str, state: str = "RUNNING", timeout_s: float = 60) -> Job:
        """A job whose name ends so, as soon as it is in that state."""

        def found() -> Job | None:
            return next((job for job in self.squeue() if job.name.endswith(name) and job.state == state), None)

        job: Job = wait_until(found, f"job {name} {state}", timeout_s)
        return job

    def wait_until_empty(self, prefix: str = "", timeout_s: float = 30) -> None:
        """Until none of these jobs waits, runs or ends."""
        wait_until(lambda: not self.squeue(prefix), f"no job {prefix}* in the queue", timeout_s)


@dataclass(frozen=True, slots=True)
class Daemons:
    """The private cluster: what a test may do to it. A test brings back what it breaks.

    Attributes:
        directory: all of its state; ``log/`` has the logs of the daemons.
        own_disks: every node has a small disk of its own at ``scratch``, and all share a small one at ``disk``.
    """

    directory: Path
    own_disks: bool = field(default_factory=lambda: os.geteuid() == 0)

    @property
    def scratch(self) -> Path:
        """Another small disk on each node: 32 MB."""
        return self.directory / "scratch"

    @property
    def disk(self) -> Path:
        """A small disk that driver and nodes share: 48 MB."""
        return self.directory / "disk"

    def pid_of(self, daemon: str) -> int:
        """Process of ``slurmctld`` or of ``slurmd-NODE``."""
        return int((self.directory / "pids" / f"{daemon}.pid").read_text().split()[0])

    def kill_slurmd(self, node: str) -> None:
        """The node's daemon dies, and with it everything that ran on the node, as when its power fails."""
        processes = self.processes_on(node)
        # whoever waits for the job's processes would tell the scheduler how they ended
        keepers = {parent for pid in processes if _status(parent := _status(pid)[1])[0].startswith("slurmstepd")}
        for pid in [self.pid_of(f"slurmd-{node}"), *keepers, *processes]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def start_slurmd(self, node: str) -> None:
        """The node boots, and may be used when this returns."""
        subprocess.run([HERE / "start-slurmd.sh", self.directory, node], check=True, timeout=30)
        self.wait_for_node(node)

    def processes_on(self, node: str) -> list[int]:
        """Processes of jobs on a node."""
        mine = {f"SLURM_CONF={self.directory}/slurm.conf".encode(), f"SLURMD_NODENAME={node}".encode()}
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if mine <= set(path.read_bytes().split(b"\0")):
                    found.append(int(path.parent.name))
        return found

    def set_down(self, node: str) -> None:
        """An administrator takes the node out: its jobs end with NODE_FAIL."""
        command("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")

    def resume(self, node: str) -> None:
        """The node comes back, and may be used when this returns."""
        if not self._works(node):  # it registers now and then, and is back by itself after that
            command("scontrol", "update", f"NodeName={node}", "State=RESUME")
        self.wait_for_node(node)

    def wait_for_node(self, node: str, *, down: bool = False, timeout_s: float = 60) -> None:
        """Until a node takes jobs, or does not any more."""
        wait_until(lambda: self._works(node) is not down, f"node {node} {'down' if down else 'up'}", timeout_s)

    def _works(self, node: str) -> bool:
        shown = command("sinfo", "--noheader", f"--nodes={node}", "--format=%T").split()
        return not any(state.startswith(("down", "drain", "fail")) or state.endswith("*") for state in shown)

    def kill_slurmctld(self) -> None:
        """The scheduler dies."""
        pid = self.pid_of("slurmctld")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), "slurmctld gone", 10)

    def start_slurmctld(self) -> None:
        """The scheduler comes back, and answers when this returns."""
        subprocess.run(["slurmctld", "-f", self.directory / "slurm.conf"], check=True, timeout=30, env=_environment())
        wait_until(_answers, "slurmctld up", 30)

    def limit(self, partition: str, jobs: int, code: int = 2050, words: str = "AssocMaxSubmitJobLimit") -> None:
        """Refuse jobs while the user has so many in a partition.

        Args:
            partition: its name.
            jobs: 0 refuses all.
            code: SLURM's error number; 2050 is a limit of accounting, 2045 an invalid account.
            words: what SLURM says besides.
        """
        (self.directory / "limits").write_text(f"{partition} {jobs} {code} {words}\n", encoding="utf-8")

    def lift_limits(self) -> None:
        """Refuse nothing any more."""
        (self.directory / "limits").unlink(missing_ok=True)

    def on_node(self, node: str, *arguments: str) -> str:
        """Run a command that sees the disks as the node does."""
        return command("nsenter", "--mount", "--target", str(self.pid_of(f"slurmd-{node}")), *arguments)


def _status(pid: int) -> tuple[str, int]:
    """Name and parent of a process; nothing and 0 when it is gone."""
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
    except OSError:
        return "", 0
    return name, int(rest.split()[1])


def _answers() -> bool:
    done = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=30, check=False)
    return "is UP" in done.stdout


def _environment() -> dict[str, str]:
    """Where the daemons are found: not every user has /usr/sbin on PATH."""
    return {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}


def missing_commands() -> list[str]:
    """Of SLURM's commands and daemons, those that are not installed."""
    return [name for name in DAEMONS if shutil.which(name, path=_environment()["PATH"]) is None]


@contextmanager
def private_slurm() -> Iterator[Daemons]:
    """A SLURM of this machine's own with 2 nodes in partition ``gpu`` (2 pretended GPUs each) and 2 in ``cpu``.

    SLURM_CONF names it while the block runs; nothing of it is left afterwards.
    """
    # a short path: it holds unix sockets
    directory = Path(tempfile.mkdtemp(prefix="farwalk-slurm-", dir="/tmp"))
    directory.chmod(0o755)
    # a driver in the tests must not take itself for a part of a job that the tests run in
    before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(("SLURM", "SBATCH_"))}
    try:
        _start(directory)
        os.environ["SLURM_CONF"] = str(directory / "slurm.conf")
        yield Daemons(directory)
    finally:
        for name in [name for name in os.environ if name.startswith(("SLURM", "SBATCH_"))]:
            del os.environ[name]
        _stop(directory)
        os.environ.update(before)
        shutil.rmtree(directory)


def _start(directory: Path) -> None:
    said = ""
    for _ in range(3):  # another run may take the ports at the same time
        environment = {**_environment(), "SLURM_BASEPORT": str(_free_ports())}
        done = subprocess.run(
            [HERE / "start-slurm.sh", directory],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode == 0:
            return
        said = done.stderr
        _stop(directory)
        shutil.rmtree(directory / "state")
    raise RuntimeError(f"a private SLURM does not start: {said}")


def _stop(directory: Path) -> None:
    subprocess.run([HERE / "stop-slurm.sh", directory], check=True, timeout=120, stderr=subprocess.DEVNULL)


def _free_ports() -> int:
    """The first of a range of free ports, below those that systems hand out by themselves."""
    while True:
        base = random.SystemRandom().randrange(17600, 32000, PORTS)
        with suppress(OSError):
            for port in range(base, base + PORTS):
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("", port))
            return base
