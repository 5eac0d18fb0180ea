"""The driver as a SLURM job: it hands over, it stops, and nothing is left in the queue, however it ends."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ase.build import bulk
from ase.io import write
from cluster import Cluster, command, wait_until
from typer.testing import CliRunner

from apps.cli.application import application
from apps.slurm.names import job_name, job_prefix
from pipeline.errors import StoreError
from pipeline.event_log import read_events
from pipeline.events import EndReason, Labelled, Stopped
from pipeline.lock import holder_of

HERE = Path(__file__).parent
BUDGET = 12


class Small:
    """A campaign of a few copper atoms with slow labels, as files on the cluster's disk, and the command that runs it."""

    def __init__(self, root: Path, site: dict[str, Any], label_s: float) -> None:
        self.file, self.place, self.log = root / "campaign.yaml", root / "small.campaign", root / "evaluations"
        self.prefix = job_prefix(self.place)
        self.output = self.place / "driver.out"
        reference = {
            "kind": "ase",
            "calculator": "slow_emt.SlowEMT",
            "arguments": {"seconds": label_s, "log": str(self.log)},
        }
        root.mkdir()
        write(root / "cu.extxyz", bulk("Cu", cubic=True))
        init = f"export OMP_NUM_THREADS=1 PYTHONPATH={HERE}${{PYTHONPATH:+:$PYTHONPATH}}"
        settings = {
            "name": "small",
            "seed": 3,
            "systems": [{"name": "cu", "structures": ["cu.extxyz"]}],
            "labels": {"reference": reference, "budget": BUDGET, "initial": 8, "initial_rattle_A": 0.1},
            "potential": {"hidden": [16, 16], "channels": 2, "gaussians": 4, "cutoff_A": 3.5},
            "walkers": {
                "count": 4,
                "batch": 4,
                "segment_steps": 20,
                "store_every": 5,
                "timestep_fs": 2.0,
                "stop": {"isolation_A": 3.5},
            },
            "selection": {"batch": 4},
            "training": {"epochs": 6, "warm_epochs": 4},
            "site": {**site, "worker_init": init},
        }
        self.file.write_text(yaml.safe_dump(settings), encoding="utf-8")

    def farwalk(self, *arguments: str | Path, code: int = 0) -> str:
        """Run the command; what it printed. In this process: a new one takes seconds to begin."""
        result = CliRunner(env={"COLUMNS": "200"}).invoke(application, list(map(str, arguments)))
        assert result.exit_code == code, (result.output, result.exception)
        return result.output

    def start(self) -> subprocess.Popen[bytes]:
        """``farwalk run`` in the background."""
        words = [sys.executable, "-P", "-m", "apps.cli", "run", str(self.file), "--quiet"]
        path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        return subprocess.Popen(words, env={**os.environ, "PYTHONPATH": path}, start_new_session=True)

    def events(self, kind: type) -> list[Any]:
        """Events of one kind so far."""
        try:
            return [event for event in read_events(self.place / "events.jsonl") if isinstance(event, kind)]
        except StoreError:
            return []

    def wait_for_labels(self, count: int) -> None:
        """Until so many labels are recorded."""
        wait_until(lambda: len(self.events(Labelled)) >= count, f"{count} labels", 120)

    def ended(self) -> list[EndReason]:
        """Why each driver ended."""
        return [event.reason for event in self.events(Stopped)]

    def check_labels(self, *, again: int = 0) -> None:
        """All labels are there, each counts once; so many may have been computed a second time."""
        assert sorted(event.number for event in self.events(Labelled)) == list(range(BUDGET))
        evaluations = Counter(self.log.read_text().split())
        assert len(evaluations) == BUDGET
        assert evaluations.total() - BUDGET <= again


@pytest.fixture
def campaign(cluster: Cluster, site: dict[str, Any], request: pytest.FixtureRequest) -> Callable[..., Small]:
    def make(label_s: float = 1.0, **driver: Any) -> Small:
        site["driver"].update(driver)
        small = Small(cluster.shared / request.node.name, site, label_s)
        names = [job_name(small.prefix, role) for role in ("driver", "walk", "label", "select", "train")]
        request.addfinalizer(lambda: [command("scancel", "--me", f"--name={name}") for name in names])
        return small

    return make


def test_a_driver_told_to_stop_hands_over_and_its_successor_finishes(
    campaign: Callable[..., Small], cluster: Cluster
) -> None:
    small = campaign()
    first = small.farwalk("submit", small.file).split("as job ")[1].split(";")[0]
    small.wait_for_labels(2)
    assert "driver runs this campaign" in small.farwalk("submit", small.file, code=2)
    shown = small.farwalk("jobs", small.place)
    assert [line.split()[1:3] for line in shown.splitlines()[1:3]] == [["driver", "running"], ["label", "running"]]
    command("scancel", "--batch", "--signal=TERM", first)
    wait_until(lambda: EndReason.BUDGET in small.ended(), "the campaign's end", 150)
    cluster.wait_until_empty(small.prefix, 30)
    assert small.ended() == [EndReason.INTERRUPTED, EndReason.BUDGET]
    assert "handed over to job" in small.output.read_text()
    assert "done: " in small.output.read_text()
    small.check_labels()


def test_a_driver_hands_over_by_itself_before_its_wall_time(campaign: Callable[..., Small], cluster: Cluster) -> None:
    small = campaign(label_s=9.0, walltime=120, stop_before=60)
    small.farwalk("submit", small.file)
    wait_until(lambda: EndReason.BUDGET in small.ended(), "the campaign's end", 280)
    cluster.wait_until_empty(small.prefix, 30)
    *before, last = small.ended()
    assert last is EndReason.BUDGET
    assert set(before) == {EndReason.INTERRUPTED}  # more than one where the machine is slow
    small.check_labels()


def test_a_requeued_driver_goes_on_and_a_cancelled_one_has_no_successor(
    campaign: Callable[..., Small], cluster: Cluster
) -> None:
    small = campaign(label_s=2.0)
    small.farwalk("submit", small.file)
    small.wait_for_labels(2)
    job = cluster.wait_for_job(job_name(small.prefix, "driver"))
    command("scontrol", "requeue", job.id)
    wait_until(lambda: "SLURM starts it again" in small.output.read_text(), "the end of the first start", 30)
    assert [one.id for one in cluster.squeue(job_name(small.prefix, "driver"))] == [job.id]
    before = len(small.events(Labelled))
    wait_until(lambda: len(small.events(Labelled)) > before, "more labels", 120)
    cluster.scancel(job.id)
    cluster.wait_until_empty(small.prefix, 30)
    assert "nobody goes on" in small.output.read_text()


def test_stop_ends_a_driver_softly_and_for_good(campaign: Callable[..., Small], cluster: Cluster) -> None:
    small = campaign()
    small.farwalk("submit", small.file)
    small.wait_for_labels(2)
    assert "asked the driver to stop (host " in small.farwalk("stop", small.place, "--wait")
    cluster.wait_until_empty(small.prefix, 30)
    assert small.ended() == [EndReason.INTERRUPTED]
    assert "go on with: farwalk submit" in small.output.read_text()
    assert not (small.place / "stop").exists()
    assert "no jobs" in small.farwalk("jobs", small.place)


def test_stop_cancels_a_driver_that_waits_in_the_queue(campaign: Callable[..., Small], cluster: Cluster) -> None:
    small = campaign(scheduler_options=["--begin=now+1hour"])
    small.farwalk("submit", small.file)
    assert "waits in the queue" in small.farwalk("submit", small.file, code=2)
    assert "waits in the queue" in small.farwalk("run", small.file, code=2)
    assert "waiting for the driver's job" in small.farwalk("status", small.place)
    assert "pending" in small.farwalk("jobs", small.place)
    assert "which waited in the queue" in small.farwalk("stop", small.place)
    cluster.wait_until_empty(small.prefix, 10)
    assert "no driver runs" in small.farwalk("stop", small.place)


def test_a_driver_killed_at_once_leaves_an_empty_queue_and_the_next_run_finishes(
    campaign: Callable[..., Small], cluster: Cluster
) -> None:
    small = campaign()
    with small.start() as driver:
        small.wait_for_labels(2)
        os.kill(driver.pid, signal.SIGKILL)
    cluster.wait_until_empty(small.prefix, 15)
    assert holder_of(small.place / "lock") == ""
    assert "done: " in small.farwalk("run", small.file)
    cluster.wait_until_empty(small.prefix, 15)
    small.check_labels(again=2)  # those that the kill cut off between their end and the writing of their result


def test_jobs_without_a_driver_are_told_and_cancelled(campaign: Callable[..., Small], cluster: Cluster) -> None:
    small = campaign(scheduler_options=["--begin=now+1hour"])
    small.farwalk("submit", small.file)
    small.farwalk("stop", small.place)
    command(
        "sbatch", "--time=5", f"--job-name={job_name(small.prefix, 'walk')}", "--output=/dev/null", "--wrap=sleep 99"
    )
    assert "no driver uses them" in small.farwalk("jobs", small.place)
    assert "cancelled 1 job" in small.farwalk("jobs", small.place, "--cancel")
    cluster.wait_until_empty(small.prefix, 15)
