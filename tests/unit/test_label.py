"""The label task: results that survive, failures that explain themselves."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from pipeline.errors import StoreError
from pipeline.frames import Frame
from pipeline.label import run_label
from pipeline.label_directory import FAILURE, RESULT
from pipeline.records import LabelTask, Limits, Status
from pipeline.settings.labels import ASEReference, EMTReference


def copper(std_A: float = 0.05) -> Frame:
    atoms = bulk("Cu", cubic=True)
    atoms.positions += np.random.default_rng(3).normal(scale=std_A, size=(4, 3))
    return Frame.from_atoms(atoms, system="cu")


def task_in(directory: Path) -> LabelTask:
    return LabelTask(
        task="label-1",
        round=0,
        item=0,
        frame=copper(),
        reference=EMTReference(),
        scratch=str(directory / "scratch" / "label-1"),
        threads=1,
    )


def test_a_label_is_done_and_kept(tmp_path: Path) -> None:
    task = task_in(tmp_path)
    first = run_label(task)
    assert first.status is Status.DONE
    assert first.forces is not None
    assert first.stress is not None
    again = run_label(task)
    assert again.timing == first.timing  # nothing was computed
    assert again.energy == first.energy
    np.testing.assert_array_equal(again.forces, first.forces)
    np.testing.assert_array_equal(again.stress, first.stress)
    assert again.reference == first.reference


@pytest.mark.parametrize("damage", ["torn", "changed", "empty", "binary"])
def test_a_damaged_result_is_computed_again(tmp_path: Path, damage: str) -> None:
    task = task_in(tmp_path)
    first = run_label(task)
    path = Path(task.scratch) / RESULT
    text = path.read_text()
    match damage:
        case "torn":
            path.write_text(text[: len(text) // 2])
        case "changed":
            stored = json.loads(text)
            stored["payload"]["energy"] += 1.0
            path.write_text(json.dumps(stored))
        case "empty":
            path.write_text("")
        case "binary":
            path.write_bytes(b"\xff\x00\xfe")
    again = run_label(task)
    assert again.energy == first.energy
    assert again.timing != first.timing
    assert run_label(task).timing == again.timing  # and kept once more


def test_a_result_of_another_structure_or_reference_is_not_taken(tmp_path: Path) -> None:
    task = task_in(tmp_path)
    first = run_label(task)
    other = run_label(replace(task, frame=copper(0.06)))
    assert other.energy != first.energy
    lj = run_label(replace(task, reference=ASEReference(calculator="lj", arguments={"sigma": 2.0})))
    assert lj.status is Status.DONE
    assert lj.reference != first.reference


def test_a_reference_that_raises_is_a_failure_with_its_traceback(tmp_path: Path) -> None:
    task = replace(task_in(tmp_path), frame=Frame.from_atoms(bulk("Si"), system="si"))
    result = run_label(task)
    assert result.status is Status.FAILED
    assert "Si" in result.reason
    assert result.energy is None
    assert "Traceback" in (Path(task.scratch) / FAILURE).read_text()


def test_a_missing_calculator_is_a_failure_that_names_the_key(tmp_path: Path) -> None:
    result = run_label(replace(task_in(tmp_path), reference=ASEReference(calculator="nosuch.module.Code")))
    assert result.status is Status.FAILED
    assert "labels.reference.calculator" in result.reason


def test_a_large_force_is_refused(tmp_path: Path) -> None:
    result = run_label(replace(task_in(tmp_path), limits=Limits(max_force_eV_per_A=1e-3)))
    assert result.status is Status.FAILED
    assert "labels.max_force_eV_per_A" in result.reason
    assert not (Path(result.reason) / RESULT).exists()


def test_atoms_on_top_of_each_other_are_a_failure_not_a_crash(tmp_path: Path) -> None:
    frame = copper()
    frame.positions[1] = frame.positions[0]
    result = run_label(replace(task_in(tmp_path), frame=frame))
    assert result.status is Status.FAILED


def full(directory: Path, name: str) -> None:
    """Make writing a file of this name fail as on a full disk."""
    directory.mkdir(parents=True)
    (directory / f".{name}.{os.getpid()}.tmp").symlink_to("/dev/full")


def test_a_finished_label_that_a_full_disk_does_not_take_is_handed_back_with_a_remark(tmp_path: Path) -> None:
    task = task_in(tmp_path)
    expected = run_label(replace(task, scratch=str(tmp_path / "elsewhere")))
    full(Path(task.scratch), RESULT)
    result = run_label(task)
    assert result.status is Status.DONE
    assert result.energy == expected.energy
    np.testing.assert_array_equal(result.forces, expected.forces)
    (remark,) = result.remarks
    assert "No space left on device" in remark.text
    assert str(Path(task.scratch).parent) in remark.text
    assert "Free space" in remark.remedy
    assert not (Path(task.scratch) / RESULT).exists()


class NoRoom(EMT):
    """A calculator whose files do not fit on the disk."""

    def calculate(self, *arguments: Any, **options: Any) -> None:
        try:
            Path("/dev/full").write_text("input", encoding="utf-8")
        except OSError as error:
            raise RuntimeError("the program did not start") from error


def test_a_full_disk_is_no_fault_of_the_structure(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"label-1/try-1: .*No space left on device.*Free space"):
        run_label(replace(task_in(tmp_path), reference=ASEReference(calculator=f"{__name__}.NoRoom")))
    (tmp_path / "scratch" / "label-2").write_text("in the way")
    with pytest.raises(StoreError, match="label-2"):
        run_label(replace(task_in(tmp_path), scratch=str(tmp_path / "scratch" / "label-2")))


def test_a_failure_whose_story_a_full_disk_does_not_take_is_no_fault_of_the_structure(tmp_path: Path) -> None:
    task = replace(task_in(tmp_path), limits=Limits(max_force_eV_per_A=1e-3))
    full(Path(task.scratch), FAILURE)
    with pytest.raises(StoreError, match="No space left on device"):
        run_label(task)
