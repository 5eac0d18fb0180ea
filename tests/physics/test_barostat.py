"""Statistical laws of walkers at constant pressure. Fixed seeds: a failure is a change, not bad luck."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.lj import LennardJones as AseLennardJones
from lennard_jones import (
    CUTOFF_A,
    EPSILON_EV,
    ONSET_A,
    SIGMA_A,
    IdealGas,
    LennardJones,
    Replicas,
    argon,
    deviation_and_error,
    mean_and_error,
)
from metropolis import Metropolis, switched_pairs
from scipy import optimize, stats

from pipeline.batching import make_batch
from pipeline.frames import Frame
from pipeline.potentials.base import differentiate
from pipeline.units import BOLTZMANN_EV_PER_K, GIGAPASCAL

STANDARD_ERRORS = 3.0
MEGAPASCAL = 1e-3 * GIGAPASCAL
KINDS = {"isotropic": 1, "anisotropic": 3, "flexible": 6}
"""Degrees of freedom of the cell."""
PRESSURES_MPa = (-20.0, 0.0, 40.0)
pair_energies = partial(switched_pairs, epsilon=EPSILON_EV, sigma=SIGMA_A, onset=ONSET_A, cutoff=CUTOFF_A)


def within(found, expected, error):
    """Whether all values are as expected within the error that was estimated for them."""
    return (np.abs(np.asarray(found) - expected) < STANDARD_ERRORS * np.asarray(error)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_an_ideal_gas_has_the_gamma_distribution_of_volumes(kind):
    """P(V) ∝ V^N exp(−PV/k_B T): shape N + 1, scale k_B T / P."""
    atoms, replicas, temperature_K, pressure_MPa = 4, 400, 300.0, 50.0
    thermal = BOLTZMANN_EV_PER_K * temperature_K
    scale = thermal / (pressure_MPa * MEGAPASCAL)
    edge = ((atoms + 1) * scale) ** (1 / 3)
    gas = Atoms(f"Ar{atoms}", np.random.default_rng(0).random((atoms, 3)) * edge, cell=np.eye(3) * edge, pbc=True)
    walkers = Replicas(
        IdealGas(),
        gas,
        pressures_MPa=[pressure_MPa] * replicas,
        temperature_K=temperature_K,
        kind=kind,
        timestep_fs=20.0,
        time_fs=200.0,
        friction_per_ps=2.0,
        cell_friction_per_ps=2.0,
        seed=1,
    )
    walkers.run(150, 150)
    found = walkers.run(600, 50)
    expected = stats.gamma(atoms + 1, scale=scale)
    mean, error = mean_and_error(found.volumes)
    assert within(mean, expected.mean(), error)
    spread, error = deviation_and_error(found.volumes)
    assert within(spread, expected.std(), error)
    # every other sample: 2 ps are ten relaxation times, neighbours are independent
    assert stats.kstest(found.volumes[::2].ravel(), expected.cdf).pvalue > 0.01
    for energy, freedom in ((found.kinetic, 3 * atoms), (found.cell_kinetic, KINDS[kind])):
        mean, error = mean_and_error(energy)
        assert within(mean, 0.5 * freedom * thermal, error)


def test_lennard_jones_is_that_of_ase():
    atoms = argon(lattice_A=5.4)
    atoms.rattle(0.15, seed=1)
    atoms.calc = AseLennardJones(sigma=SIGMA_A, epsilon=EPSILON_EV, rc=CUTOFF_A, ro=ONSET_A, smooth=True)
    found = differentiate(LennardJones(), make_batch([Frame.from_atoms(atoms, system="argon")], CUTOFF_A), virial=True)
    energy = atoms.get_potential_energy()
    assert found.energies.item() == pytest.approx(energy, rel=1e-12)
    np.testing.assert_allclose(found.forces.numpy(), atoms.get_forces(), atol=1e-12)
    stress = -found.virials[0].numpy() / atoms.get_volume()
    np.testing.assert_allclose(stress, atoms.get_stress(voigt=False), atol=1e-13)
    chain = Metropolis(atoms.get_scaled_positions(), atoms.get_volume(), [0.0], 40.0, pair_energies, 0)
    assert chain.energies(chain.volume)[0] == pytest.approx(energy, rel=1e-12)


@pytest.fixture(scope="module")
def crystals():
    """Crystals at three pressures in one batch: (samples, pressure of each replica)."""
    pressures = np.repeat(PRESSURES_MPa, 24)
    walkers = Replicas(LennardJones(), argon(), pressures_MPa=pressures, temperature_K=40.0, timestep_fs=15.0, seed=1)
    walkers.run(150, 150)
    found = walkers.run(500, 5)
    assert np.abs(walkers.missed()).max() < 1e-12
    return found, pressures


def test_volumes_of_a_crystal_are_those_of_monte_carlo(crystals):
    """Mean, spread and distribution at three pressures that share a batch."""
    found, pressures = crystals
    chains = np.repeat(PRESSURES_MPa, 32)
    start = argon()
    chain = Metropolis(
        start.get_scaled_positions(), start.get_volume(), chains * MEGAPASCAL, 40.0, pair_energies, seed=2
    )
    sampled = []
    for sweep in range(260):
        chain.sweep()
        if sweep >= 60:
            sampled.append(chain.volume)
    sampled = np.array(sampled)
    for pressure in PRESSURES_MPa:
        here, there = found.volumes[:, pressures == pressure], sampled[:, chains == pressure]
        for law in (mean_and_error, deviation_and_error):
            (ours, our_error), (theirs, their_error) = law(here), law(there)
            assert within(ours, theirs, np.hypot(our_error, their_error))
            assert np.hypot(our_error, their_error) < 0.06 * deviation_and_error(there)[0]
        # both are thinned until neighbouring samples are independent: 40 steps, 20 sweeps
        assert stats.ks_2samp(here[::8].ravel(), there[::20].ravel()).pvalue > 0.01


def test_inner_pressure_is_the_one_asked_for_and_tension_makes_a_crystal_larger(crystals):
    found, pressures = crystals
    means = []
    for pressure in PRESSURES_MPa:
        inner = found.pressures[:, pressures == pressure].trace(axis1=2, axis2=3) / 3.0 / MEGAPASCAL
        mean, error = mean_and_error(inner)
        assert within(mean, pressure, error)
        assert error < 1.0
        means.append(mean_and_error(found.volumes[:, pressures == pressure]))
    for (larger, error), (smaller, other) in itertools.pairwise(means):
        assert larger - smaller > 10 * np.hypot(error, other)


@pytest.mark.parametrize("kind", ["anisotropic", "flexible"])
def test_the_mean_stress_of_a_free_cell_is_the_one_asked_for_and_its_shape_fluctuates(kind):
    pressures = np.repeat([-10.0, 30.0], 20)
    walkers = Replicas(
        LennardJones(), argon(), pressures_MPa=pressures, temperature_K=40.0, kind=kind, timestep_fs=15.0, seed=4
    )
    walkers.run(150, 150)
    found = walkers.run(400, 5)
    assert np.abs(walkers.missed()).max() < 1e-12
    moving = [(i, j) for i in range(3) for j in range(i, 3) if kind == "flexible" or i == j]
    for pressure in (-10.0, 30.0):
        mean, error = mean_and_error(found.pressures[:, pressures == pressure] / MEGAPASCAL)
        for i, j in moving:
            assert within(mean[i, j], pressure if i == j else 0.0, error[i, j])
            assert error[i, j] < 1.5
    lengths = np.linalg.norm(found.cells, axis=-1)
    cosines = np.einsum("srik,srjk->srij", found.cells, found.cells) / (lengths[..., None] * lengths[..., None, :])
    assert (lengths[..., 0] - lengths[..., 1]).std() > 0.05
    angles = np.degrees(np.arccos(cosines[..., 0, 1]))
    if kind == "flexible":
        assert 0.5 < angles.std() < 5.0
        assert angles.mean() == pytest.approx(90.0, abs=STANDARD_ERRORS * mean_and_error(angles)[1])
    else:
        assert np.abs(angles - 90.0).max() < 1e-9


def closed(kind, timestep_fs, steps, every):
    """Crystals without thermostats, from 40 K and away from equilibrium: their total energy, (S, R)."""
    walkers = Replicas(
        LennardJones(),
        argon(),
        pressures_MPa=[60.0, 0.0],
        temperature_K=40.0,
        kind=kind,
        timestep_fs=timestep_fs,
        time_fs=200.0,
        friction_per_ps=0.0,
        cell_friction_per_ps=0.0,
        seed=3,
    )
    return walkers, walkers.run(steps, every)


@pytest.mark.parametrize("kind", KINDS)
def test_the_conserved_energy_has_an_error_of_second_order_in_the_time_step(kind):
    spreads = []
    for timestep_fs in (8.0, 4.0, 2.0):
        walkers, found = closed(kind, timestep_fs, steps=round(480 / timestep_fs), every=1)
        assert found.volumes.std(axis=0).min() > 5.0  # the cell takes part
        spreads.append(found.energies.std(axis=0).max())
        assert np.abs(walkers.missed()).max() < 1e-12
    assert spreads[0] < 5e-3
    for coarse, fine in itertools.pairwise(spreads):
        assert coarse / fine == pytest.approx(4.0, rel=0.15)


def test_the_conserved_energy_does_not_drift():
    """Less than 2e-6 eV per atom and ps at 5 fs, of a kinetic energy of 5e-3 eV per atom."""
    walkers, found = closed("flexible", 5.0, steps=1000, every=1)
    times = 5e-3 * np.arange(1000)
    drift = np.polyfit(times, found.energies / walkers.atoms, 1)[0]
    assert np.abs(drift).max() < 2e-6


def test_the_volume_of_a_solid_oscillates_with_the_period_of_its_bulk_modulus():
    """2π τ_b √((N + 1) k_B T / (3 B V)), B V = V² d²E/dV², at rest but for the cell."""
    temperature_K, time_fs, step_A3 = 1e-3, 20_000.0, 2.0

    def energy(volume):
        frame = Frame.from_atoms(argon(lattice_A=(volume / 8) ** (1 / 3)), system="argon")
        return LennardJones()(make_batch([frame], CUTOFF_A)).energies.item()

    rest = optimize.minimize_scalar(energy, bounds=(1100.0, 1400.0), method="bounded").x
    curvature = (energy(rest + step_A3) - 2 * energy(rest) + energy(rest - step_A3)) / step_A3**2
    mass = (32 + 1) * BOLTZMANN_EV_PER_K * temperature_K
    expected = 2 * np.pi * time_fs * np.sqrt(mass / (3 * rest**2 * curvature))
    walkers = Replicas(
        LennardJones(),
        argon(lattice_A=(1.01 * rest / 8) ** (1 / 3)),
        pressures_MPa=[0.0],
        temperature_K=temperature_K,
        timestep_fs=0.5,
        time_fs=time_fs,
        friction_per_ps=0.0,
        cell_friction_per_ps=0.0,
    )
    found = walkers.run(600, 1).volumes[:, 0] > rest
    rises = np.flatnonzero(found[1:] & ~found[:-1])
    assert len(rises) > 5
    assert 0.5 * np.diff(rises).mean() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_without_thermostats_steps_go_back_the_way_they_came(kind):
    walkers, _ = closed(kind, 8.0, steps=1, every=1)
    before = [x.clone() for x in (walkers.positions, walkers.velocities, walkers.cells, walkers.rate)]
    walkers.run(40, 40)
    assert (walkers.cells - before[2]).abs().max() > 0.01
    walkers.velocities, walkers.rate = -walkers.velocities, -walkers.rate
    walkers.run(40, 40)
    after = (walkers.positions, -walkers.velocities, walkers.cells, -walkers.rate)
    for now, then in zip(after, before, strict=True):
        torch.testing.assert_close(now, then, rtol=0.0, atol=1e-10)
