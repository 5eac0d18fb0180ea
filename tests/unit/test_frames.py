"""Frames in and out of other libraries."""

import numpy as np
import pytest
from ase.build import bulk, molecule
from pymatgen.core import Molecule, Structure

from pipeline.frames import Frame


@pytest.mark.parametrize(
    ("atoms", "kind"), [(bulk("NaCl", "rocksalt", a=5.64), Structure), (molecule("H2O"), Molecule)]
)
def test_a_frame_survives_the_way_through_pymatgen(atoms, kind):
    frame = Frame.from_atoms(atoms, system="a")
    other = frame.to_pymatgen()
    assert isinstance(other, kind)
    back = Frame.from_pymatgen(other, system="a")
    assert np.array_equal(back.numbers, frame.numbers)
    assert np.array_equal(back.pbc, frame.pbc)
    assert np.allclose(back.positions, frame.positions, atol=1e-10)
    assert np.allclose(back.cell, frame.cell, atol=1e-10)
