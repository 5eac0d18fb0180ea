"""Restart files of the nearest structure: found where they help, never an error where they are missing or damaged."""

from dataclasses import replace
from pathlib import Path

import fabricated
import numpy as np
import pytest

from pipeline.guesses import KEPT, Guesses, distance_A


def kept(root: Path, number: int, *, system: str = "a", time: float | None = None, guesses: Guesses | None = None):
    """Take over made-up restart files of the frame of a number."""
    scratch = root / "scratch" / f"farwalk-{number}"
    files = scratch / "restart"
    files.mkdir(parents=True)
    (files / "x.wfn").write_text(str(number))
    frame = fabricated.frame(system, number)
    known = guesses or Guesses(root / "guesses")
    known.keep(frame, files, scratch, float(number if time is None else time))
    return frame, known


def moved(frame, by_A: float):
    return replace(frame, positions=frame.positions + by_A)


def test_the_nearest_of_the_same_system_is_found_also_by_the_next_driver(tmp_path):
    frames = [kept(tmp_path, number)[0] for number in range(5)]
    kept(tmp_path, 9, system="b")
    for guesses in (Guesses(tmp_path / "guesses"), Guesses(tmp_path / "guesses")):
        for number, frame in enumerate(frames):
            found = Path(guesses.nearest(moved(frame, 0.01)))
            assert (found / "x.wfn").read_text() == str(number)
        assert guesses.nearest(fabricated.frame("c", 0)) == ""


def test_distances_are_of_the_nearest_images_and_only_between_comparable_structures():
    frame = fabricated.frame("a", 1)
    assert distance_A(frame, moved(frame, 0.1)) == pytest.approx(0.1 * np.sqrt(3))
    across = replace(frame, positions=frame.positions + frame.cell[0] + 0.1)
    assert distance_A(frame, across) == pytest.approx(0.1 * np.sqrt(3))
    assert distance_A(frame, replace(frame, numbers=frame.numbers[::-1] + 1)) is None
    assert distance_A(frame, replace(frame, pbc=np.zeros(3, bool))) is None
    assert distance_A(frame, replace(frame, cell=1.2 * frame.cell)) is None
    assert distance_A(frame, replace(frame, cell=1.01 * frame.cell)) == pytest.approx(0.0)
    molecule = replace(frame, pbc=np.zeros(3, bool), cell=np.zeros((3, 3)))
    assert distance_A(molecule, moved(molecule, 0.1)) == pytest.approx(0.1 * np.sqrt(3))


def test_the_newest_of_each_system_stay(tmp_path):
    guesses = Guesses(tmp_path / "guesses")
    for number in range(KEPT + 6):
        kept(tmp_path, number, guesses=guesses)
    kept(tmp_path, 1000, system="b", guesses=guesses)
    left = [path for path in (tmp_path / "guesses").iterdir() if path.is_dir()]
    assert len(left) == KEPT + 1
    assert {int((path / "x.wfn").read_text()) for path in left} == {*range(6, KEPT + 6), 1000}
    assert len(list((tmp_path / "guesses").glob("*.json"))) == KEPT + 1


def test_what_is_missing_damaged_or_unfinished_is_left_out(tmp_path):
    frames = [kept(tmp_path, number)[0] for number in range(3)]
    root = tmp_path / "guesses"
    (root / f"{frames[0].identity}.json").write_text('{"time": 1')
    (root / frames[1].identity / "x.wfn").unlink()
    (root / frames[1].identity).rmdir()
    (root / "unnamed").mkdir()
    guesses = Guesses(root)
    assert not (root / "unnamed").exists()
    for frame in frames:
        assert Path(guesses.nearest(frame)).name == frames[2].identity


def test_only_files_inside_of_the_scratch_of_the_task_are_moved(tmp_path):
    (tmp_path / "precious").mkdir()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    guesses = Guesses(tmp_path / "guesses")
    for place in (tmp_path / "precious", scratch / ".." / "precious", scratch, scratch / "nothing"):
        guesses.keep(fabricated.frame(), place, scratch, 1.0)
    assert (tmp_path / "precious").is_dir()
    assert guesses.nearest(fabricated.frame()) == ""
