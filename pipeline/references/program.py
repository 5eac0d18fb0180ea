"""A program behind a reference: started as the site says, ended whatever happens, and its exit understood.

What is common to all programs is said here (not started, out of time, out of memory, disk full); what its output means, the
labeler says.
"""

import errno
import functools
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.durable import not_written
from pipeline.records import Cause
from pipeline.references.base import Calculation, CalculationFailed
from pipeline.references.processes import GRACE_S, MARK, end_processes, oom_kills
from pipeline.settings.launch import LaunchSettings, ProgramSettings

READ_BYTES = 1_000_000
"""Of a long output, the end is read."""
_OUTER_RANK = (
    "PMI_RANK",
    "PMI_SIZE",
    "PMI_FD",
    "PMIX_RANK",
    "PMIX_NAMESPACE",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
)
"""A worker that srun or mpirun started hands these on; the program would take itself for a rank of the worker's."""
_OUTER_STEP = (
    "SLURM_NTASKS_PER_NODE",
    "SLURM_CPUS_PER_TASK",
    "SLURM_CPU_BIND",
    "SLURM_CPU_BIND_LIST",
    "SLURM_CPU_BIND_TYPE",
    "SLURM_DISTRIBUTION",
)
"""The srun of a label would take these of the worker's job or step for its own options."""
_OUTER_JOB = (
    "SLURM_JOB_ID",
    "SLURM_JOBID",
    "SLURM_JOB_NODELIST",
    "SLURM_NODELIST",
    "SLURM_STEP_ID",
    "SLURM_STEPID",
    "SLURM_PROCID",
)
"""In a job of several nodes mpirun would spread ranks over all of them, where each node has labels of its own; and OpenMPI
without mpirun fails in a step of srun."""
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_OUT_OF_MEMORY = re.compile(
    r"bad_alloc|cannot allocate memory|out of memory|oom.kill|insufficient virtual memory|memory allocation failed"
    r"|memory exhausted|MemoryError|out of dynamic memory"
    r"|failed to map segment|allocation would exceed memory limit|error allocating \d+|not enough space for memory",
    re.IGNORECASE,
)
_DISK_FULL = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)
_NOT_STARTED = re.compile(
    r"(?:failed to (?:run command|execute)|env:) ['‘]?(?P<name>[^'’:\n]+)['’]?: (?P<why>[^\n]+)"
    r"|exec: \"?(?P<inside>[^\"\n]+?)\"?: (?:executable file )?not found"
    r"|\"(?P<contained>[^\"\n]+)\": executable file not found"
)
_LIBRARY = re.compile(r"error while loading shared libraries: [^\n]+")
_REFUSED_LAUNCH = (
    (
        "attempt to run as root",
        "Set OMPI_ALLOW_RUN_AS_ROOT and OMPI_ALLOW_RUN_AS_ROOT_CONFIRM to 1 in site.launch.environment",
    ),
    ("not enough slots available", "Add --oversubscribe to site.launch.mpi, or lower site.launch.ranks"),
    ("PMI support", "Use mpirun, or srun with the right --mpi, in site.launch.mpi"),
    ("mpirun: Error:", "Correct site.launch.mpi"),
    ("srun: fatal:", "Correct site.launch.mpi"),
    ("srun: unrecognized option", "Correct site.launch.mpi"),
    ("Unable to create step", "Correct site.launch.mpi (several labels on a node: --exact)"),
    ("Unable to confirm allocation", "Correct site.launch.mpi"),
)
"""What MPI launchers say when they do not start anything, and what to do."""
_AGAIN = "then run the campaign again."
_SIGNALS = (
    re.compile(r"exited on signal (?P<number>\d+)"),  # OpenMPI
    re.compile(r"EXIT (?:STRING: .*\(signal |CODE: )(?P<number>\d+)\)?"),  # MPICH, Intel
    re.compile(r"KILLED BY SIGNAL: (?P<number>\d+)"),
    re.compile(r"srun: error: [^\n]*task[^\n]*: (?P<name>Killed|Segmentation fault|Aborted|Bus error|Terminated)"),
    re.compile(r"Program received signal (?P<name>SIG\w+)"),  # Fortran's own backtrace
)


_KILLED = frozenset({"signal 9", "Killed"})
_SEGMENTATION_FAULT = frozenset({"signal 11", "SIGSEGV", "Segmentation fault"})
_MPI_INIT = re.compile(r"MPI_INIT failed|error occurred in MPI_Init|pmix_init failed", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A program that ran and ended.

    Attributes:
        code: exit status; negative: the signal that killed it.
        output: what it wrote, at most the last MB.
        wall_s: how long it ran.
    """

    code: int
    output: str
    wall_s: float


def run_program(
    program: str, arguments: Sequence[str], calculation: Calculation, *, output: str, stdin: str | None = None
) -> Ended:
    """Run a program in a calculation's directory, as its launch settings say.

    Whatever ends this call, none of the program's processes is left; nor is any (after some seconds) when this process is
    killed.

    Args:
        program: name or path.
        arguments: of the program.
        calculation: where, how, and how long at most.
        output: name of the file, in the directory, that takes its standard output and error.
        stdin: name of the file in the directory that it reads as its standard input; None: it gets nothing to read.

    Raises:
        CalculationFailed: TIME_LIMIT, OUT_OF_MEMORY or MISSING_PROGRAM.
        DiskFullError: the disk of the directory takes no more.
    """
    directory = calculation.directory
    command = command_of(program, arguments, calculation)
    kills, began = oom_kills(), time.monotonic()
    with (
        (directory / output).open("wb") as sink,
        Path(directory / stdin if stdin else "/dev/null").open("rb") as source,
    ):
        try:
            process = subprocess.Popen(
                command, cwd=directory, stdin=source, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
            )
        except FileNotFoundError as error:
            raise CalculationFailed(
                Cause.MISSING_PROGRAM, f"{error.filename} is not there.", "Install coreutils."
            ) from error
        try:
            # `timeout` ends it before; this is for the one that cannot be killed
            code: int | None = process.wait(calculation.time_s + 2 * GRACE_S)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_processes(directory, process)
    wall_s = time.monotonic() - began
    ended = Ended(code=-9 if code is None else code, output=read_end(directory / output), wall_s=wall_s)
    if code != 0:
        _recognise(ended, program, calculation, oom=oom_kills() > kills)
    return ended


def command_of(program: str, arguments: Sequence[str], calculation: Calculation) -> list[str]:
    """The whole command: what dies with the worker, keeps the time, starts ranks, and caps and marks each of them.

    Raises:
        CalculationFailed: a memory cap is set and ``prlimit`` is missing.
    """
    launch = calculation.launch
    limits: list[str] = []
    if calculation.memory_GB is not None:
        if not shutil.which("prlimit"):
            raise CalculationFailed(
                Cause.MISSING_PROGRAM,
                "prlimit, which caps the memory of a program, is not there.",
                "Install util-linux on the workers, or set site.launch.memory_GB to null.",
            )
        limits = ["prlimit", f"--as={int(calculation.memory_GB * 1e9)}"]
    by_slurm = launch.nodes > 1 or (calculation.ranks > 1 and launch.is_srun)
    outer = (*_OUTER_RANK, *_OUTER_STEP, *(() if by_slurm else _OUTER_JOB))
    unset = [option for name in outer for option in ("-u", name)]
    # texts are recognised in English; the site's own variables come last
    variables = {
        "LC_ALL": "C",
        **dict.fromkeys(_THREADS, str(calculation.threads)),
        **launch.environment,
        MARK: str(calculation.directory),
    }
    assignments = [f"{name}={value}" for name, value in variables.items()]
    command = [*_bound_to_parent("TERM"), "timeout", "-k", f"{GRACE_S:g}", f"{calculation.time_s:.3f}"]
    command += ["env", *unset, *assignments]
    if calculation.ranks > 1 or launch.nodes > 1:
        # ranks on other nodes inherit nothing; those of a killed launcher would live on
        command += [*_mpi_command(calculation), *_bound_to_parent("KILL"), "env", *assignments]
    return [*command, *limits, *shlex.split(launch.container), program, *arguments]


def killing_signal(ended: Ended) -> str:
    """What killed the program or one of its ranks, e.g. ``signal 9``; empty where it ended by itself."""
    for pattern in _SIGNALS:
        if match := pattern.search(ended.output):
            named = match.groupdict()
            return f"signal {named['number']}" if named.get("number") else str(named["name"])
    if ended.code < 0:
        return f"signal {-ended.code}"
    return f"signal {ended.code - 128}" if 128 < ended.code < 160 else ""


def read_end(path: Path, size: int = READ_BYTES) -> str:
    """The last bytes of a file as text; bytes that are no UTF-8 become replacement characters."""
    with path.open("rb") as stream:
        stream.seek(0, 2)
        stream.seek(max(0, stream.tell() - size))
        return stream.read().decode("utf-8", errors="replace")


def _mpi_command(calculation: Calculation) -> list[str]:
    launch = calculation.launch
    words = shlex.split(
        launch.mpi.format(
            ranks=calculation.ranks,
            nodes=launch.nodes,
            threads=calculation.threads,
            memory_MB=int(1000 * (calculation.memory_GB or 0)),
        )
    )
    if launch.is_srun and launch.nodes == 1 and calculation.host:
        # the job may have further nodes, which do not see the disk of this one; srun would take all where mpi names none
        words[1:1] = ["-w", calculation.host, "-N", "1"]
    return words


@functools.cache
def _bound_to_parent(signal: str) -> tuple[str, ...]:
    """A prefix that has a program get a signal when its parent dies; empty where the machine cannot do that."""
    prefix = ("setpriv", "--pdeathsig", signal)
    if shutil.which("setpriv") and subprocess.run([*prefix, "true"], capture_output=True, timeout=60).returncode == 0:
        return prefix
    return ()


def _recognise(ended: Ended, program: str, calculation: Calculation, *, oom: bool) -> None:
    """Raise for what the exit status and the words of launchers, loaders and kernels say.

    Raises:
        CalculationFailed: TIME_LIMIT, OUT_OF_MEMORY or MISSING_PROGRAM.
        DiskFullError: the disk is full.
    """
    if ended.wall_s >= calculation.time_s and ended.code in (124, 137, -9, -15):
        raise CalculationFailed(
            Cause.TIME_LIMIT,
            f"{program} took longer than {calculation.time_s:.0f} s.",
            "Raise site.launch.time_limit, or give a label more ranks.",
        )
    disk = shutil.disk_usage(calculation.directory)  # its words may not have fitted on it either
    if _DISK_FULL.search(ended.output) or (disk.total > 0 and disk.free < READ_BYTES):
        raise not_written(calculation.directory, OSError(errno.ENOSPC, "No space left on device"))
    words, killed_by = _OUT_OF_MEMORY.search(ended.output), killing_signal(ended)
    # MPI libraries and programs do not all look whether they get the memory that they ask for
    started = _MPI_INIT.search(ended.output)
    refused = calculation.memory_GB is not None and (killed_by in _SEGMENTATION_FAULT or started)
    if words or refused or (oom and killed_by in _KILLED):
        said = _line_of(ended.output, words) if words else killed_by or (started[0] if started else "")
        raise CalculationFailed(
            Cause.OUT_OF_MEMORY,
            f"{program} ran out of memory ({said}).",
            "Raise site.launch.memory_GB or the memory of the label jobs, or run fewer ranks per node.",
        )
    _refuse_missing(ended, program, calculation.launch)


def _refuse_missing(ended: Ended, program: str, launch: LaunchSettings) -> None:
    """Raise when the program, or what starts it, did not start.

    Raises:
        CalculationFailed: MISSING_PROGRAM.
    """
    for words, remedy in _REFUSED_LAUNCH:
        if words in ended.output:
            reason = f"{shlex.split(launch.mpi)[0]} starts nothing: {_line_with(ended.output, words)}"
            raise CalculationFailed(Cause.MISSING_PROGRAM, reason, f"{remedy}, {_AGAIN}")
    if library := _LIBRARY.search(ended.output):
        raise CalculationFailed(
            Cause.MISSING_PROGRAM,
            f"{program} does not start: {library.group()}.",
            f"Load what it needs in the site's worker_init (module load …), {_AGAIN}",
        )
    match = _NOT_STARTED.search(ended.output)
    if match is None and ended.code not in (126, 127):
        return
    name = next((text for text in match.groups() if text), program) if match else program
    why = (match["why"] if match else "") or "not found"
    key = _key_of(name.strip(), program, launch)
    raise CalculationFailed(
        Cause.MISSING_PROGRAM,
        f"{name.strip()} cannot be started: {why}.",
        f"Correct {key}, or load it in the site's worker_init (module load …), {_AGAIN}",
    )


def _key_of(name: str, program: str, launch: LaunchSettings) -> str:
    """The setting that names what could not be started."""
    for key, command in (("mpi", launch.mpi), ("container", launch.container)):
        if name != program and name in shlex.split(command):
            return f"site.launch.{key}"
    for field in ProgramSettings.model_fields:
        if getattr(launch.programs, field) == program:
            return f"site.launch.programs.{field}"
    return "site.launch.programs"


def _line_with(text: str, words: str) -> str:
    return next(line.strip() for line in text.splitlines() if words in line)


def _line_of(text: str, match: re.Match[str]) -> str:
    """The line of a match, shortened."""
    start = text.rfind("\n", 0, match.start()) + 1
    end = text.find("\n", match.end())
    return " ".join(text[start : end if end >= 0 else None].split())[:200]
