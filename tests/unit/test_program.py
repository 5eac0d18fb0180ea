"""Programs behind references: started as the site says, understood when they fail, and never left running."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import DiskFullError
from pipeline.records import Cause
from pipeline.references import Calculation, CalculationFailed
from pipeline.references.processes import MARK, end_processes, processes_of
from pipeline.references.program import Ended, command_of, killing_signal, run_program
from pipeline.settings.launch import LaunchSettings, ProgramSettings

ROOT_MAY = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
LAUNCH = LaunchSettings(environment=ROOT_MAY)
mpi = pytest.mark.skipif(shutil.which("mpirun") is None, reason="mpirun not found (package openmpi-bin)")


def calculation(directory: Path, *, launch: LaunchSettings = LAUNCH, **changes) -> Calculation:
    return Calculation(directory=directory, launch=launch, **changes)


def run(directory: Path, *command: str, **changes) -> Ended:
    return run_program(command[0], command[1:], calculation(directory, **changes), output="out")


def failure(directory: Path, *command: str, **changes) -> CalculationFailed:
    with pytest.raises(CalculationFailed) as caught:
        run(directory, *command, **changes)
    assert not processes_of(directory)
    return caught.value


def test_a_program_runs_in_its_directory_with_its_threads_and_the_sites_variables(tmp_path):
    launch = LaunchSettings(environment={"NAME": "a value"})
    ended = run(tmp_path, "sh", "-c", 'pwd; echo "$OMP_NUM_THREADS,$NAME" >&2; exit 3', launch=launch, threads=4)
    assert ended.code == 3
    assert ended.output == f"{tmp_path}\n4,a value\n"
    assert (tmp_path / "out").read_text() == ended.output


def test_a_program_reads_a_file_as_its_standard_input_or_nothing(tmp_path):
    (tmp_path / "in").write_text("text")
    assert run_program("cat", [], calculation(tmp_path), output="out", stdin="in").output == "text"
    assert run(tmp_path, "cat").output == ""


def test_of_a_long_output_the_end_is_read(tmp_path):
    ended = run(tmp_path, sys.executable, "-c", "print('x' * 3_000_000); print('the end')")
    assert len(ended.output) == 1_000_000
    assert ended.output.endswith("the end\n")


@mpi
def test_each_rank_has_its_threads_and_its_cap(tmp_path):
    ended = run(tmp_path, "sh", "-c", 'echo "$OMP_NUM_THREADS $(ulimit -v)"', ranks=2, threads=3, memory_GB=2.048)
    assert ended.output == 2 * "3 2000000\n"


def test_one_rank_starts_without_the_mpi_command_and_a_container_stands_before_the_program(tmp_path):
    launch = LaunchSettings(mpi="srun -n {ranks} --mem={memory_MB}", container="apptainer exec 'my image.sif'")
    one = command_of("pw.x", ["-in", "x"], calculation(tmp_path, launch=launch))
    assert "srun" not in one
    assert one[-6:] == ["apptainer", "exec", "my image.sif", "pw.x", "-in", "x"]
    many = command_of("pw.x", [], calculation(tmp_path, launch=launch, ranks=4, memory_GB=1.5))
    start = many.index("srun")
    assert many[start : start + 4] == ["srun", "-n", "4", "--mem=1500"]
    assert many.index("prlimit") > start
    assert many[-4:] == ["apptainer", "exec", "my image.sif", "pw.x"]


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=mpi)])
def test_a_program_that_takes_too_long_is_ended(tmp_path, ranks):
    began = time.monotonic()
    failed = failure(tmp_path, "sh", "-c", "sleep 61 & sleep 60", time_s=1.0, ranks=ranks)
    assert failed.cause is Cause.TIME_LIMIT
    assert "site.launch.time_limit" in failed.remedy
    assert time.monotonic() - began < 30


def test_a_program_that_ignores_being_asked_to_end_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.references.program.GRACE_S", 1.0)
    text = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    began = time.monotonic()
    assert failure(tmp_path, sys.executable, "-c", text, time_s=1.0).cause is Cause.TIME_LIMIT
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("launch", "ranks", "name", "key"),
    [
        (LaunchSettings(programs=ProgramSettings(pw="nosuch.x")), 1, "nosuch.x", "site.launch.programs.pw"),
        pytest.param(
            LaunchSettings(programs=ProgramSettings(cp2k="nosuch.x"), environment=ROOT_MAY),
            2,
            "nosuch.x",
            "site.launch.programs.cp2k",
            marks=mpi,
        ),
        (LaunchSettings(mpi="nompirun -n {ranks}"), 2, "nompirun", "site.launch.mpi"),
        (LaunchSettings(container="nocontainer exec x.sif"), 1, "nocontainer", "site.launch.container"),
        pytest.param(LaunchSettings(mpi="mpirun --nooption -n {ranks}"), 2, "mpirun", "site.launch.mpi", marks=mpi),
    ],
)
def test_what_cannot_be_started_is_named_with_its_key(tmp_path, launch, ranks, name, key):
    failed = failure(tmp_path, "nosuch.x", launch=launch, ranks=ranks)
    assert failed.cause is Cause.MISSING_PROGRAM
    assert name in failed.reason
    assert key in failed.remedy


def test_a_library_that_the_loader_does_not_find_asks_for_a_module(tmp_path):
    line = "pw.x: error while loading shared libraries: libmkl.so.2: cannot open shared object file"
    failed = failure(tmp_path, "sh", "-c", f"echo '{line}'; exit 127")
    assert failed.cause is Cause.MISSING_PROGRAM
    assert "libmkl.so.2" in failed.reason
    assert "worker_init" in failed.remedy


@mpi
def test_openmpi_that_refuses_root_names_the_variables(tmp_path, monkeypatch):
    if os.getuid() != 0:
        pytest.skip("needs root")
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
        monkeypatch.delenv(name, raising=False)
    failed = failure(tmp_path, "true", launch=LaunchSettings(), ranks=2)
    assert failed.cause is Cause.MISSING_PROGRAM
    assert "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM" in failed.remedy


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=mpi)])
def test_a_program_over_its_cap_is_out_of_memory(tmp_path, ranks):
    # sort of GNU says what C and Fortran programs say when malloc gives nothing
    command = ("sort", "--buffer-size=3G", "/dev/zero")
    assert failure(tmp_path, *command, memory_GB=0.5, ranks=ranks).cause is Cause.OUT_OF_MEMORY


def test_a_segmentation_fault_under_a_cap_is_taken_for_memory_it_did_not_get(tmp_path):
    text = "import os; os.kill(os.getpid(), 11)"
    assert failure(tmp_path, sys.executable, "-c", text, memory_GB=1.0).cause is Cause.OUT_OF_MEMORY
    assert killing_signal(run(tmp_path, sys.executable, "-c", text)) == "signal 11"


CAPPED = """
import os, sys
from pathlib import Path
Path(sys.argv[2], "cgroup.procs").write_text(str(os.getpid()))
from pipeline.references import Calculation, CalculationFailed
from pipeline.references.program import run_program
text = f"{sys.executable} -c 'x = bytearray(3_000_000_000)'; kill -9 $$"
try:
    run_program("sh", ["-c", text], Calculation(directory=Path(sys.argv[1])), output="out")
except CalculationFailed as failed:
    print(failed.cause)
"""


def test_a_program_that_the_kernel_kills_for_its_jobs_memory_is_out_of_memory(tmp_path):
    # batch systems hold jobs in such groups; the program says nothing itself
    version_2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    group = Path("/sys/fs/cgroup") / ("" if version_2 else "memory") / f"farwalk-test-{os.getpid()}"
    limit = group / ("memory.max" if version_2 else "memory.limit_in_bytes")
    try:
        group.mkdir()
        limit.write_text("1500000000")
    except OSError as error:
        pytest.skip(f"no memory group can be made here: {error}")
    try:
        done = subprocess.run(
            [sys.executable, "-c", CAPPED, tmp_path, group], stdout=subprocess.PIPE, text=True, timeout=60
        )
    finally:
        wait_for(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()
    assert done.stdout == "out_of_memory\n"


@pytest.mark.parametrize(
    "words",
    [
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "Operating system error: Cannot allocate memory",
        "forrtl: severe (41): insufficient virtual memory",
        "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.",
        "srun: error: node1: task 0: Out Of Memory",
    ],
)
def test_what_runtimes_and_kernels_say_of_memory_is_understood(tmp_path, words):
    failed = failure(tmp_path, "sh", "-c", f'echo "{words}"; exit 1')
    assert failed.cause is Cause.OUT_OF_MEMORY
    assert words[:20] in failed.reason


def test_a_full_disk_is_no_fault_of_the_structure(tmp_path):
    with pytest.raises(DiskFullError, match=str(tmp_path)):
        run(tmp_path, "dd", "if=/dev/zero", "of=/dev/full", "count=1")
    if os.getuid() == 0 and shutil.which("mount"):
        small = tmp_path / "small"
        small.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1100k", "tmpfs", small], check=False).returncode:
            pytest.skip("nothing can be mounted here")
        try:  # here the words do not fit on the disk either
            with pytest.raises(DiskFullError, match="small"):
                run(small, "sh", "-c", "yes; exit 1")
        finally:
            subprocess.run(["umount", small], check=True)


def test_a_killed_program_says_which_signal(tmp_path):
    assert killing_signal(run(tmp_path, sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")) == "signal 9"
    assert killing_signal(run(tmp_path, "sh", "-c", "exit 3")) == ""
    assert killing_signal(run(tmp_path, "true")) == ""


@mpi
def test_one_killed_rank_ends_all_and_says_which_signal(tmp_path):
    text = "import os, time\nif os.environ['OMPI_COMM_WORLD_RANK'] == '1': os.kill(os.getpid(), 11)\ntime.sleep(60)"
    ended = run(tmp_path, sys.executable, "-c", text, ranks=2)
    assert ended.code != 0
    assert killing_signal(ended) == "signal 11"
    assert not processes_of(tmp_path)


def test_processes_that_a_program_leaves_behind_are_ended(tmp_path):
    # in a session of its own, as daemons are
    assert run(tmp_path, "sh", "-c", "setsid sleep 60 & sleep 0.2; exit 0").code == 0
    assert not processes_of(tmp_path)


@pytest.mark.parametrize(
    ("launch", "expected"),
    [
        ({"mpi": "/opt/slurm/srun -n {ranks}"}, ["/opt/slurm/srun", "-w", "nid7", "-N", "1", "-n", "2"]),
        ({"mpi": "srun -n {ranks}", "nodes": 2}, ["srun", "-n", "2"]),
        ({"mpi": "mpirun -n {ranks}"}, ["mpirun", "-n", "2"]),
    ],
)
def test_srun_is_told_the_node_of_the_worker_where_a_calculation_has_one_node(tmp_path, launch, expected):
    words = command_of("pw.x", [], calculation(tmp_path, launch=LaunchSettings(**launch), ranks=2, host="nid7"))
    began = words.index(expected[0])
    assert words[began : began + len(expected)] == expected
    assert ("-w" in words) is ("-w" in expected)
    assert "-w" not in command_of("pw.x", [], calculation(tmp_path, launch=LaunchSettings(**launch), ranks=2))


WORKER = """
import sys
from pathlib import Path
from pipeline.references import Calculation
from pipeline.references.program import run_program
from pipeline.settings.launch import LaunchSettings
launch = LaunchSettings(environment={environment!r})
text = "import os, time; open('rank-' + str(os.getpid()), 'w').close(); time.sleep(60)"
calculation = Calculation(directory=Path(sys.argv[1]), launch=launch, ranks=int(sys.argv[2]))
run_program(sys.executable, ["-c", text], calculation, output="out")
"""


@pytest.mark.parametrize("which", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=mpi)])
def test_whatever_ends_the_worker_ends_its_program(tmp_path, which, ranks):
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER.format(environment=ROOT_MAY), tmp_path, str(ranks)], stderr=subprocess.DEVNULL
    )
    wait_for(lambda: len(ranks_in(tmp_path)) == ranks)
    assert len(processes_of(tmp_path)) >= ranks
    worker.send_signal(which)
    worker.wait(20)
    wait_for(lambda: not processes_of(tmp_path), seconds=8)


@mpi
def test_ranks_do_not_outlive_a_killed_mpi_launcher(tmp_path):
    worker = subprocess.Popen([sys.executable, "-c", WORKER.format(environment=ROOT_MAY), tmp_path, "2"])
    wait_for(lambda: len(ranks_in(tmp_path)) == 2)
    for pid in set(processes_of(tmp_path)) - ranks_in(tmp_path):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not processes_of(tmp_path), seconds=8)
    worker.wait(20)


def test_only_processes_of_the_directory_are_ended(tmp_path):
    other = subprocess.Popen(["env", f"{MARK}={tmp_path}-2", "sleep", "60"])
    mine = subprocess.Popen(["env", f"{MARK}={tmp_path}", "sleep", "60"])
    wait_for(lambda: processes_of(tmp_path))
    end_processes(tmp_path)
    assert mine.wait(5) == -signal.SIGTERM
    assert other.poll() is None
    other.kill()
    other.wait()


def test_a_program_that_cannot_be_killed_is_left_after_some_time(tmp_path, monkeypatch):
    process = subprocess.Popen(["env", f"{MARK}={tmp_path}", "sleep", "60"], start_new_session=True)
    wait_for(lambda: processes_of(tmp_path))
    with monkeypatch.context() as patch:  # as in an uninterruptible sleep
        patch.setattr("pipeline.references.processes.os.kill", lambda pid, which: None)
        patch.setattr("pipeline.references.processes.os.killpg", lambda pid, which: None)
        assert not end_processes(tmp_path, process, grace_s=0.1)
    assert process.poll() is None
    assert end_processes(tmp_path, process, grace_s=0.1)
    assert process.poll() is not None


def ranks_in(directory: Path) -> set[int]:
    """Processes of the ranks that began."""
    return {int(path.name.removeprefix("rank-")) for path in directory.glob("rank-*")}


def wait_for(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
