"""What goes wrong on clusters, done to a campaign that runs: noticed within a minute, told in a line, survived.

After every test the budget is spent, each label was calculated once, and nothing is left in the queue.
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Set
from contextlib import suppress
from dataclasses import dataclass, field
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
    """Makes the test's campaign; its driver ends with the test, and what it left is looked for."""
    made = []

    def make(site, changes=EASY, place=None) -> Campaign:
        made.append(Campaign.of_copper(cluster.shared / request.node.name[:40], site, changes, place))
        return made[0]

    yield make
    for one in made:
        one.close()


def one_worker_per_job(site, jobs: int = 1):
    """Labels in jobs of three of a node's four cores, so that no two are on one node."""
    site["label"].update(cores_per_node=3, cores_per_worker=3, max_blocks=jobs)
    return site


def assert_survived(cluster, campaign: Campaign, unkept: Set[str] = frozenset()) -> None:
    campaign.assert_complete(unkept)
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
        since: when.
        begun: calculations that had begun by then.
        hit: calculations that it may have cost.
    """

    name: str
    run: Campaign
    hit: tuple[str, ...]
    since: float = field(default_factory=time.time)
    begun: Counter[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "begun", self.run.calculations("began"))

    @property
    def tasks_again(self) -> int:
        """How many of these calculations were begun again after it."""
        began = self.run.calculations("began")
        return sum(began[digest] - self.begun[digest] for digest in self.hit)

    def told(self, *words: str) -> dict[str, Any]:
        """The notice of it."""
        return self.run.wait_for_notice(*words, since=self.since)


def test_labels_outlive_their_workers_jobs_nodes_the_scheduler_and_the_driver(
    cluster, daemons, site, campaign, figures
):
    run = campaign(one_worker_per_job(site, jobs=2), {**EASY, "labels": {"initial": 44, "budget": 52}})
    run.slow_down(8)
    run.start()
    told = []

    # a worker dies, and the other job is cancelled
    (one, _, _, pid), (other, _, job, _) = both_at_work(run)
    killed, cancelled = Fault("worker killed (kill -9)", run, (one,)), Fault("job cancelled (scancel)", run, (other,))
    os.kill(pid, signal.SIGKILL)
    cluster.scancel(job)
    told += [(killed, killed.told("died")), (cancelled, cancelled.told(f"job {job}"))]

    # one node loses its power, an administrator takes the other one out
    (one, node, job, _), (other, second, other_job, _) = both_at_work(run)
    dead, down = Fault("node dead (no slurmd)", run, (one,)), Fault("node down (scontrol)", run, (other,))
    daemons.kill_slurmd(node)
    daemons.set_down(second)
    told += [(down, down.told(f"job {other_job}")), (dead, dead.told(f"job {job}"))]
    daemons.start_slurmd(node)
    daemons.resume(second)

    # the scheduler starts anew, and then stays away for half a minute
    working = tuple(digest for digest, *_ in both_at_work(run))
    anew = Fault("slurmctld restarted", run, working)
    daemons.kill_slurmctld()
    daemons.start_slurmctld()
    time.sleep(6)
    quiet = not any(event["time"] > anew.since for event in run.events("noticed"))
    figures.add(anew.name, None, anew.tasks_again, "nothing to tell" if quiet else "told")
    away = Fault("slurmctld away for 30 s", run, tuple(digest for digest, *_ in both_at_work(run)))
    daemons.kill_slurmctld()
    notice = away.told("does not answer")
    time.sleep(max(0.0, away.since + 30 - time.time()))
    daemons.start_slurmctld()
    away.told("answers again")
    figures.add(away.name, notice["time"] - away.since, away.tasks_again, notice["text"])

    # the driver dies
    labelled = len(run.events("labelled"))
    driver = Fault("driver killed (kill -9)", run, tuple(digest for digest, *_ in both_at_work(run)))
    run.kill()
    cluster.wait_until_empty(run.prefix, timeout_s=20)
    gone = time.time() - driver.since
    run.slow_down(0)
    run.start()
    run.finish(240)
    assert len(run.events("labelled")) >= labelled
    figures.add(driver.name, gone, driver.tasks_again, "no job is left; the next run goes on")
    for fault, notice in told:
        figures.add(fault.name, notice["time"] - fault.since, fault.tasks_again, notice["text"])
    assert_survived(cluster, run)


def walked_legs(campaign: Campaign) -> list[tuple[int, int, int]]:
    return [(event["round"], event["item"], event["leg"]) for event in campaign.events("walked")]


def test_a_label_longer_than_its_job_is_told_and_a_walk_whose_job_is_lost_costs_one_leg(
    cluster, site, campaign, figures
):
    site["label"].update(walltime="00:01:00", cores_per_node=1)
    site["walk"].update(max_blocks=1)
    site["walk_task_s"] = 2.0
    # walkers that nothing stops: a segment takes some legs
    changes = {"walkers": {"batch": 4, "segment_steps": 4000, "stop": {"uncertainty_eV_per_A": 1e6}, "enough": 10**6}}
    run = campaign(site, {**EASY, **changes})
    run.slow_down(600)
    run.start()
    job = cluster.wait_for_job(f"{run.prefix}-label")
    ends = time.time() + 60
    fault = Fault("wall time reached", run, tuple(wait_until(run.at_work, "a calculation", 60)))
    notice = fault.told(f"job {job.id}", "wall time")
    assert "site.label.walltime" in notice["remedy"]
    run.slow_down(0)

    leg = run.wait_for("walked", timeout_s=120)[-1]
    job_id = leg["timing"]["host"].partition(" job ")[2]
    lost = Fault("walk job cancelled", run, ())
    cluster.scancel(job_id)
    told = lost.told(f"job {job_id}")
    run.finish(240)
    legs = [(event["round"], event["item"], event["leg"]) for event in run.events("walked")]
    assert len(legs) == len(set(legs)) > 2, "no leg counts twice"
    again = [event for event in run.events("noticed") if "walk-" in event["text"] and "tried again" in event["text"]]
    assert len(again) <= 1
    # SLURM itself looks at limits every half a minute only
    figures.add(fault.name, notice["time"] - ends, fault.tasks_again, notice["text"])
    figures.add(lost.name, told["time"] - lost.since, len(again), told["text"])
    assert_survived(cluster, run)


def test_full_disks_stop_the_campaign_or_do_no_harm(cluster, daemons, site, campaign, figures):
    if not daemons.own_disks:
        pytest.skip("small disks need root")
    run = campaign(site, place=daemons.disk / "campaign")
    run.slow_down(1)
    run.start()
    run.wait_for("labelled", 2)

    # the campaign's own disk
    filling, since, ended = daemons.disk / "filling", time.time(), run.calculations("ended")
    try:
        with suppress(OSError), filling.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        run.finish(90, code=2)
        noticed = time.time() - since
        error, remedy = run.said.strip().splitlines()[-2:]
        assert str(run.place) in error, run.said
        assert remedy.startswith("Free "), run.said
    finally:
        filling.unlink()
    unkept = set(run.calculations("ended") - ended)  # no disk could take them
    cluster.wait_until_empty(run.prefix)

    # those of the walkers' nodes
    nodes, target = ("gpu1", "gpu2"), daemons.scratch / "filling"
    try:
        for node in nodes:
            daemons.on_node(node, "sh", "-c", f"rm -rf {daemons.scratch}/*; cat /dev/zero > {target} 2>/dev/null; true")
        run.slow_down(0)
        run.start()
        notice = run.wait_for_notice("No space left", since=since, timeout_s=120)
        run.finish(180)
    finally:
        for node in nodes:
            daemons.on_node(node, "rm", "-f", str(target))
    began = min(event["timing"]["started"] for event in run.events("walked"))
    again = run.calculations("began").total() - EASY["labels"]["budget"]
    figures.add("campaign disk full", noticed, again, f"{error} {remedy}")
    figures.add("scratch of a node full", max(0.0, notice["time"] - began), 0, notice["text"])
    assert_survived(cluster, run, unkept)


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
