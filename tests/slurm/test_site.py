"""The engine on a real SLURM: where tasks run, what a broken site says, and that nothing is left in the queue."""

import time
from pathlib import Path

import pytest
from ase.build import bulk
from cluster import wait_until
from parsl.app.app import python_app

from apps.steps import open_steps
from apps.worker import pin_device
from pipeline.errors import SiteError
from pipeline.frames import Frame
from pipeline.records import LabelTask, Status
from pipeline.settings.labels import ASEReference
from pipeline.settings.site import SlurmSite

WAIT_S = 150
PREFIX = "farwalk-testsite"


def label(cluster, name: str, seconds: float = 0.0) -> LabelTask:
    """One calculation of four copper atoms."""
    frame = Frame.from_atoms(bulk("Cu", "fcc", a=3.61, cubic=True), system="copper")
    if seconds:
        arguments = {"seconds": seconds, "log": str(cluster.shared / "calculations.log")}
        reference = ASEReference(calculator="slow_emt.SlowEMT", arguments=arguments)
    else:
        reference = ASEReference(calculator="ase.calculators.emt.EMT")
    directory = cluster.shared / PREFIX / f"{name}-{time.time_ns()}"
    return LabelTask(task=name, round=0, item=0, frame=frame, reference=reference, scratch=str(directory), threads=1)


def opened(cluster, site):
    return open_steps(SlurmSite.model_validate(site), cluster.shared / PREFIX / "runinfo", prefix=PREFIX)


def notices_until(steps, happened, timeout_s: float = WAIT_S) -> list[str]:
    """What the engine tells until something happens."""
    told, deadline = [], time.monotonic() + timeout_s
    while not happened(told):
        assert time.monotonic() < deadline, told
        told += [f"{notice.text} {notice.remedy}" for notice in steps.notices()]
        time.sleep(0.1)
    return told


def error_of_a_label(cluster, site) -> SiteError:
    """What a label fails with, and how soon."""
    with opened(cluster, site) as steps:
        error = steps.submit(label(cluster, "doomed")).exception(timeout=WAIT_S)
    assert isinstance(error, SiteError), error
    cluster.wait_until_empty(PREFIX)
    return error


def test_tasks_run_in_the_partitions_of_their_kind_and_nothing_is_left_afterwards(cluster, site):
    site["label"]["max_blocks"] = 1
    with opened(cluster, site) as steps:
        devices = [python_app(pin_device, executors=["walk"])() for _ in range(2)]
        labels = [steps.submit(label(cluster, f"label-{number}")) for number in range(4)]
        names = {job.name: job.partition for job in [cluster.wait_for_job("walk"), cluster.wait_for_job("label")]}
        assert names == {
            f"{PREFIX}-walk": site["walk"]["partition"],
            f"{PREFIX}-label": site["label"]["partition"],
        }
        job = cluster.wait_for_job(f"{PREFIX}-label")
        results = [future.result(timeout=WAIT_S) for future in labels]
        assert all(result.status is Status.DONE for result in results)
        for result in results:  # a result names node and job
            assert result.timing.host.startswith(f"{job.node}:")
            assert result.timing.host.endswith(f"job {job.id}")
        assert all(future.result(timeout=WAIT_S) for future in devices), "each walk worker has a GPU"
        assert steps.notices() == ()
    cluster.wait_until_empty(PREFIX)


def test_a_wrong_partition_fails_within_seconds_with_the_scheduler_s_words_and_the_right_ones(cluster, site):
    right = site["label"]["partition"]
    site["label"]["partition"] = "no-such-partition"
    error = error_of_a_label(cluster, site)
    assert "nvalid partition" in error.message
    assert "partition of site.label" in error.remedy
    assert right in error.remedy


@pytest.mark.parametrize("line", ["module load no-such-environment && exit 1; exit 1", "exit 0"])
def test_a_broken_worker_init_gives_the_job_s_own_output_also_when_its_exit_code_says_nothing(cluster, site, line):
    site["label"]["worker_init"] = f"echo 'no such module: cp2k' >&2\n{line}"
    error = error_of_a_label(cluster, site)
    assert "no such module: cp2k" in error.message
    assert "worker_init" in error.remedy


def test_jobs_over_a_limit_are_told_and_asked_for_again(cluster, site, daemons):
    daemons.limit(site["label"]["partition"], jobs=0)
    with opened(cluster, site) as steps:
        future = steps.submit(label(cluster, "patient"))
        told = notices_until(steps, lambda told: told, timeout_s=30)
        assert "AssocMaxSubmitJobLimit" in told[0]
        assert not future.done()
        daemons.lift_limits()
        assert future.result(timeout=WAIT_S).status is Status.DONE
        assert any("again" in text for text in notices_until(steps, bool))


def test_a_refused_account_ends_the_executor(cluster, site, daemons):
    daemons.limit(site["label"]["partition"], jobs=0, code=2045, words="")
    error = error_of_a_label(cluster, site)
    assert "account" in error.message
    assert "account of site.label" in error.remedy


def test_a_cancelled_job_is_told_and_its_task_is_done_in_a_new_one(cluster, site, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with opened(cluster, site) as steps:
        task = label(cluster, "hard-to-kill", seconds=8.0)
        future = steps.submit(task)
        job = cluster.wait_for_job(f"{PREFIX}-label")
        wait_until(Path(task.scratch).exists, "the calculation begins", WAIT_S)
        cluster.scancel(job.id)
        began = time.monotonic()
        told = notices_until(steps, bool)
        assert time.monotonic() - began < 60
        assert f"label job {job.id}" in told[0]
        assert "was cancelled" in told[0]
        told += notices_until(steps, lambda told: future.done(), timeout_s=WAIT_S)
        assert future.result().status is Status.DONE
        assert any("hard-to-kill" in text and "(1 of 4)" in text for text in told)


def test_jobs_that_wait_in_the_queue_are_cancelled_on_leaving(cluster, site):
    site["label"]["scheduler_options"] = ["--begin=now+1hour"]
    with opened(cluster, site) as steps:
        steps.submit(label(cluster, "later"))
        cluster.wait_for_job(f"{PREFIX}-label", "PENDING")
    cluster.wait_until_empty(PREFIX)
