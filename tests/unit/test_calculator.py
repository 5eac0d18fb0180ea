"""The ASE calculator between its steps; what it says is held against ``Model.evaluate`` and finite differences elsewhere."""

import numpy as np
import pytest
import torch
from ase import units
from ase.filters import FrechetCellFilter
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE
from engine import crystal, model

from pipeline.errors import ModelError
from pipeline.frames import Frame
from pipeline.moving import MovingBatch
from pipeline.potentials.model import Model


@pytest.fixture
def rebuilt(monkeypatch):
    """Atoms of every search for neighbours."""
    found = []

    def counted(self, anchored):
        found.append(len(anchored.numbers))
        return search(self, anchored)

    search = MovingBatch._found
    monkeypatch.setattr(MovingBatch, "_found", counted)
    return found


def with_calculator(subject: Model):
    atoms = crystal().to_atoms()
    atoms.calc = subject.calculator()
    return atoms


def test_small_strains_of_the_cell_reuse_the_neighbour_rows_and_say_what_fresh_rows_say(rebuilt):
    subject = model()
    atoms = with_calculator(subject)
    cell = atoms.cell.array.copy()
    for strain in (0.0, 1e-3, -1e-3, 5e-3, -2e-2):
        atoms.set_cell(cell @ (np.eye(3) + strain * np.array([[1, 0.5, 0], [0, -1, 0], [0, 0, 1]])), scale_atoms=True)
        expected = subject.evaluate([Frame.from_atoms(atoms, system="test")], stress=True)
        np.testing.assert_allclose(atoms.get_stress(), expected.stress[0], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(atoms.get_forces(), expected.forces, rtol=1e-9, atol=1e-11)
    assert len(rebuilt) == 1
    assert atoms.calc._moving.rebuilds == 0


def test_a_cell_that_is_squeezed_gets_the_neighbours_that_come_within_reach():
    subject = model()
    atoms = with_calculator(subject)
    for _ in range(6):
        atoms.set_cell(atoms.cell.array * 0.95, scale_atoms=True)
        expected = subject.evaluate([Frame.from_atoms(atoms, system="test")])
        assert atoms.get_potential_energy() == pytest.approx(expected.energies[0], rel=1e-12)
    assert 0 < atoms.calc._moving.rebuilds < 6


def test_a_relaxation_of_atoms_and_cell_goes_downhill():
    atoms = with_calculator(model())
    start = atoms.get_potential_energy()
    FIRE(FrechetCellFilter(atoms), logfile=None, maxstep=0.02).run(fmax=1e-6, steps=15)
    assert atoms.get_potential_energy() < start


def test_dynamics_with_the_calculator_conserve_energy():
    atoms = with_calculator(model())
    atoms.set_velocities(np.random.default_rng(0).normal(scale=0.01, size=atoms.positions.shape))
    start, kinetic = atoms.get_total_energy(), atoms.get_kinetic_energy()
    VelocityVerlet(atoms, 0.1 * units.fs).run(40)
    assert abs(atoms.get_total_energy() - start) < 0.01 * kinetic


def test_an_element_the_model_does_not_know_is_refused_before_anything_is_computed():
    subject = model()
    atoms = with_calculator(subject)
    atoms.numbers[0] = 54
    with pytest.raises(ModelError, match="54"):
        atoms.get_potential_energy()
    with pytest.raises(ModelError, match="54"):
        subject.evaluate([Frame.from_atoms(atoms, system="test")])
    with pytest.raises(ModelError, match="54"):
        subject.structure_features([Frame.from_atoms(atoms, system="test")])


def test_of_no_structures_there_are_no_numbers():
    subject = model()
    nothing = subject.evaluate([], stress=True)
    shapes = [nothing.energies.shape, nothing.forces.shape, nothing.stress.shape, nothing.system.shape]
    assert shapes == [(0,), (0, 3), (0, 6), (0,)]
    assert nothing.total_uncertainty.shape == nothing.atomic_uncertainty.shape == (0,)
    assert subject.evaluate([], uncertainty=False).stress is None
    one = subject.structure_features([crystal()])
    assert subject.structure_features([]).shape == (0, one.shape[1])
    assert subject.structure_features([]).dtype == one.dtype
    assert subject.kernel_features([]).shape == (0, subject.kernel_features([crystal()]).shape[1])


@pytest.mark.parametrize("uncertainty", [False, True])
def test_an_evaluation_keeps_no_graph(uncertainty, monkeypatch):
    kept = []
    differentiate = torch.autograd.grad

    def watched(*args, **kwargs):
        kept.append(bool(kwargs.get("retain_graph")) or bool(kwargs.get("create_graph")))
        return differentiate(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", watched)
    model().evaluate([crystal()], stress=True, uncertainty=uncertainty)
    assert kept == [False]


def test_a_refused_structure_is_refused_again_and_not_answered_for_by_the_one_before():
    subject = model()
    atoms = with_calculator(subject)
    atoms.get_potential_energy()
    known = atoms.numbers.copy()
    atoms.numbers[:] = 54
    for _ in range(2):
        with pytest.raises(ModelError, match="54"):
            atoms.get_potential_energy()
    atoms.numbers[:] = known
    expected = subject.evaluate([Frame.from_atoms(atoms, system="test")])
    assert atoms.get_potential_energy() == pytest.approx(expected.energies[0], rel=1e-12)


def test_a_cell_that_was_set_in_a_call_that_failed_counts_in_the_next_one(monkeypatch):
    subject = model()
    atoms = with_calculator(subject)
    atoms.get_potential_energy()
    atoms.set_cell(atoms.cell.array * 1.01, scale_atoms=True)
    with monkeypatch.context() as broken:
        broken.setattr(MovingBatch, "follow", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            atoms.get_potential_energy()
    expected = subject.evaluate([Frame.from_atoms(atoms, system="test")])
    assert atoms.get_potential_energy() == pytest.approx(expected.energies[0], rel=1e-12)
