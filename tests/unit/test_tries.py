"""Tries of a label: other ways where one fails, kept durably, on the node's own disk, and never one too many."""

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scripted import ScriptedReference, script

import pipeline.workspace as workspace_module
from pipeline.errors import DiskFullError, NotBegunError, PostponedError
from pipeline.label import RESERVE_S, run_label
from pipeline.label_directory import FAILURE, RESULT, TRIES
from pipeline.node import Node
from pipeline.records import Cause, Limits, Measure, Status
from pipeline.references.processes import end_processes, processes_of
from pipeline.settings.labels import RecoverySettings
from pipeline.settings.launch import LaunchSettings
from pipeline.workspace import FILES, LOCK, PREFIX, keep_files, remove_leftovers, workspace


@pytest.fixture
def scripted(monkeypatch):
    """References that run small programs of ours: see :mod:`scripted`."""
    monkeypatch.setattr("pipeline.label.ready_reference", ScriptedReference.ready)


@pytest.fixture(autouse=True)
def _digest(monkeypatch):
    monkeypatch.setattr("pipeline.label.reference_digest", ScriptedReference.digest)


@pytest.fixture
def node(tmp_path):
    return Node(scratch=tmp_path / "node")


def label(tmp_path: Path, *outcomes: str, node: Node | None = None, **changes):
    task = replace(script(tmp_path / "label-1", *outcomes), **changes)
    result = run_label(task, node or Node())
    if node is not None and node.scratch is not None:
        assert not node.scratch.exists() or list(node.scratch.iterdir()) == []
    return result


def made(tmp_path: Path) -> list[dict]:
    """What the program was told in each try, in their order."""
    path = tmp_path / "label-1" / "told.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.usefixtures("scripted")
def test_a_label_that_succeeds_at_once_has_no_tries(tmp_path, node):
    result = label(tmp_path, "good", node=node)
    assert result.status is Status.DONE
    assert result.cause is None
    assert result.tries == ()
    assert result.measures == ()
    assert result.program == "Scripted 1.0"
    np.testing.assert_array_equal(result.charges, [0.5, -0.5])
    assert 0 < result.core_s == pytest.approx(result.timing.wall_s, abs=0.5)
    assert made(tmp_path)[0]["directory"].startswith(str(node.scratch))


@pytest.mark.usefixtures("scripted")
def test_failed_tries_are_followed_by_different_ones_until_one_succeeds(tmp_path, node):
    result = label(tmp_path, "not_converged", "slow", "crash", "good", node=node, launch=quick())
    assert result.status is Status.DONE
    assert [one.cause for one in result.tries] == [Cause.NOT_CONVERGED, Cause.TIME_LIMIT, Cause.CRASH]
    assert [one.measures for one in result.tries] == [
        (),
        (Measure.MORE_STEPS,),
        (Measure.MORE_STEPS, Measure.MORE_TIME),
    ]
    assert result.measures == (Measure.MORE_STEPS, Measure.MORE_TIME, Measure.FRESH_START)
    assert [one["time_s"] for one in made(tmp_path)] == [1.0, 1.0, 2.0, 2.0]
    assert [one.directory for one in result.tries] == ["try-1", "try-2", "try-3"]
    assert result.core_s >= sum(one.core_s for one in result.tries) > 1.0
    again = run_label(script(tmp_path / "label-1", "nothing is run"))
    assert again == replace(result, forces=again.forces, stress=again.stress, charges=again.charges)


@pytest.mark.usefixtures("scripted")
def test_a_label_that_cannot_be_helped_is_quarantined_with_its_story(tmp_path, node):
    result = label(tmp_path, *["not_converged"] * 9, node=node)
    assert result.status is Status.FAILED
    assert result.cause is Cause.NOT_CONVERGED
    assert len(result.tries) == 5
    assert result.core_s == pytest.approx(sum(one.core_s for one in result.tries))
    directory = tmp_path / "label-1"
    story = (directory / FAILURE).read_text()
    assert "try 5 with more_steps, gentle_mixing, other_solver, smeared_start" in story
    for one in result.tries:
        assert (directory / one.directory / "program.out").read_text()
    assert label(tmp_path, "bad_input", scratch=str(tmp_path / "b")).cause is Cause.BAD_INPUT
    assert len(label(tmp_path, "bad_input", scratch=str(tmp_path / "c")).tries) == 1


@pytest.mark.usefixtures("scripted")
def test_max_tries_is_the_most(tmp_path):
    result = label(tmp_path, *["not_converged"] * 9, recovery=RecoverySettings(max_tries=2))
    assert len(result.tries) == len(made(tmp_path)) == 2


@pytest.mark.usefixtures("scripted")
def test_a_label_that_the_checks_refuse_is_tried_again_too(tmp_path):
    result = label(tmp_path, "huge", "good", limits=Limits(max_force_eV_per_A=10.0))
    assert result.status is Status.DONE
    assert [one.cause for one in result.tries] == [Cause.IMPLAUSIBLE]
    assert result.measures == (Measure.FRESH_START,)


class DriftingReference(ScriptedReference):
    """Forces that push all atoms the same way."""

    def label(self, frame, calculation):
        return replace(super().label(frame, calculation), forces=np.ones((2, 3)))


@pytest.mark.usefixtures("scripted")
def test_a_net_force_that_no_measure_changes_is_computed_once_also_by_the_next_worker(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.label.ready_reference", DriftingReference.ready)
    for _ in range(2):
        result = label(tmp_path, "good", limits=Limits(max_net_force_eV_per_A=0.1))
        assert [one.cause for one in result.tries] == [Cause.IMPLAUSIBLE]
        assert result.cause is Cause.IMPLAUSIBLE
        assert len(made(tmp_path)) == 1


@pytest.mark.usefixtures("scripted")
def test_a_structure_that_no_reference_can_label_is_not_even_tried(tmp_path):
    task = script(tmp_path / "label-1", "good")
    task.frame.positions[1] = task.frame.positions[0] + 0.01
    result = run_label(task)
    assert result.cause is Cause.BAD_GEOMETRY
    assert not (tmp_path / "label-1" / "told.jsonl").exists()
    task.frame.positions[1] = np.nan
    assert run_label(task).cause is Cause.BAD_GEOMETRY


@pytest.mark.usefixtures("scripted")
def test_restart_files_stay_only_where_the_next_try_begins_with_them(tmp_path, node):
    result = label(tmp_path, "not_converged", "not_converged", "good", node=node)
    told = made(tmp_path)
    scratch = tmp_path / "label-1"
    assert [one["previous"] for one in told] == [None, str(scratch / "try-1"), None]
    assert told[1]["restart"] == "density of try 1"
    assert result.status is Status.DONE
    assert not list(scratch.rglob("*.density"))
    assert result.guess == ""


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.usefixtures("scripted")
def test_restart_files_of_a_good_label_are_kept_where_they_are_wanted(tmp_path, node, local):
    result = label(tmp_path, "good", node=node if local else None, keep_guess=True)
    assert Path(result.guess) == tmp_path / "label-1" / "try-1"
    files = {str(path.relative_to(result.guess)) for path in Path(result.guess).rglob("*") if path.is_file()}
    assert files == {"out/x.density"}
    assert run_label(script(tmp_path / "label-1", "nothing is run")).guess == result.guess
    other = label(tmp_path, "good", "crash", "good", scratch=str(tmp_path / "label-1b"), guess=result.guess)
    assert other.status is Status.DONE
    told = [json.loads(line) for line in (tmp_path / "label-1" / "told.jsonl").read_text().splitlines()]
    assert [one["guess"] for one in told] == [None, result.guess, None]


@pytest.mark.usefixtures("scripted")
def test_a_label_of_several_nodes_runs_where_all_nodes_see_its_files(tmp_path, node):
    label(tmp_path, "good", node=node, launch=LaunchSettings(nodes=2, mpi="env RANKS={ranks}"))
    assert made(tmp_path)[0]["directory"].startswith(str(tmp_path / "label-1"))
    assert made(tmp_path)[0]["ranks"] == 2


@pytest.mark.usefixtures("scripted")
def test_a_node_whose_disk_cannot_be_used_is_no_hindrance(tmp_path):
    (tmp_path / "file").write_text("")
    result = label(tmp_path, "good", node=None)
    assert result.remarks == ()
    result = run_label(script(tmp_path / "label-2", "good"), Node(scratch=tmp_path / "file" / "node"))
    assert result.status is Status.DONE
    (remark,) = result.remarks
    assert "cannot be used" in remark.text
    assert "site.scratch" in remark.remedy


def test_large_files_of_a_failed_try_are_left_and_named(tmp_path):
    directory = tmp_path / "here"
    (directory / "out").mkdir(parents=True)
    for name, size in {"a": 10, "big": 5000, "b": 20, "out/x.density": 9000, "out/small": 1}.items():
        (directory / name).write_bytes(b"x" * size)
    left = keep_files(directory, tmp_path / "kept", restart=["out/*.density"], wanted=False, most_bytes=100)
    assert left == ["big"]
    assert sorted(path.name for path in (tmp_path / "kept").rglob("*") if path.is_file()) == ["a", "b", "small"]
    assert keep_files(directory, directory, restart=["out"], wanted=True, most_bytes=100) == ["big"]
    assert sorted(path.name for path in directory.rglob("*") if path.is_file()) == ["a", "b", "small", "x.density"]


def test_what_killed_workers_left_on_a_node_goes_and_the_rest_stays(tmp_path):
    left, orphan = leftover(tmp_path, socket.gethostname())
    other_host, _ = leftover(tmp_path, f"{socket.gethostname()}-2", runs=False)
    (tmp_path / "other").mkdir()
    with workspace(tmp_path / "kept", Node(scratch=tmp_path), shared=False, tell=pytest.fail) as mine:
        assert list(mine.iterdir()) == []
        assert not left.exists()
        # a worker in another container, which has no process of this one's number
        subprocess.run([sys.executable, "-c", REMOVE, str(tmp_path)], check=True, timeout=60)
        assert {path.name for path in tmp_path.iterdir()} == {mine.parent.name, other_host.name, "other"}
        assert mine.is_dir()
    assert not mine.parent.exists()
    assert orphan.wait(5) == -signal.SIGTERM


REMOVE = """
import os, sys
from pathlib import Path
from pipeline.workspace import remove_leftovers
def nobody(pid, signal):
    raise ProcessLookupError
os.kill = nobody
remove_leftovers(Path(sys.argv[1]))
"""


def leftover(scratch: Path, host: str, *, runs: bool = True) -> tuple[Path, subprocess.Popen[bytes] | None]:
    """A directory of a worker that is no more, and a program that still runs in it."""
    directory = scratch / f"{PREFIX}{host}-abcdefgh"
    (directory / FILES).mkdir(parents=True)
    (directory / LOCK).touch()
    (directory / FILES / "file").touch()
    if not runs:
        return directory, None
    mark = f"FARWALK_CALCULATION={directory / FILES}"
    orphan = subprocess.Popen(["env", mark, "sleep", "60"], start_new_session=True)
    while not processes_of(directory / FILES):
        time.sleep(0.02)
    return directory, orphan


def test_a_directory_whose_program_cannot_be_killed_is_left_and_waited_for_once(tmp_path, monkeypatch):
    directory, orphan = leftover(tmp_path, socket.gethostname())
    with monkeypatch.context() as patch:
        # as in an uninterruptible sleep
        patch.setattr("pipeline.references.processes.os.kill", lambda pid, which: None)
        patch.setattr("pipeline.workspace.end_processes", functools.partial(end_processes, grace_s=0.2))
        remove_leftovers(tmp_path)
        patch.setattr("pipeline.workspace.end_processes", pytest.fail)
        remove_leftovers(tmp_path)
    assert (directory / FILES / "file").exists()
    orphan.kill()
    orphan.wait()
    remove_leftovers(tmp_path)
    assert not directory.exists()


@pytest.mark.usefixtures("scripted")
def test_a_job_that_ends_too_soon_costs_no_try_and_another_one_goes_on(tmp_path, monkeypatch):
    least_s = 1.0
    monkeypatch.setattr("pipeline.label.LEAST_S", least_s)
    with pytest.raises(NotBegunError, match=r"site\.label\.walltime"):
        label(tmp_path, "good", node=Node(ends=time.time() + RESERVE_S + least_s - 1))
    assert not (tmp_path / "label-1" / "told.jsonl").exists()
    with pytest.raises(PostponedError) as caught:
        label(tmp_path, "not_converged", "slow", "good", node=Node(ends=time.time() + RESERVE_S + least_s + 2))
    assert not isinstance(caught.value, NotBegunError)
    last = made(tmp_path)[-1]
    assert last["time_s"] < least_s + 2
    assert not (tmp_path / "label-1" / RESULT).exists()
    result = label(tmp_path, "not_converged", "slow", "good")
    assert result.status is Status.DONE
    assert [one.cause for one in result.tries] == [Cause.NOT_CONVERGED]
    assert result.measures == (Measure.MORE_STEPS,)
    assert made(tmp_path)[-1]["previous"] == str(tmp_path / "label-1" / "try-2")
    assert result.core_s > least_s  # also what the first job spent
    assert len(made(tmp_path)) == 3


@pytest.mark.usefixtures("scripted")
def test_a_label_fills_each_of_its_nodes_with_whole_ranks_and_knows_the_node_of_its_worker(tmp_path):
    launch = LaunchSettings(mpi="env ONLY={ranks}", nodes=2, threads=2)
    assert label(tmp_path, "good", launch=launch, threads=3, node=Node(name="nid7")).status is Status.DONE
    told = made(tmp_path)[-1]
    assert (told["ranks"], told["host"]) == (2, "nid7")


@pytest.mark.usefixtures("scripted")
def test_a_full_disk_of_the_program_is_no_fault_of_the_structure(tmp_path, node):
    with pytest.raises(DiskFullError, match=rf"{tmp_path / 'label-1' / 'try-1'}: .*No space left on device"):
        label(tmp_path, "disk_full", node=node)
    assert list(node.scratch.iterdir()) == []


@pytest.mark.usefixtures("scripted")
def test_a_try_that_fills_the_disk_of_its_node_is_made_again_on_the_campaigns(tmp_path, node):
    result = label(tmp_path, "not_converged", "disk_full", "crash", "good", node=node)
    assert result.status is Status.DONE
    assert [one.cause for one in result.tries] == [Cause.NOT_CONVERGED, Cause.CRASH]
    told = made(tmp_path)
    assert told[1]["measures"] == told[2]["measures"] == ["more_steps"]
    assert [one["directory"].startswith(str(node.scratch)) for one in told] == [True, True, False, False]
    (remark,) = result.remarks
    assert f"{socket.gethostname()}: {node.scratch} is full" in remark.text
    assert "site.scratch" in remark.remedy
    assert result.core_s > sum(one.core_s for one in result.tries)


@pytest.mark.usefixtures("scripted")
def test_a_label_whose_files_changed_while_its_program_ran_is_of_no_level_of_theory(tmp_path, node):
    result = label(tmp_path, "change", "good", node=node)
    assert result.status is Status.FAILED
    assert result.cause is Cause.OTHER_LEVEL
    assert len(result.tries) == 1
    for words in ("scripted before, changed now", "Restore them, or begin a new campaign"):
        assert words in result.reason


def test_files_that_vanish_while_they_are_kept_are_none(tmp_path, monkeypatch):
    directory = tmp_path / "here"
    (directory / "out").mkdir(parents=True)
    for name in ("a", "b", "out/x.density", "out/y.density"):
        (directory / name).write_text(name)

    def vanishing(folder):
        yield from [*all_files(folder), folder / "listed", folder / "out" / "listed.density"]
        (directory / "b").unlink(missing_ok=True)

    all_files = workspace_module._files
    monkeypatch.setattr(workspace_module, "_files", vanishing)
    copy = shutil.copyfile
    monkeypatch.setattr(
        "pipeline.workspace.shutil.copyfile",
        lambda one, other: copy(one.with_name("gone") if one.name == "y.density" else one, other),
    )
    assert keep_files(directory, tmp_path / "kept", restart=["out"], wanted=True) == []
    assert sorted(path.name for path in (tmp_path / "kept").rglob("*") if path.is_file()) == ["a", "x.density"]


WORKER = """
import sys
from pathlib import Path
import pipeline.label
from pipeline.node import Node
from scripted import ScriptedReference, script
pipeline.label.ready_reference = ScriptedReference.ready
pipeline.label.reference_digest = ScriptedReference.digest
task = script(Path(sys.argv[1]) / "label-1", "not_converged", "not_converged", "hang", "good")
pipeline.label.run_label(task, Node(scratch=Path(sys.argv[1]) / "node"))
"""


@pytest.mark.usefixtures("scripted")
def test_after_a_killed_worker_the_next_one_goes_on_with_the_same_try(tmp_path, node):
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    )
    told = tmp_path / "label-1" / "told.jsonl"
    while not (told.exists() and told.read_text().count("\n") == 3):
        time.sleep(0.05)
        assert worker.poll() is None
    directory = Path(made(tmp_path)[2]["directory"])
    worker.kill()
    worker.wait()
    deadline = time.monotonic() + 8
    while processes_of(directory):
        assert time.monotonic() < deadline, "the program outlived its worker"
        time.sleep(0.05)
    assert directory.is_dir()
    result = label(tmp_path, "not_converged", "not_converged", "hang", "good", node=node)
    assert not directory.exists()
    assert result.status is Status.DONE
    assert [one.directory for one in result.tries] == ["try-1", "try-2"]
    assert [tuple(one["measures"]) for one in made(tmp_path)] == [
        (),
        ("more_steps",),
        ("more_steps", "gentle_mixing"),
        ("more_steps", "gentle_mixing"),
    ]


@pytest.mark.usefixtures("scripted")
def test_a_quarantined_label_is_not_tried_again_until_something_changed(tmp_path):
    first = label(tmp_path, "bad_input", "good")
    assert label(tmp_path, "bad_input", "good").tries == first.tries
    assert len(made(tmp_path)) == 1
    (tmp_path / "label-1" / TRIES).write_text("torn")
    assert label(tmp_path, "bad_input", "good").status is Status.DONE
    other = label(tmp_path, "bad_input", "good", scratch=str(tmp_path / "label-2"))
    assert other.status is Status.DONE  # the program succeeds by now


def quick() -> LaunchSettings:
    return LaunchSettings().model_copy(update={"time_limit": 1})
