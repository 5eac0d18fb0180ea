"""What is wrong with a worker's answer, in words."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from apps.cli.report import findings_error, walk_device, walkers_text, workers_table
from apps.preflight import Executor, Finding, executors_of, judge, one_job_each
from apps.probe import whereabouts
from apps.surroundings import TOKEN, Surroundings, look_around
from apps.worker import device_name
from pipeline.settings.site import LocalHTEXSite, LocalThreadsSite, SlurmSite
from pipeline.settings.walkers import WalkerSettings

JOBS: dict[str, Any] = {"walltime": 3600, "cores_per_node": 1, "max_blocks": 7, "min_blocks": 2}
SITE = SlurmSite.model_validate({"kind": "slurm", "walk": {**JOBS, "gpus_per_node": 1}, "label": JOBS})


@pytest.fixture
def found(tmp_path: Path) -> Surroundings:
    """What this process says, as if on a node with a GPU."""
    (tmp_path / TOKEN).write_text("right")
    values = json.loads(json.dumps(look_around(str(tmp_path), "right")))
    alone = dataclasses.replace(Surroundings.from_values(values), device="3", devices=1, cores=4)
    return dataclasses.replace(alone, given={"CUDA_VISIBLE_DEVICES": "3"})


def findings_of(answer: Surroundings, label: str = "walk", **changes: Any) -> list[str]:
    executor = Executor(label=label)
    judge(executor, dataclasses.replace(answer, **changes), SITE)
    assert all(finding.remedy for finding in executor.findings)
    return [finding.text for finding in executor.findings]


def test_a_right_worker_has_nothing_wrong_with_it(found: Surroundings) -> None:
    assert findings_of(found) == []
    assert findings_of(found, "label", given={}, device="", devices=0) == []


def test_another_code_is_found_but_not_the_same_directory_read_later(found: Surroundings) -> None:
    here = whereabouts()
    later, copy = dataclasses.replace(here, digest="0"), dataclasses.replace(here, digest="0", location="/elsewhere")
    assert findings_of(found, place=later) == []
    assert "another code of farwalk" in findings_of(found, place=copy)[0]
    assert "/elsewhere" in findings_of(found, place=copy)[0]


def test_another_python_and_another_version_are_found(found: Surroundings) -> None:
    python = dataclasses.replace(whereabouts(), python="3.9.1", executable="/usr/bin/python3")
    version = dataclasses.replace(whereabouts(), version="0.0.7")
    assert "python 3.9.1 (/usr/bin/python3)" in findings_of(found, place=python)[0]
    assert "farwalk 0.0.7 from" in findings_of(found, place=version)[0]


def test_no_gpu_and_several_gpus_are_found(found: Surroundings) -> None:
    assert "sees no GPU" in findings_of(found, given={}, devices=0)[0]
    assert "sees 4 GPUs" in findings_of(found, devices=4)[0]


def test_a_disk_of_the_nodes_own_under_the_same_path_is_found(found: Surroundings, tmp_path: Path) -> None:
    (tmp_path / TOKEN).write_text("of another node")
    other = Surroundings.from_values(look_around(str(tmp_path), "right"))
    assert "another directory than the driver's" in other.directory_problem
    assert "cannot be used" in findings_of(found, directory_problem=other.directory_problem)[0]
    missing = Surroundings.from_values(look_around(str(tmp_path / "nowhere"), "right"))
    assert "cannot be read" in missing.directory_problem


def test_one_thing_wrong_with_several_executors_is_said_once() -> None:
    same = [Finding(executor=label, text="it is broken", remedy="Mend it.") for label in ("walk", "label")]
    assert str(findings_error(same)) == "site, walk, label: it is broken Mend it."
    other = Finding(executor="train", text="it says:\nfirst\nsecond", remedy="Ask.")
    assert findings_error([*same, other]).message == (
        "the site has 2 problems:\n  walk, label: it is broken\n    Mend it.\n"
        "  train: it says:\n    first\n    second\n    Ask."
    )


def test_a_check_asks_for_one_job_per_executor() -> None:
    small = one_job_each(SITE)
    assert isinstance(small, SlurmSite)
    assert [(a.min_blocks, a.max_blocks) for a in small.allocations.values()] == [(0, 1), (0, 1)]
    assert executors_of(small) == ("walk", "label")
    assert executors_of(LocalHTEXSite()) == ("walk", "label", "select", "train")
    assert executors_of(LocalThreadsSite()) == ()


def test_a_check_tells_what_walkers_compute_on_as_their_worker_said(found: Surroundings) -> None:
    said = dataclasses.replace(found, computes="cuda (NVIDIA H200)")
    executors = [Executor(label="label", found=found), Executor(label="walk", found=said)]
    assert walk_device(executors) == "cuda (NVIDIA H200)"
    assert walk_device([]) == device_name()  # tasks in this process
    console = Console(width=200)
    with console.capture() as text:
        console.print(workers_table(executors))
    assert "cuda (NVIDIA H200)" in text.get()


def test_a_check_tells_pressures_where_the_cell_moves() -> None:
    still = WalkerSettings(count=8, temperatures_K=(300.0, 600.0))
    assert walkers_text(still) == "8 at 300, 600 K"
    moving = WalkerSettings.model_validate(
        {"count": 12, "batch": 6, "pressures_MPa": [0.0, -250.0], "barostat": {"kind": "flexible"}}
    )
    assert walkers_text(moving) == "12 at 300 K and 0, -250 MPa, flexible cell"
