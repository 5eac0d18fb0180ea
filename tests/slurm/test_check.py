"""``farwalk check`` on a real SLURM: a right site passes, and what is wrong with a site is said in words."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ase.build import bulk
from ase.io import write
from cluster import Cluster

ROOT = Path(__file__).parents[2]
CAMPAIGN = {
    "name": "tiny",
    "seed": 3,
    "systems": [{"name": "cu", "structures": ["cu.extxyz"]}],
    "labels": {"reference": {"kind": "emt"}, "budget": 32, "initial": 8, "initial_rattle_A": 0.1},
    "potential": {"cutoff_A": 3.5, "channels": 2, "gaussians": 4, "hidden": [16, 16]},
    "walkers": {"count": 4, "batch": 2, "segment_steps": 40, "store_every": 10, "timestep_fs": 2.0},
    "selection": {"batch": 8},
    "training": {"epochs": 6, "warm_epochs": 4},
}


@pytest.fixture
def place(cluster: Cluster, tmp_path: Path) -> Path:
    """A directory that all nodes see, with start structures."""
    path = cluster.shared / tmp_path.name
    path.mkdir()
    write(path / "cu.extxyz", bulk("Cu", cubic=True))
    return path


def command(place: Path, site: dict[str, Any], *options: str) -> list[str]:
    """The command line of a check of this site."""
    (place / "campaign.yaml").write_text(yaml.safe_dump({**CAMPAIGN, "site": site}))
    return [sys.executable, "-m", "apps.cli", "check", str(place / "campaign.yaml"), *options]


def check(place: Path, site: dict[str, Any], *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(place, site, *options), capture_output=True, text=True, timeout=170, check=False)


def assert_refused(
    done: subprocess.CompletedProcess[str],
    place: Path,
    cluster: Cluster,
    *texts: str,
    executor: str = "walk",
    kept: tuple[str, ...] = (),
) -> None:
    """One message with the remedy; nothing is left of the check but what the message names."""
    assert done.returncode == 2, done.stderr
    for text in texts:
        assert text in done.stderr
    assert f"site, {executor}: " in done.stderr
    assert done.stderr.count("error: ") == 1 + done.stderr.count(": error: ")
    assert "Traceback" not in done.stdout + done.stderr
    assert_nothing_left(place, cluster, *kept)


def assert_nothing_left(place: Path, cluster: Cluster, *kept: str) -> None:
    cluster.wait_until_empty("farwalk-", timeout_s=10)
    assert sorted(path.name for path in place.iterdir()) == ["campaign.yaml", "cu.extxyz", *kept]


def test_a_right_site_passes_with_the_speeds_and_an_estimate(
    place: Path, cluster: Cluster, site: dict[str, Any]
) -> None:
    done = check(place, site)
    assert done.returncode == 0, done.stderr
    for text in ("walker steps/s per task", "labels/h in", "per structure and epoch", "CPU-hours", "GPU-hours"):
        assert text in done.stdout
    assert "in the queue" in done.stdout
    assert "all right; next: farwalk submit" in done.stdout
    assert_nothing_left(place, cluster)


def test_a_wrong_partition_is_told_with_those_there_are(place: Path, cluster: Cluster, site: dict[str, Any]) -> None:
    site["walk"]["partition"] = "nowhere"
    done = check(place, site)
    assert_refused(
        done, place, cluster, "invalid partition", "partition of site.walk: the partitions here are cpu, gpu"
    )


def test_a_missing_python_is_told_in_the_words_of_the_job(place: Path, cluster: Cluster, site: dict[str, Any]) -> None:
    site["label"]["worker_init"] = "source /no/such/environment/bin/activate\nexit 1"
    done = check(place, site)
    text = "/no/such/environment/bin/activate: No such file"
    kept = "tiny.campaign.check"
    assert_refused(done, place, cluster, text, "site.label.worker_init", executor="label", kept=(kept,))
    scripts = [path for path in (place / kept).rglob("*.sh") if str(path) in done.stderr]
    assert text.split(":")[0] in scripts[0].read_text()


def test_two_gpus_for_one_worker_are_found_also_by_machines(
    place: Path, cluster: Cluster, site: dict[str, Any]
) -> None:
    site["walk"]["scheduler_options"] = ["--gres=gpu:2"]
    done = check(place, site, "--json")
    assert_refused(done, place, cluster, "CUDA_VISIBLE_DEVICES=0,1", "exactly one", "gpus_per_node")
    said = json.loads(done.stdout)
    assert not said["ready"]
    assert "CUDA_VISIBLE_DEVICES=0,1" in said["error"]["text"]
    walk, label = said["executors"]["walk"], said["executors"]["label"]
    assert walk["found"]["job"] != label["found"]["job"]
    assert label["found"]["device"] == ""
    assert walk["queued_s"] <= walk["answered_s"]


def test_all_that_is_wrong_is_told_at_once(place: Path, cluster: Cluster, site: dict[str, Any]) -> None:
    site["walk"]["scheduler_options"] = ["--gres=gpu:2"]
    site["scratch"] = "/proc/nowhere"
    done = check(place, site)
    assert done.returncode == 2, done.stderr
    assert "the site has 2 problems:" in done.stderr
    assert "walk, label: scratch /proc/nowhere cannot be written" in done.stderr
    assert "Set site.scratch" in done.stderr
    assert "exactly one" in done.stderr
    assert_nothing_left(place, cluster)


def test_another_version_on_the_workers_is_found(place: Path, cluster: Cluster, site: dict[str, Any]) -> None:
    other = cluster.shared / f"{place.name}-other"
    for package in ("pipeline", "apps", "site_configs"):
        shutil.copytree(ROOT / package, other / package, ignore=shutil.ignore_patterns("__pycache__"))
    metadata = other / "farwalk-0.0.7.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: farwalk\nVersion: 0.0.7\n")
    site["walk"]["worker_init"] = f"export PYTHONPATH={other}"
    done = check(place, site)
    assert_refused(done, place, cluster, "farwalk 0.0.7 from", str(other), "site.worker_init")


def test_a_stopped_check_leaves_nothing_behind(place: Path, cluster: Cluster, site: dict[str, Any]) -> None:
    site["label"]["worker_init"] = "sleep 60"
    with subprocess.Popen(command(place, site), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
        cluster.wait_for_job("label")
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert said.endswith("stopped.\n")
    assert_nothing_left(place, cluster)
