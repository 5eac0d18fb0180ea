"""Statistical laws of the dynamics. Fixed seeds: a failure is a change, not bad luck."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from pipeline.dynamics.langevin import Langevin, thermal_velocities
from pipeline.dynamics.noise import Noise
from pipeline.dynamics.slots import Nursery, masses_of
from pipeline.dynamics.walkers import WalkerBatch
from pipeline.moving import MovingBatch
from pipeline.potentials.base import differentiate
from pipeline.settings.walkers import BiasSettings, StopSettings, WalkerSettings
from pipeline.units import BOLTZMANN_EV_PER_K, FEMTOSECOND, PICOSECOND

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))  # the small models of the unit tests

from engine import crystal, ethanol, gmnn, model, water

STANDARD_ERRORS = 3.0


TETHER_EV_PER_A2 = 20.0
"""Spring that holds every atom at its place: a random potential has no repulsion, without it atoms fall into each other."""


def energies_at_constant_energy(*, timestep_fs, total_fs, dtype):
    """Total energy, eV, along a velocity Verlet trajectory of tethered ethanol from 300 K."""
    frame = ethanol()
    potential = gmnn(dtype=dtype)
    potential.load_state_dict(gmnn().state_dict())
    masses = masses_of(frame)
    temperatures = torch.full((len(frame),), 300.0, dtype=torch.float64)
    verlet = Langevin.make(timestep=timestep_fs * FEMTOSECOND, friction=0.0, masses=masses, temperatures_K=temperatures)
    moving = MovingBatch([frame], cutoff_A=potential.cutoff_A, skin_A=0.1)
    places = moving.batch.positions.clone()
    positions, velocities = places, thermal_velocities(1, masses, 300.0)
    still = torch.zeros_like(positions)
    forces = differentiate(potential, moving.batch).forces
    totals = []
    for _ in range(round(total_fs / timestep_fs)):
        positions, velocities = verlet.first_half(positions, velocities, forces, still)
        here = differentiate(potential, moving.follow(positions))
        forces = here.forces - TETHER_EV_PER_A2 * (positions - places)
        velocities = verlet.second_half(velocities, forces)
        kinetic = 0.5 * (masses.unsqueeze(1) * velocities.square()).sum()
        tether = 0.5 * TETHER_EV_PER_A2 * (positions - places).square().sum()
        totals.append((here.energies.sum() + kinetic + tether).item())
    assert moving.rebuilds > 0
    return np.array(totals)


def test_energy_error_is_of_second_order_in_the_time_step():
    spreads = [
        np.std(energies_at_constant_energy(timestep_fs=dt, total_fs=24.0, dtype=torch.float64))
        for dt in (0.8, 0.4, 0.2)
    ]
    assert spreads[0] < 0.005
    for coarse, fine in itertools.pairwise(spreads):
        assert coarse / fine == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_energy_does_not_drift_without_friction(dtype):
    totals = energies_at_constant_energy(timestep_fs=0.4, total_fs=100.0, dtype=dtype)
    first, second, third, fourth = (quarter.mean() for quarter in np.array_split(totals, 4))
    per_atom = max(abs(first - fourth), abs(second - third)) / len(ethanol())
    assert per_atom < 2e-5  # eV in 100 fs, of about 0.04 eV kinetic energy per atom


def test_baoab_samples_positions_of_a_harmonic_oscillator_exactly_at_large_time_steps():
    """⟨x²⟩ = k_B T / k whatever the step (Leimkuhler and Matthews 2013); velocity Verlet with noise elsewhere is far off."""
    atoms, temperature_K, spring = 2000, 500.0, 2.0
    masses = torch.full((atoms,), 4.0, dtype=torch.float64)
    timestep = 1.2 * np.sqrt(4.0 / spring)  # ωΔt = 1.2, stable below 2
    step = Langevin.make(
        timestep=timestep,
        friction=0.6 / timestep,
        masses=masses,
        temperatures_K=torch.full((atoms,), temperature_K, dtype=torch.float64),
    )
    noise = noise_of([17], atoms)
    positions = torch.zeros(atoms, 3, dtype=torch.float64)
    velocities = thermal_velocities(3, masses, temperature_K)
    variances = []
    for age in range(640):
        positions, velocities = step.first_half(positions, velocities, -spring * positions, noise.at(age)[0])
        velocities = step.second_half(velocities, -spring * positions)
        if age >= 80 and age % 20 == 0:  # 20 steps: many relaxation times
            variances.append(positions.square().mean().item())
    expected = BOLTZMANN_EV_PER_K * temperature_K / spring
    error = expected * np.sqrt(2.0 / (3 * atoms * len(variances)))
    assert abs(np.mean(variances) - expected) < STANDARD_ERRORS * error
    # the samples are independent: their spread is that of independent ones
    assert np.std(variances) == pytest.approx(expected * np.sqrt(2.0 / (3 * atoms)), rel=0.5)


def test_walkers_have_the_temperatures_of_their_thermostats():
    """Blocked by walker and time: each block mean is one sample."""
    temperatures = [200.0, 400.0, 600.0, 800.0]
    frames = [crystal(k) for k in range(20, 24)]
    free = StopSettings(
        uncertainty_eV_per_A=1e9, max_force_eV_per_A=1e9, min_distance_fraction=0.0, isolation_A=4.0, check_every=1000
    )
    settings = WalkerSettings(
        timestep_fs=0.5, friction_per_ps=100.0, max_steps=10**6, bias=BiasSettings(tau=0.0), stop=free, store_every=1000
    )
    nursery = Nursery(
        starts=frames,
        settings=settings,
        temperatures_K=temperatures,
        pressures_MPa=[0.0] * len(temperatures),
        seed=2,
        prefix="t",
    )
    subject = model(dtype=torch.float32)
    walkers = WalkerBatch(subject, "d", settings, nursery, [None] * 4)
    walkers.run(100)
    measured = []
    for _ in range(96):  # 12.5 fs apart; velocities forget within 1/γ = 10 fs
        states = walkers.run(25).walkers
        kinetic = [float((masses_of(s.frame).numpy()[:, None] * s.velocities**2).sum()) for s in states]
        measured.append([k / (3 * len(s.frame) * BOLTZMANN_EV_PER_K) for k, s in zip(kinetic, states, strict=True)])
    blocks = np.array(measured).reshape(12, 8, 4).mean(axis=1)
    error = blocks.std(axis=0, ddof=1) / np.sqrt(len(blocks))
    assert (np.abs(blocks.mean(axis=0) - temperatures) < STANDARD_ERRORS * error).all()
    # and the error itself is small enough to tell the temperatures apart
    assert (error < 0.12 * np.array(temperatures)).all()


def test_start_velocities_are_maxwell_boltzmann():
    frame, temperature_K = water(), 350.0
    masses = masses_of(frame)
    velocities = torch.stack([thermal_velocities(seed, masses, temperature_K) for seed in range(3000)]).numpy()
    width = np.sqrt(BOLTZMANN_EV_PER_K * temperature_K / masses.numpy())
    scaled = velocities / width[None, :, None]
    count = scaled[:, 0].size
    for atom in range(3):
        assert abs(scaled[:, atom].mean()) < STANDARD_ERRORS / np.sqrt(count)
        assert abs(scaled[:, atom].var() - 1.0) < STANDARD_ERRORS * np.sqrt(2.0 / count)
    assert stats.kstest(scaled.ravel(), "norm").pvalue > 0.01


def test_thermostat_noise_is_normal_and_independent_between_steps_atoms_and_walkers():
    noise = noise_of([1, 2, 2**64 - 1], 50)
    drawn = torch.stack([noise.at(age)[0].view(3, 50, 3) for age in range(320)], dim=1).numpy()
    assert stats.kstest(drawn.ravel(), "norm").pvalue > 0.01
    count = drawn[0].size
    for shift_seed, shift_step, shift_atom, shift_axis in (
        (1, 0, 0, 0),
        (0, 1, 0, 0),
        (0, 32, 0, 0),
        (0, 0, 1, 0),
        (0, 0, 0, 1),
    ):
        moved = np.roll(drawn, (shift_seed, shift_step, shift_atom, shift_axis), axis=(0, 1, 2, 3))
        for one, other in ((drawn, moved), (drawn**2 - 1.0, moved**2 - 1.0)):  # Box and Muller's pairs share a radius
            correlation = (one * other).mean(axis=(1, 2, 3)) / one.var()
            assert abs(correlation).max() < 4.0 / np.sqrt(count)


def noise_of(seeds, atoms):
    """Numbers for walkers of equal size, from age 0 on."""
    ages = torch.zeros(len(seeds), dtype=torch.int64)
    return Noise(seeds, np.full(len(seeds), atoms), ages, cell=False)


def test_friction_sets_how_fast_velocities_are_forgotten():
    friction_per_ps, timestep_fs = 10.0, 0.5
    masses = torch.ones(20000, dtype=torch.float64)
    step = Langevin.make(
        timestep=timestep_fs * FEMTOSECOND,
        friction=friction_per_ps / PICOSECOND,
        masses=masses,
        temperatures_K=torch.full_like(masses, 300.0),
    )
    noise = noise_of([4], len(masses))
    start = thermal_velocities(1, masses, 300.0)
    positions, velocities = torch.zeros_like(start), start
    for age in range(200):  # 100 fs: one relaxation time
        positions, velocities = step.first_half(positions, velocities, torch.zeros_like(start), noise.at(age)[0])
    kept = ((start * velocities).mean() / start.square().mean()).item()
    assert kept == pytest.approx(np.exp(-1.0), abs=0.02)
    assert velocities.var().item() == pytest.approx(BOLTZMANN_EV_PER_K * 300.0, rel=0.02)
