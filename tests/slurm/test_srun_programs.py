"""Programs that srun starts end when their time is over, when the worker is told to, and when it is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import Cluster, command, wait_until

from pipeline.references.processes import processes_of

WORKER = """
import os
import sys
from pathlib import Path
from pipeline.references import Calculation, CalculationFailed
from pipeline.references.program import run_program
from pipeline.settings.launch import LaunchSettings
directory = Path(sys.argv[1])
(directory / "worker").write_text(str(os.getpid()))
launch = LaunchSettings(mpi="srun --mpi=none -n {ranks} -N {nodes} -c {threads} --exact --mem=0 --overlap")
text = "import os, time; open('rank-' + str(os.getpid()), 'w').close(); time.sleep(120)"
calculation = Calculation(directory=directory, launch=launch, ranks=2, time_s=float(sys.argv[2]))
try:
    run_program(sys.executable, ["-c", text], calculation, output="out")
except CalculationFailed as failed:
    (directory / "failed").write_text(failed.cause)
"""


def submit(cluster: Cluster, directory: Path, time_s: float) -> str:
    """A job with one worker, whose program runs in two ranks; the job itself outlives the worker."""
    script = directory / "worker.py"
    script.write_text(WORKER)
    options = ["--parsable", "--partition", cluster.site["label"]["partition"], "--ntasks=1", "--cpus-per-task=2"]
    line = f"{sys.executable} {script} {directory} {time_s}"
    root = Path(__file__).parents[2]
    return command(
        "sbatch", *options, f"--chdir={root}", f"--output={directory}/job", f"--wrap={line}; sleep 100"
    ).strip()


@pytest.fixture
def directory(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = cluster.shared / tmp_path_factory.mktemp("srun").name
    path.mkdir()
    return path


def steps(job: str) -> str:
    shown = subprocess.run(
        ["squeue", "--steps", "--noheader", f"--jobs={job}", "--format=%i"], capture_output=True, text=True, timeout=60
    )
    return "".join(line for line in shown.stdout.splitlines() if not line.strip().endswith((".batch", ".extern")))


def test_a_step_that_takes_too_long_is_ended(cluster, directory):
    job = submit(cluster, directory, 3.0)
    wait_until((directory / "failed").exists, "the time limit", 60)
    assert (directory / "failed").read_text() == "time_limit"
    wait_until(lambda: not processes_of(directory), "no process of the step", 5)
    wait_until(lambda: steps(job) == "", "no step", 15)
    assert [one.state for one in cluster.squeue() if one.id == job] == ["RUNNING"]
    cluster.scancel(job)
    cluster.wait_until_empty()


@pytest.mark.parametrize("which", [signal.SIGKILL, signal.SIGTERM])
def test_a_step_does_not_outlive_its_worker(cluster, directory, which):
    job = submit(cluster, directory, 100.0)
    wait_until(lambda: len(list(directory.glob("rank-*"))) == 2, "two ranks", 60)
    ranks = {int(path.name.removeprefix("rank-")) for path in directory.glob("rank-*")}
    assert ranks <= set(processes_of(directory))
    os.kill(int((directory / "worker").read_text()), which)
    wait_until(lambda: not processes_of(directory), "no process of the step", 15)
    wait_until(lambda: steps(job) == "", "no step", 15)
    assert [one.state for one in cluster.squeue() if one.id == job] == ["RUNNING"]
    cluster.scancel(job)
    cluster.wait_until_empty()
