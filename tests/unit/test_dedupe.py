"""The same structure in other clothes is the same; a different one is not."""

import numpy as np
import pytest
from ase.build import bulk, molecule
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pipeline.frames import Frame
from pipeline.selection.dedupe import duplicates, fingerprints

TOLERANCE_A = 0.02


def ethanol(seed: int, std_A: float = 0.3) -> Frame:
    atoms = molecule("CH3CH2OH")
    atoms.positions += np.random.default_rng(seed).normal(scale=std_A, size=atoms.positions.shape)
    return Frame.from_atoms(atoms, system="m")


def salt(seed: int, *, cubic: bool = True) -> Frame:
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=cubic) * ((1, 1, 1) if cubic else (2, 2, 1))
    atoms.positions += np.random.default_rng(seed).normal(scale=0.2, size=atoms.positions.shape)
    return Frame.from_atoms(atoms, system="s")


def with_positions(frame: Frame, positions: np.ndarray, cell: np.ndarray | None = None) -> Frame:
    return Frame(
        numbers=frame.numbers,
        positions=positions,
        cell=frame.cell if cell is None else cell,
        pbc=frame.pbc,
        system=frame.system,
    )


def disguised(frame: Frame, seed: int) -> Frame:
    """Rotated, shifted, with equal atoms in another order, and, where periodic, wrapped into other images."""
    rng = np.random.default_rng(seed)
    rotation = Rotation.random(random_state=seed).as_matrix()
    images = rng.integers(-2, 3, size=(len(frame), 3)) * frame.pbc
    positions = (frame.positions + images @ frame.cell) @ rotation.T + rng.normal(size=3) * 5
    order = rng.permutation(len(frame))
    return Frame(
        numbers=frame.numbers[order],
        positions=positions[order],
        cell=frame.cell @ rotation.T,
        pbc=frame.pbc,
        system=frame.system,
    )


@given(seed=st.integers(0, 10_000), kind=st.sampled_from(["molecule", "cubic", "oblique"]))
@settings(max_examples=30, deadline=None)
def test_rotation_translation_permutation_and_wrapping_change_nothing(seed: int, kind: str) -> None:
    frame = ethanol(seed) if kind == "molecule" else salt(seed, cubic=kind == "cubic")
    assert duplicates([disguised(frame, seed)], [frame], tolerance_A=TOLERANCE_A).same.all()


@pytest.mark.parametrize("make", [ethanol, salt])
def test_different_structures_are_kept(make) -> None:
    frames = [make(seed) for seed in range(20)]
    assert not duplicates(frames[:10], frames[10:], tolerance_A=TOLERANCE_A).same.any()


def test_of_equal_candidates_the_first_is_kept() -> None:
    frames = [ethanol(seed) for seed in (1, 2, 1, 3, 2)]
    assert duplicates(frames, [], tolerance_A=TOLERANCE_A).same.tolist() == [False, False, True, False, True]
    near = [frames[0], with_positions(frames[0], frames[0].positions + 1e-3 * np.sin(np.arange(27)).reshape(9, 3))]
    assert duplicates(near, [], tolerance_A=TOLERANCE_A).same.tolist() == [False, True]
    assert duplicates(near, [], tolerance_A=0).same.tolist() == [False, False]
    assert duplicates([frames[0], frames[0]], [], tolerance_A=0).same.tolist() == [False, True]


@pytest.mark.parametrize("tolerance_A", [TOLERANCE_A, 0.0])
def test_what_is_like_a_known_structure_is_told_from_what_is_like_an_earlier_candidate(tolerance_A: float) -> None:
    known, new = ethanol(1), ethanol(2)
    found = duplicates([new, known, new, ethanol(3), known], [known], tolerance_A=tolerance_A)
    assert found.same.tolist() == [False, True, True, False, True]
    assert found.of_known.tolist() == [False, True, False, False, True]


def test_what_is_near_both_a_known_structure_and_an_earlier_candidate_is_like_the_known_one() -> None:
    def moved(shift_A: float) -> Frame:
        positions = ethanol(1).positions.copy()
        positions[0] += shift_A
        return with_positions(ethanol(1), positions)

    step = 0.04  # Å: neighbours in this row are the same, those two apart are not
    found = duplicates([moved(2 * step), moved(step)], [moved(0.0)], tolerance_A=TOLERANCE_A)
    assert found.same.tolist() == [False, True]
    assert found.of_known.tolist() == [False, True]


def test_swapping_unlike_atoms_makes_another_structure() -> None:
    frame = salt(4)
    numbers = frame.numbers.copy()
    first, second = int(np.flatnonzero(numbers == 11)[0]), int(np.flatnonzero(numbers == 17)[0])
    positions = frame.positions.copy()
    positions[[first, second]] = positions[[second, first]]
    assert not duplicates([with_positions(frame, positions)], [frame], tolerance_A=TOLERANCE_A).same.any()


def test_a_strained_cell_is_another_structure_even_with_one_atom() -> None:
    one = Frame.from_atoms(bulk("Cu"), system="cu")
    wider = with_positions(one, one.positions, one.cell * 1.05)
    assert duplicates([one, wider], [], tolerance_A=TOLERANCE_A).same.tolist() == [False, False]


def test_the_fingerprint_distance_is_the_rms_of_sorted_distances() -> None:
    frames = [ethanol(1), ethanol(2)]
    rows = fingerprints(frames)
    expected = []
    for frame in frames:
        parts: dict[tuple[int, int], list[float]] = {}
        for i in range(9):
            for j in range(i):
                pair = tuple(sorted((int(frame.numbers[i]), int(frame.numbers[j]))))
                parts.setdefault(pair, []).append(float(np.linalg.norm(frame.positions[i] - frame.positions[j])))
        expected.append(np.concatenate([np.sort(parts[pair]) for pair in sorted(parts)]))
    rms = np.sqrt(np.mean((expected[0] - expected[1]) ** 2))
    assert np.linalg.norm(rows[0] - rows[1]) == pytest.approx(rms, rel=1e-5)


def test_other_composition_or_periodicity_is_never_the_same() -> None:
    frame = salt(1)
    cluster = Frame(numbers=frame.numbers, positions=frame.positions, cell=frame.cell, pbc=~frame.pbc, system="s")
    other = Frame(numbers=frame.numbers + 1, positions=frame.positions, cell=frame.cell, pbc=frame.pbc, system="s")
    assert not duplicates([cluster, other], [frame], tolerance_A=1.0).same.any()


def test_no_candidates_and_no_known_structures_are_fine() -> None:
    assert duplicates([], [ethanol(1)], tolerance_A=TOLERANCE_A).same.shape == (0,)
    assert duplicates([ethanol(1)], [], tolerance_A=TOLERANCE_A).same.tolist() == [False]
