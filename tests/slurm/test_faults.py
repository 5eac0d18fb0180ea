"""What goes wrong on clusters, done to a campaign that runs: noticed within a minute, told in a line, survived.

After every test the budget is spent, each label was calculated once, and nothing is left in the queue.
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cluster import wait_until
from driving import Campaign
from test_kill import processes_with

EASY = {"walkers": {"batch": 4}, "labels": {"initial": 8, "budget": 16}}
"""Two rounds that take a few seconds when nothing happens."""


@pytest.fixture
def campaign(cluster, request):
    """Makes campaigns; their drivers end with the test."""
    made = []

    def make(site, changes=EASY, place=None) -> Campaign:
        directory = cluster.shared / f"{request.node.name[:30]}-{len(made)}"
        made.append(Campaign.of_copper(directory, site, changes, place))
        return made[-1]

    yield make
    for one in made:
        one.close()


def one_worker_per_job(site, jobs: int = 1):
    """Labels in jobs of three of a node's four cores, so that no two are on one node."""
    site["label"].update(cores_per_node=3, cores_per_worker=3, max_blocks=jobs)
    return site


def assert_survived(cluster, campaign: Campaign) -> None:
    campaign.assert_complete()
    cluster.wait_until_empty(campaign.prefix)
    wait_until(lambda: not processes_with(str(campaign.directory)), "all processes gone", 30)


def both_at_work(campaign: Campaign):
    """Calculations under way in two jobs: digest, node, job, process of each."""

    def there():
        found = [(digest, *where) for digest, where in campaign.at_work().items() if alive(where[2])]
        return found if len({job for _, _, job, _ in found}) == 2 else None

    return wait_until(there, "a calculation in each of two jobs", 90)


def alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@dataclass(frozen=True, slots=True)
class Fault:
    """One that was done to a campaign.

    Attributes:
        name: for the table.
        hit: calculations that it may have cost.
        since: when.
        begun: calculations that had begun by then.
    """

    name: str
    run: Campaign
    hit: tuple[str, ...]
    since: float
    begun: Counter[str]

    @classmethod
    def of(cls, run: Campaign, name: str, hit: Iterable[str]) -> "Fault":
        """One that is done now."""
        return cls(name, run, tuple(hit), time.time(), run.calculations("began"))

    @property
    def tasks_again(self) -> int:
        """How many of these calculations were begun again after it."""
        began = self.run.calculations("began")
        return sum(began[digest] - self.begun[digest] for digest in self.hit)

    def told(self, *words: str) -> dict[str, Any]:
        """The notice of it."""
        return self.run.wait_for_notice(*words, since=self.since)


def lose_a_worker_and_a_job(cluster, run: Campaign) -> list[tuple[Fault, dict[str, Any]]]:
    """A worker dies, and the other job is cancelled."""
    (one, _, _, pid), (other, _, job, _) = both_at_work(run)
    killed, cancelled = (
        Fault.of(run, "worker killed (kill -9)", [one]),
        Fault.of(run, "job cancelled (scancel)", [other]),
    )
    os.kill(pid, signal.SIGKILL)
    cluster.scancel(job)
    return [(killed, killed.told("died")), (cancelled, cancelled.told(f"job {job}"))]


def lose_two_nodes(daemons, run: Campaign) -> list[tuple[Fault, dict[str, Any]]]:
    """One loses its power, an administrator takes the other one out; both come back."""
    (one, node, job, _), (other, second, other_job, _) = both_at_work(run)
    dead, down = Fault.of(run, "node dead (no slurmd)", [one]), Fault.of(run, "node down (scontrol)", [other])
    daemons.kill_slurmd(node)
    daemons.set_down(second)
    told = [(down, down.told(f"job {other_job}")), (dead, dead.told(f"job {job}"))]
    daemons.start_slurmd(node)
    daemons.resume(second)
    return told


def lose_the_scheduler(daemons, run: Campaign, figures) -> None:
    """It starts anew, and then stays away for half a minute."""
    anew = Fault.of(run, "slurmctld restarted", [digest for digest, *_ in both_at_work(run)])
    daemons.kill_slurmctld()
    daemons.start_slurmctld()
    time.sleep(6)
    quiet = not any(event["time"] > anew.since for event in run.events("noticed"))
    figures.add(anew.name, None, anew.tasks_again, "nothing to tell" if quiet else "told")
    away = Fault.of(run, "slurmctld away for 30 s", [digest for digest, *_ in both_at_work(run)])
    daemons.kill_slurmctld()
    notice = away.told("does not answer")
    time.sleep(max(0.0, away.since + 30 - time.time()))
    daemons.start_slurmctld()
    away.told("answers again")
    figures.add(away.name, notice["time"] - away.since, away.tasks_again, notice["text"])


def lose_the_driver(cluster, run: Campaign, figures) -> None:
    """It dies without a word, and is started again; labels take no time from then on."""
    labelled = len(run.events("labelled"))
    driver = Fault.of(run, "driver killed (kill -9)", [digest for digest, *_ in both_at_work(run)])
    run.kill()
    cluster.wait_until_empty(run.prefix, timeout_s=20)
    gone = time.time() - driver.since
    run.slow_down(0)
    run.start()
    run.finish(240)
    assert len(run.events("labelled")) >= labelled
    figures.add(driver.name, gone, driver.tasks_again, "no job is left; the next run goes on")


def reach_the_wall_time(cluster, run: Campaign) -> tuple[Fault, float]:
    """Labels take longer than their job, which ends at the instant that is returned."""
    run.slow_down(600)
    run.start()
    cluster.wait_for_job(f"{run.prefix}-label")
    ends = time.time() + 60
    return Fault.of(run, "wall time reached", wait_until(run.at_work, "a calculation", 60)), ends


def test_campaigns_outlive_their_workers_jobs_nodes_the_scheduler_and_the_driver(
    cluster, daemons, site, campaign, figures
):
    # two at a time, which must not touch each other: the labels of this one are too long for their jobs
    short = {"partition": site["walk"]["partition"], "walltime": "00:01:00", "cores_per_node": 1}
    long = campaign({**site, "label": {**site["label"], **short}})
    fault, ends = reach_the_wall_time(cluster, long)

    run = campaign(one_worker_per_job(site, jobs=2), {**EASY, "labels": {"initial": 44, "budget": 52}})
    run.slow_down(8)
    run.start()
    told = lose_a_worker_and_a_job(cluster, run) + lose_two_nodes(daemons, run)

    notice = fault.told("label job", "wall time")
    assert "site.label.walltime" in notice["remedy"]
    long.slow_down(0)
    # counted from the limit itself, which SLURM looks at every half a minute only
    told.append((Fault(fault.name, long, fault.hit, ends, fault.begun), notice))

    lose_the_scheduler(daemons, run, figures)
    lose_the_driver(cluster, run, figures)
    long.finish(240)
    assert_survived(cluster, long)
    for fault, notice in told:
        figures.add(fault.name, notice["time"] - fault.since, fault.tasks_again, notice["text"])
    assert_survived(cluster, run)


def test_full_disks_are_waited_for_or_do_no_harm(cluster, daemons, site, campaign, figures):
    if not daemons.own_disks:
        pytest.skip("small disks need root")
    run = campaign(site, place=daemons.disk / "campaign")
    run.slow_down(1)
    nodes, target, filling = ("gpu1", "gpu2"), daemons.scratch / "filling", daemons.disk / "filling"
    try:
        # those of the walkers' nodes, before a model is copied there
        for node in nodes:
            daemons.on_node(node, "sh", "-c", f"rm -rf {daemons.scratch}/*; cat /dev/zero > {target} 2>/dev/null; true")
        run.start()
        run.wait_for("labelled", 2)

        # the campaign's own
        since = time.time()
        with suppress(OSError), filling.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        wait_until(lambda: "waiting for space" in run.said, "the full disk told", 60)
        noticed = time.time() - since
        time.sleep(5)  # what is under way ends meanwhile, and must wait for the disk
        run.assert_driver_runs()
        filling.unlink()
        run.wait_for_notice("takes files again", since=since)
        run.slow_down(0)
        notice = run.wait_for_notice("no copy of the model", since=since, timeout_s=120)
        run.finish(180)
    finally:
        filling.unlink(missing_ok=True)
        for node in nodes:
            daemons.on_node(node, "rm", "-f", str(target))
    assert "Free space" in run.said
    began = min(event["timing"]["started"] for event in run.events("walked"))
    again = run.calculations("ended").total() - EASY["labels"]["budget"]
    figures.add("campaign disk full", noticed, again, one_line(run.said, "waiting for space"))
    figures.add("scratch of a node full", max(0.0, notice["time"] - began), 0, notice["text"])
    assert_survived(cluster, run)


def test_refused_jobs_are_asked_for_again_or_end_the_run_with_the_scheduler_s_words(
    cluster, daemons, site, campaign, figures
):
    run = campaign(site)
    # an account that the cluster does not know: nothing can be done without a person
    daemons.limit(site["label"]["partition"], 0, 2045, "")
    run.start()
    since = time.time()
    run.finish(90, code=2)
    assert "Invalid account" in run.said
    assert "account of site.label" in run.said, run.said
    figures.add("submission refused: bad account", time.time() - since, 0, one_line(run.said, "Invalid account"))

    # a limit on jobs: it passes by itself
    daemons.limit(site["label"]["partition"], 0)
    run.start()
    since = time.time()
    notice = run.wait_for_notice("AssocMaxSubmitJobLimit", since=since)
    daemons.lift_limits()
    lifted = time.time()
    run.finish(180)
    first = min(event["time"] for event in run.events("labelled"))
    assert first - lifted < 60, "it went on by itself"
    figures.add("submission refused: limit", notice["time"] - since, 0, notice["text"])
    assert_survived(cluster, run)


def one_line(text: str, words: str) -> str:
    """The first line of a text with these words."""
    return next(line.strip() for line in text.splitlines() if words in line)
