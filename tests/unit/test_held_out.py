"""Held-out sets: reproducible, cached, of the right temperature."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.io import read

from pipeline.analysis.held_out import Sampling, draw, held_out_set
from pipeline.errors import StoreError
from pipeline.frames import Frame
from pipeline.references import Calculation, build_reference
from pipeline.settings.labels import EMTReference, OpenMMReference

TEMPLATE = Path(__file__).parents[2] / "apps" / "templates" / "alanine-dipeptide"
OPENMM = OpenMMReference(topology=str(TEMPLATE / "alanine-dipeptide.pdb"))
PEPTIDE = Frame.from_atoms(read(TEMPLATE / "alanine-dipeptide.extxyz"), system="ala")
COPPER = Frame.from_atoms(bulk("Cu", cubic=True), system="cu")
SHORT = Sampling(frames=5, runs=2, spacing_ps=0.05, equilibration_ps=0.05, seed=3)


@pytest.mark.parametrize(("reference", "start"), [(OPENMM, PEPTIDE), (EMTReference(), COPPER)], ids=["openmm", "emt"])
def test_the_set_follows_the_seed_and_is_labelled_by_the_reference(reference, start, tmp_path: Path) -> None:
    first, again = draw(reference, [start], SHORT), draw(reference, [start], SHORT)
    other = draw(reference, [start], replace(SHORT, seed=4))
    assert len(first) == 5
    assert [label.frame.identity for label in first] == [label.frame.identity for label in again]
    assert not {label.frame.identity for label in first} & {label.frame.identity for label in other}
    found = build_reference(reference).label(first[2].frame, Calculation(directory=tmp_path))
    assert first[2].energy == found.energy
    np.testing.assert_array_equal(first[2].forces, found.forces)


def test_runs_differ_from_each_other() -> None:
    labels = draw(OPENMM, [PEPTIDE], replace(SHORT, frames=2))
    assert np.abs(labels[0].frame.positions - labels[1].frame.positions).max() > 0.05


def test_the_file_is_made_once_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "sets" / "held-out.h5"
    made = held_out_set(EMTReference(), [COPPER], SHORT, path)
    stamp = path.stat().st_mtime_ns
    read_back = held_out_set(EMTReference(), [COPPER], SHORT, path)
    assert path.stat().st_mtime_ns == stamp
    assert [label.energy for label in made] == [label.energy for label in read_back]
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(StoreError):
        held_out_set(EMTReference(), [COPPER], SHORT, path)


def test_a_nearly_harmonic_crystal_has_the_energy_of_its_temperature() -> None:
    sampling = Sampling(
        temperature_K=100.0, frames=80, runs=2, spacing_ps=0.12, equilibration_ps=0.6, timestep_fs=6.0, seed=1
    )
    energies = np.array([label.energy for label in draw(EMTReference(), [COPPER], sampling)])
    ground = build_reference(EMTReference()).label(COPPER, Calculation(directory=Path())).energy
    # equipartition: kT/2 for each of 3 N − 3 vibrations
    assert energies.mean() - ground == pytest.approx(0.5 * 9 * 8.617333e-5 * 100.0, rel=0.2)
