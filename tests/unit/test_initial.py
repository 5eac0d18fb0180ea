"""The first frames of a campaign: rattled as before, and strained where asked."""

import numpy as np
import pytest
from ase.build import bulk, molecule
from fabricated import settings

from pipeline.frames import Frame
from pipeline.initial import initial_frame, rattled, start_volumes
from pipeline.seeds import generator

CRYSTAL = Frame.from_atoms(bulk("Cu", cubic=True).repeat(2), system="a")
MOLECULE = Frame.from_atoms(molecule("H2O"), system="a")


def test_without_strain_the_deviates_are_all_there_is() -> None:
    moved = rattled(CRYSTAL, std_A=0.05, rng=generator(3))
    expected = generator(3).normal(scale=0.05, size=(32, 3))
    np.testing.assert_array_equal(
        moved.positions - CRYSTAL.positions, (CRYSTAL.positions + expected) - CRYSTAL.positions
    )
    np.testing.assert_array_equal(moved.cell, CRYSTAL.cell)


def test_a_strain_is_symmetric_in_its_limits_and_carries_the_atoms_along() -> None:
    found = []
    for seed in range(200):
        strained = rattled(CRYSTAL, std_A=1e-12, strain=0.04, rng=generator(seed))
        deformation = np.linalg.solve(CRYSTAL.cell, strained.cell)
        np.testing.assert_allclose(strained.positions, CRYSTAL.positions @ deformation, atol=1e-10)
        np.testing.assert_allclose(deformation, deformation.T, atol=1e-14)
        found.append((deformation - np.eye(3))[np.tril_indices(3)])
    components = np.array(found)
    assert np.abs(components).max() <= 0.04
    # uniform: variance s² / 3, six components that know nothing of each other
    np.testing.assert_allclose(components.std(axis=0), 0.04 / np.sqrt(3.0), rtol=0.15)
    assert np.abs(np.corrcoef(components.T) - np.eye(6)).max() < 0.25


def test_what_has_no_cell_is_not_strained() -> None:
    plain, strained = (rattled(MOLECULE, std_A=0.05, strain=strain, rng=generator(1)) for strain in (0.0, 0.04))
    np.testing.assert_array_equal(plain.positions, strained.positions)
    np.testing.assert_array_equal(plain.cell, strained.cell)


@pytest.mark.parametrize(("frame", "told"), [(CRYSTAL, True), (MOLECULE, False)])
def test_the_origin_of_a_first_label_tells_its_strain(frame: Frame, told: bool) -> None:
    chosen = settings(labels__initial_strain=0.03)
    start, origin = initial_frame([frame], 0, chosen)
    assert start is frame
    assert origin == {"start": 0}
    _, origin = initial_frame([frame], 5, chosen)
    assert origin == {"start": 0, "rattle_A": 0.05, **({"strain": 0.03} if told else {})}


def test_volumes_are_those_of_the_periodic_starts_of_each_system() -> None:
    copper, molecular = bulk("Cu", cubic=True, a=3.6), molecule("H2O")
    larger = copper.copy()
    larger.set_cell(1.1 * copper.cell.array, scale_atoms=True)
    pairs = ((copper, "metal"), (larger, "metal"), (bulk("Al", a=4.0), "other"), (molecular, "gas"))
    found = start_volumes([Frame.from_atoms(atoms, system=name) for atoms, name in pairs])
    assert found == {
        "metal": (pytest.approx(3.6**3), pytest.approx(3.6**3 * 1.331)),
        "other": (pytest.approx(16.0), pytest.approx(16.0)),
    }
