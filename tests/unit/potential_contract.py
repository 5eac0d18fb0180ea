"""What every potential must obey. A backend's test module runs :data:`LAWS` against its own ``make_potential``.

The potential is given in float64 and knows hydrogen, carbon, oxygen and copper.
"""

from collections.abc import Callable

import numpy as np
import torch
from ase import Atoms
from engine import crystal, ethanol, slab, water, zoo

from pipeline.batching import make_batch
from pipeline.frames import Frame
from pipeline.potentials.base import Derivatives, Potential, differentiate

STEP_A = 2e-4
"""Displacement of finite differences, Å."""
DERIVATIVE_TOLERANCE = 1e-5
"""Largest relative error of a derivative against fourth-order central differences."""
ROUNDING = 1e-10
"""Largest difference of two float64 results that are equal in exact arithmetic, relative to the larger of 1 and the value."""


def rebuilt(frame: Frame, positions: np.ndarray, cell: np.ndarray | None = None) -> Frame:
    """The same atoms elsewhere."""
    cell = frame.cell if cell is None else cell
    return Frame(numbers=frame.numbers, positions=positions, cell=cell, pbc=frame.pbc, system=frame.system)


def predict(potential: Potential, frames: list[Frame], **wanted: bool) -> Derivatives:
    """Energies and forces of structures with fresh neighbours."""
    return differentiate(potential, make_batch(frames, potential.cutoff_A), **wanted)


def energy(potential: Potential, frame: Frame) -> float:
    """Energy of one structure, eV."""
    return potential(make_batch([frame], potential.cutoff_A)).energies.item()


def slope(function: Callable[[float], float], step: float) -> float:
    """Derivative at zero by the fourth-order central difference."""
    near, far = function(step) - function(-step), function(2 * step) - function(-2 * step)
    return (8 * near - far) / (12 * step)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest deviation over the largest expected value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to rounding."""
    torch.testing.assert_close(found.detach(), expected.detach(), rtol=ROUNDING, atol=ROUNDING)


def forces_are_minus_the_gradient(potential: Potential) -> None:
    for frame in (ethanol(), slab(), crystal()):
        found = predict(potential, [frame]).forces.numpy()
        chosen = [(a, c) for a in range(min(3, len(frame))) for c in range(3)]

        def at(shift: float, atom: int, axis: int, frame: Frame = frame) -> float:
            positions = frame.positions.copy()
            positions[atom, axis] += shift
            return energy(potential, rebuilt(frame, positions))

        expected = [-slope(lambda h, a=a, c=c: at(h, a, c), STEP_A) for a, c in chosen]
        assert relative_error(np.array([found[a, c] for a, c in chosen]), np.array(expected)) < DERIVATIVE_TOLERANCE


def virial_is_minus_the_strain_derivative(potential: Potential) -> None:
    frame = crystal()
    virials = predict(potential, [frame], virial=True).virials
    assert virials is not None

    def at(h: float, i: int, j: int) -> float:
        grow = np.eye(3)
        grow[i, j] += 0.5 * h
        grow[j, i] += 0.5 * h
        return energy(potential, rebuilt(frame, frame.positions @ grow, frame.cell @ grow))

    pairs = [(i, j) for i in range(3) for j in range(i, 3)]
    expected = np.array([-slope(lambda h, i=i, j=j: at(h, i, j), STEP_A) for i, j in pairs])
    found = np.array([float(virials[0, i, j]) for i, j in pairs])
    assert relative_error(found, expected) < DERIVATIVE_TOLERANCE


def forces_and_torque_of_a_molecule_vanish(potential: Potential) -> None:
    frame = ethanol()
    forces = predict(potential, [frame]).forces.numpy()
    assert np.abs(forces.sum(axis=0)).max() < 1e-9
    assert np.abs(np.cross(frame.positions, forces).sum(axis=0)).max() < 1e-9


def translation_changes_nothing(potential: Potential) -> None:
    for frame in zoo():
        here = predict(potential, [frame], features=True)
        there = predict(potential, [rebuilt(frame, frame.positions + np.array([11.3, -7.1, 29.9]))], features=True)
        equal(there.energies, here.energies)
        equal(there.forces, here.forces)
        equal(there.prediction.features, here.prediction.features)


def rotation_turns_forces_and_keeps_energies_and_features(potential: Potential) -> None:
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))  # also a mirror, for half of the seeds
    for frame in zoo():
        here = predict(potential, [frame], features=True)
        there = predict(potential, [rebuilt(frame, frame.positions @ turn, frame.cell @ turn)], features=True)
        equal(there.energies, here.energies)
        equal(there.forces, here.forces @ torch.from_numpy(turn))
        equal(there.prediction.features, here.prediction.features)


def permutation_permutes(potential: Potential) -> None:
    for frame in zoo():
        order = np.random.default_rng(2).permutation(len(frame))
        shuffled = Frame(
            numbers=frame.numbers[order],
            positions=frame.positions[order],
            cell=frame.cell,
            pbc=frame.pbc,
            system=frame.system,
        )
        here = predict(potential, [frame], features=True)
        there = predict(potential, [shuffled], features=True)
        equal(there.energies, here.energies)
        equal(there.forces, here.forces[order])
        equal(there.prediction.features, here.prediction.features[order])


def wrapping_into_the_cell_changes_nothing(potential: Potential) -> None:
    for frame in (slab(), crystal()):
        shifts = np.random.default_rng(3).integers(-2, 3, (len(frame), 3)) * frame.pbc
        there = predict(potential, [rebuilt(frame, frame.positions + shifts @ frame.cell)])
        here = predict(potential, [frame])
        equal(there.energies, here.energies)
        equal(there.forces, here.forces)


def a_supercell_has_the_energy_of_its_cells(potential: Potential) -> None:
    small = crystal()
    large = Frame.from_atoms(small.to_atoms().repeat((1, 2, 3)), system="test")
    equal(predict(potential, [large]).energies, 6 * predict(potential, [small]).energies)


def a_batch_equals_one_by_one(potential: Potential) -> None:
    frames = [frame for seed in range(4) for frame in zoo(seed)]
    assert len(frames) == 16
    together = predict(potential, frames, virial=True, features=True)
    alone = [predict(potential, [frame], virial=True, features=True) for frame in frames]
    equal(together.energies, torch.cat([one.energies for one in alone]))
    equal(together.forces, torch.cat([one.forces for one in alone]))
    equal(together.virials, torch.cat([one.virials for one in alone]))
    equal(together.prediction.features, torch.cat([one.prediction.features for one in alone]))
    equal(together.prediction.atomic_energies, torch.cat([one.prediction.atomic_energies for one in alone]))


def features_have_the_announced_length_and_keep_the_graph(potential: Potential) -> None:
    batch = make_batch([ethanol(), slab()], potential.cutoff_A)
    positions = batch.positions.requires_grad_(True)
    phi = potential(batch.with_positions(positions), features=True).features
    assert phi is not None
    assert phi.shape == (len(batch.numbers), potential.feature_dimension)
    (gradient,) = torch.autograd.grad(phi.square().sum(), positions)
    assert torch.isfinite(gradient).all()
    assert float(gradient.abs().max()) > 0
    assert potential(batch).features is None


def energy_and_force_are_continuous_where_a_neighbour_crosses_the_cutoff(potential: Potential) -> None:
    def pair(distance: float) -> Derivatives:
        atoms = Atoms("OCu", positions=[[0, 0, 0], [distance, 0, 0]])
        return predict(potential, [Frame.from_atoms(atoms, system="test")])

    forces = {}
    for h in (1e-2, 1e-5):
        inside, outside = pair(potential.cutoff_A - h), pair(potential.cutoff_A + h)
        forces[h] = float(inside.forces.abs().max())
        assert float(outside.forces.abs().max()) == 0.0
        assert abs(float((inside.energies - outside.energies).detach())) < forces[h] * h + ROUNDING
    # the force goes to zero with the distance to the cutoff
    assert forces[1e-2] > 0.0
    assert forces[1e-5] < 1e-2 * forces[1e-2]


def an_isolated_atom_has_an_energy_and_no_force(potential: Potential) -> None:
    lone = Frame.from_atoms(Atoms("O", positions=[[3.0, 2.0, 1.0]]), system="test")
    far = Frame.from_atoms(Atoms("OH", positions=[[0, 0, 0], [0, 0, 50.0]]), system="test")
    result = predict(potential, [lone, far, water()], features=True)
    assert torch.isfinite(result.energies).all()
    assert float(result.forces[:3].abs().max()) == 0.0
    assert torch.isfinite(result.prediction.features).all()
    equal(result.prediction.atomic_energies[0], result.prediction.atomic_energies[1])


LAWS: tuple[Callable[[Potential], None], ...] = (
    forces_are_minus_the_gradient,
    virial_is_minus_the_strain_derivative,
    forces_and_torque_of_a_molecule_vanish,
    translation_changes_nothing,
    rotation_turns_forces_and_keeps_energies_and_features,
    permutation_permutes,
    wrapping_into_the_cell_changes_nothing,
    a_supercell_has_the_energy_of_its_cells,
    a_batch_equals_one_by_one,
    features_have_the_announced_length_and_keep_the_graph,
    energy_and_force_are_continuous_where_a_neighbour_crosses_the_cutoff,
    an_isolated_atom_has_an_energy_and_no_force,
)


def check_potential(make_potential: Callable[[], Potential]) -> None:
    """All laws, one after the other."""
    for law in LAWS:
        law(make_potential())
