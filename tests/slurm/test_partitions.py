"""Whole campaigns over two partitions: the right tasks in the right jobs, and the data set of a single machine."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from driving import Campaign
from test_kill import processes_with
from test_same_everywhere import dataset

from pipeline.store import Store


def nodes_in(events) -> set[str]:
    """Nodes that tasks ran on; each says its job too."""
    found = {event["timing"]["host"] for event in events}
    assert all(" job " in host for host in found), found
    return {host.partition(":")[0] for host in found}


def nodes_of(partition: str) -> set[str]:
    listed = subprocess.run(
        ["sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%N"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(listed.stdout.split())


def assert_nothing_is_left(cluster, campaign) -> None:
    cluster.wait_until_empty(campaign.prefix)
    assert not processes_with(str(campaign.directory))


@pytest.fixture
def copper(cluster):
    """Makes campaigns; their drivers end with the test."""
    made = []

    def make(name, site) -> Campaign:
        # one batch: each leg goes to any of the workers
        changes = {"walkers": {"batch": 4, "segment_steps": 1500, "enough": 1000}, "labels": {"budget": 24}}
        made.append(Campaign.of_copper(cluster.shared / name, site, changes))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_walkers_hop_over_nodes_and_lose_a_job_and_the_result_is_that_of_one_machine_bit_for_bit(
    cluster, site, copper, figures
):
    here = copper("hop-here", {"kind": "local_htex"})
    here.start()
    site["walk_task_s"] = 0.5
    site["walk"].update(min_blocks=2)
    there = copper("hop-there", site)
    there.start()
    first, *_ = there.wait_for("walked")
    job = first["timing"]["host"].partition(" job ")[2]
    since = time.time()
    cluster.scancel(job)
    notice = there.wait_for_notice(f"job {job}", since=since)
    there.finish(240)
    here.finish(180)

    there.assert_complete()
    assert dataset(there.place) == dataset(here.place)
    walked, labelled, trained = (there.events(kind) for kind in ("walked", "labelled", "trained"))
    assert len(walked) > len(here.events("walked")), "walks were cut into legs"
    legs = [(event["round"], event["leg"]) for event in walked]
    assert len(set(legs)) == len(legs), "no leg counts twice"
    again = [event for event in there.events("noticed") if event["text"].startswith("walk-r")]
    assert len(again) <= 1, "a lost job costs one leg"
    figures.add("walk job cancelled", notice["time"] - since, len(again), notice["text"])

    walk_nodes, label_nodes = nodes_of(site["walk"]["partition"]), nodes_of(site["label"]["partition"])
    if len(walk_nodes) == 2:
        assert nodes_in(walked) == walk_nodes
    assert nodes_in(walked + trained) <= walk_nodes
    assert nodes_in(labelled) <= label_nodes
    assert_nothing_is_left(cluster, there)


@pytest.fixture
def alanine(cluster, site):
    """The template with a smaller budget, on the cluster."""
    directory = cluster.shared / "alanine"
    farwalk(directory.parent, "init", "alanine-dipeptide", str(directory))
    campaign = Campaign(directory, directory / "c")
    plain = yaml.safe_load(campaign.file.read_text())
    plain["labels"].update(budget=48)
    plain["walkers"].update(segment_steps=400)
    plain["training"].update(epochs=60, warm_epochs=15)
    campaign.write(plain, site)
    yield campaign
    campaign.close()


def farwalk(where: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "apps.cli", *arguments],
        cwd=where,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_template_runs_to_its_budget_over_two_partitions(cluster, site, alanine):
    alanine.run(500)
    labelled, walked, trained = (alanine.events(kind) for kind in ("labelled", "walked", "trained"))
    assert sorted(event["number"] for event in labelled) == list(range(48))
    assert len(trained) >= 3, "several rounds"
    assert nodes_in(walked + trained) <= nodes_of(site["walk"]["partition"])
    assert nodes_in(labelled) <= nodes_of(site["label"]["partition"])
    store = Store(alanine.place)
    rows = list(store.labels(store.state()))
    assert len({row.frame.identity for row in rows}) == len(rows) == 48
    assert "48" in farwalk(alanine.directory, "status", str(alanine.place))
    assert_nothing_is_left(cluster, alanine)
