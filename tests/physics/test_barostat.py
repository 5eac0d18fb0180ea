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
from scipy import stats

from pipeline.batching import make_batch
from pipeline.dynamics.barostat import Barostat, volumes
from pipeline.dynamics.langevin import Langevin
from pipeline.frames import Frame
from pipeline.potentials.base import differentiate
from pipeline.settings.walkers import BarostatSettings
from pipeline.units import BOLTZMANN_EV_PER_K, FEMTOSECOND, GIGAPASCAL

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


def at_rest(kind, walkers_of, *, time_fs=200.0, friction_per_ps=0.0, device="cpu"):
    """A thermostat and a barostat for walkers of so many atoms at rising temperatures and pressures."""
    count = torch.tensor(walkers_of, device=device)
    conditions = torch.arange(1, len(walkers_of) + 1, dtype=torch.float64, device=device)
    system = torch.repeat_interleave(torch.arange(len(walkers_of), device=device), count, output_size=sum(walkers_of))
    timestep = 4.0 * FEMTOSECOND
    langevin = Langevin.make(
        timestep=timestep,
        friction=friction_per_ps,
        masses=torch.full((sum(walkers_of),), 40.0, dtype=torch.float64, device=device),
        temperatures_K=40.0 * conditions.index_select(0, system),
    )
    barostat = Barostat.make(
        BarostatSettings(kind=kind, time_fs=time_fs, friction_per_ps=friction_per_ps),
        timestep=timestep,
        temperatures_K=40.0 * conditions,
        pressures_MPa=100.0 * conditions,
        n_atoms=count,
        langevin=langevin,
        system=system,
    )
    return langevin, barostat


def somewhere(walkers_of, seed=0):
    """Positions, velocities, cells, strain rates, forces, virials, noise, noise of the cells."""
    random = torch.Generator().manual_seed(seed)
    atoms, count = sum(walkers_of), len(walkers_of)

    def draw(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    def symmetric():
        x = draw(count, 3, 3)
        return x + x.transpose(1, 2)

    cells = 8.0 * torch.eye(3, dtype=torch.float64) + 0.5 * draw(count, 3, 3)
    rate = 1e-3 * symmetric()
    return (
        3.0 * draw(atoms, 3),
        0.01 * draw(atoms, 3),
        cells,
        rate,
        draw(atoms, 3),
        symmetric(),
        draw(atoms, 3),
        draw(count, 3, 3),
    )


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


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_of_infinite_mass_leaves_the_dynamics_at_constant_volume(kind):
    langevin, barostat = at_rest(kind, [3, 5], time_fs=1e12, friction_per_ps=1.0)
    positions, velocities, cells, _, forces, virials, noise, cell_noise = somewhere([3, 5])
    still = torch.zeros_like(cells)
    moved = barostat.first_half(positions, velocities, cells, still, forces, virials, noise, cell_noise)
    expected = langevin.first_half(positions, velocities, forces, noise)
    for found, plain in zip(moved, (*expected, cells, still), strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-12, atol=1e-10)
    kicked, _ = barostat.second_half(moved[1], cells, still, forces, virials)
    torch.testing.assert_close(kicked, langevin.second_half(expected[1], forces), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_walkers_of_a_batch_do_not_see_each_other(kind):
    sizes = [3, 1, 5]
    state = somewhere(sizes)
    _, together = at_rest(kind, sizes, friction_per_ps=1.0)
    moved = together.first_half(*state)
    kicked = together.second_half(moved[1], moved[2], moved[3], state[4], state[5])
    first = 0
    for k, size in enumerate(sizes):
        _, alone = at_rest(kind, sizes[: k + 1], friction_per_ps=1.0)
        # the conditions rise with the place: keep the walkers before it, other numbers in them
        own = [x.clone() for x in state]
        for x in own:
            rows = first if len(x) == sum(sizes) else k
            x[:rows] = 0.7 * x[:rows]
        cut = [x[: first + size] if len(x) == sum(sizes) else x[: k + 1] for x in own]
        found = alone.first_half(*cut)
        again = alone.second_half(found[1], found[2], found[3], cut[4], cut[5])
        for mine, all_of_them in zip((*found, *again), (*moved, *kicked), strict=True):
            rows = slice(first, first + size) if len(all_of_them) == sum(sizes) else slice(k, k + 1)
            torch.testing.assert_close(mine[rows], all_of_them[rows], rtol=1e-12, atol=1e-14)
        first += size


def test_the_strain_rate_has_the_form_of_its_kind_and_the_cell_does_not_turn():
    state = somewhere([4, 4])
    for kind in KINDS:
        _, barostat = at_rest(kind, [4, 4])
        cells, still = state[2], torch.zeros_like(state[2])
        _, _, after, rate = barostat.first_half(*state[:2], cells, still, *state[4:])
        assert torch.equal(rate, rate.transpose(1, 2))
        growth = torch.linalg.solve(cells, after)  # cells @ growth = after
        torch.testing.assert_close(growth, growth.transpose(1, 2), rtol=0.0, atol=1e-11)
        off = rate - torch.diag_embed(rate.diagonal(dim1=1, dim2=2))
        assert bool((off != 0).any()) == (kind == "flexible")
        if kind == "isotropic":
            assert torch.equal(rate[:, 0, 0], rate[:, 1, 1])


def test_volumes_are_determinants():
    cells = somewhere([1] * 6)[2] * torch.tensor([1.0, -1.0]).repeat(3).view(6, 1, 1)
    torch.testing.assert_close(volumes(cells), torch.linalg.det(cells).abs())


@pytest.mark.parametrize("kind", KINDS)
def test_steps_at_constant_pressure_never_wait_for_the_device(kind):
    """The meta device has shapes and no numbers: whatever asks for one raises."""
    _, barostat = at_rest(kind, [3, 5], device="meta")
    state = [x.to("meta") for x in somewhere([3, 5])]
    moved = barostat.first_half(*state)
    velocities, rate = barostat.second_half(moved[1], moved[2], moved[3], state[4], state[5])
    assert velocities.shape == (8, 3)
    assert rate.shape == (2, 3, 3)
    assert rate.device.type == "meta"
