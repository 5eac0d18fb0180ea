"""Walkers of a batch, and the bias stress, at constant pressure. Fixed seeds: a failure is a change, not bad luck."""

import numpy as np
import pytest
import torch
from ase import Atoms
from lennard_jones import IdealGas, LennardJones, Replicas, argon, deviation_and_error, mean_and_error
from scipy import stats

from pipeline.batching import cell_volumes
from pipeline.bias import biased_forces, species_weights, stress_impulse
from pipeline.dynamics.slots import Nursery
from pipeline.dynamics.walkers import WalkerBatch
from pipeline.frames import Frame
from pipeline.potentials.base import Prediction
from pipeline.potentials.model import Model
from pipeline.settings.walkers import BarostatSettings, BiasSettings, StopSettings, WalkerSettings
from pipeline.uncertainty.estimator import Estimator
from pipeline.units import BOLTZMANN_EV_PER_K, GIGAPASCAL

STANDARD_ERRORS = 3.0
MEGAPASCAL = 1e-3 * GIGAPASCAL
TEMPERATURE_K = 40.0


class Growing:
    """A feature that is the volume: the uncertainty u grows in proportion to it."""

    feature_dimension = 1

    def forward(self, batch, *, strain=None, features=False):
        found = super().forward(batch, strain=strain)
        grown = batch.cells if strain is None else batch.cells + 0.5 * batch.cells @ (strain + strain.transpose(1, 2))
        phi = cell_volumes(grown).index_select(0, batch.system) + 0.0 * batch.positions.sum(dim=1)
        return Prediction(found.energies, found.atomic_energies, phi.unsqueeze(1) if features else None)


class GrowingGas(Growing, IdealGas):
    """An ideal gas."""


class GrowingCrystal(Growing, LennardJones):
    """Lennard-Jones."""


def model_of(potential):
    """A model whose uncertainty is u = c V with a constant c."""
    known = torch.linspace(900.0, 1100.0, 5, dtype=torch.float64).unsqueeze(1)
    return Model([potential], Estimator.fit("posterior", known, known, sigma=1.0), version=1)


class BiasedGas(Replicas):
    """An ideal gas with a bias stress of constant strength b, or none, and bias forces (zero here) of strength a."""

    def __init__(self, *, settings, of_forces, of_stress, **others):
        self._settings, self._clock = settings, 0
        self._model = model_of(GrowingGas())
        count = len(others["pressures_MPa"])
        self._strengths = [
            None if value is None else torch.full((count,), value, dtype=torch.float64)
            for value in (of_forces, of_stress)
        ]
        super().__init__(GrowingGas(), **others)

    def _evaluate(self):
        batch = self.batch.with_geometry(self.positions, self.cells)
        found = biased_forces(
            self._model,
            batch,
            settings=self._settings,
            strength=self._strengths[0],
            stress_strength=self._strengths[1],
            weights=species_weights(self._settings, batch.numbers),
            split=False,
            virial=True,
            stress_impulse=stress_impulse(self._settings, self._clock),
        )
        self._clock += 1
        self.energies, self.forces, self.virials = found.outcome.energies.detach(), found.forces, found.virials


def biased_gas(*, every, relieved, replicas, timestep_fs):
    """Four atoms at 50 MPa whose forces carry the strength 0.9 P / c, and whose bias stress relieves a part of P, or none."""
    atoms, temperature_K, pressure_MPa = 4, 300.0, 50.0
    pressure, thermal = pressure_MPa * MEGAPASCAL, BOLTZMANN_EV_PER_K * temperature_K
    slope = model_of(GrowingGas()).estimator.total(torch.ones(1, 1, dtype=torch.float64)).item()
    scale = thermal / ((1.0 - (relieved or 0.0)) * pressure)
    edge = ((atoms + 1) * scale) ** (1 / 3)
    gas = Atoms(f"Ar{atoms}", np.random.default_rng(0).random((atoms, 3)) * edge, cell=np.eye(3) * edge, pbc=True)
    walkers = BiasedGas(
        settings=BiasSettings(stress_every=every),
        of_forces=0.9 * pressure / slope,
        of_stress=None if relieved is None else relieved * pressure / slope,
        atoms=gas,
        pressures_MPa=[pressure_MPa] * replicas,
        temperature_K=temperature_K,
        timestep_fs=timestep_fs,
        time_fs=200.0,
        friction_per_ps=2.0,
        cell_friction_per_ps=2.0,
        seed=2,
    )
    return walkers, stats.gamma(atoms + 1, scale=scale)


@pytest.mark.parametrize("every", [1, 3])
def test_a_bias_stress_of_an_uncertainty_linear_in_the_volume_is_a_pressure(every):
    """u = c V with strength b: the gas is at P − b c, whatever strength forces carry and however seldom b gets its impulse."""
    walkers, expected = biased_gas(every=every, relieved=0.4, replicas=400, timestep_fs=20.0)
    walkers.run(150, 150)
    found = walkers.run(450, 50)
    mean, error = mean_and_error(found.volumes)
    assert abs(mean - expected.mean()) < STANDARD_ERRORS * error
    spread, error = deviation_and_error(found.volumes)
    assert abs(spread - expected.std()) < STANDARD_ERRORS * error


def test_without_a_bias_stress_volumes_are_those_of_the_pressure_however_seldom_the_strength_of_forces_is_taken_back():
    """With the same noise, so that the two differ by the error of the multiple time step alone: an ideal gas is not chaotic."""
    means = []
    for every in (1, 5):
        walkers, expected = biased_gas(every=every, relieved=None, replicas=100, timestep_fs=8.0)
        walkers.run(300, 300)
        mean, error = mean_and_error(walkers.run(600, 60).volumes)
        assert abs(mean - expected.mean()) < STANDARD_ERRORS * error
        means.append(mean)
    assert means[1] == pytest.approx(
        means[0], rel=0.01
    )  # with 0.9 P left in the virials it would be ten times as large


def walkers_of(*, bias, pressures_MPa, kind="isotropic"):
    """Walkers from the crystal of argon, with stop checks that let them be."""
    settings = WalkerSettings(
        timestep_fs=10.0,
        friction_per_ps=4.0,
        max_steps=10**6,
        store_every=10**6,
        barostat=BarostatSettings(kind=kind, time_fs=300.0, friction_per_ps=4.0),
        bias=bias,
        stop=StopSettings(uncertainty_eV_per_A=1e9, min_distance_fraction=0.0, isolation_A=100.0, check_every=40),
    )
    count = len(pressures_MPa)
    nursery = Nursery(
        starts=[Frame.from_atoms(argon(), system="argon")],
        settings=settings,
        temperatures_K=[TEMPERATURE_K] * count,
        pressures_MPa=pressures_MPa,
        seed=3,
        prefix="p",
    )
    return WalkerBatch(model_of(GrowingCrystal()), "digest", settings, nursery, [None] * count)


def volumes_along(walkers, steps, every):
    """(S, R) volumes of the walkers' cells."""
    taken = []
    for _ in range(steps // every):
        journey = walkers.run(every)
        assert not journey.stops
        taken.append([abs(np.linalg.det(state.frame.cell)) for state in journey.walkers])
    return np.array(taken)


def test_walkers_of_a_batch_have_the_volumes_of_their_pressures():
    """Against the same dynamics put together by hand, with its own random numbers."""
    pressures = np.repeat([-20.0, 40.0], 12)
    walkers = walkers_of(bias=BiasSettings(tau=0.0), pressures_MPa=list(pressures))
    walkers.run(200)
    found = volumes_along(walkers, 480, 40)
    by_hand = Replicas(
        LennardJones(), argon(), pressures_MPa=pressures, temperature_K=TEMPERATURE_K, timestep_fs=15.0, seed=8
    )
    by_hand.run(150, 150)
    expected = by_hand.run(400, 20).volumes
    for pressure in (-20.0, 40.0):
        mean, error = mean_and_error(found[:, pressures == pressure])
        other, other_error = mean_and_error(expected[:, pressures == pressure])
        assert abs(mean - other) < STANDARD_ERRORS * np.hypot(error, other_error)
        assert np.hypot(error, other_error) < 3.0  # of means that are 48 Å³ apart


def test_walkers_with_a_bias_stress_grow_where_the_uncertainty_grows_with_the_volume():
    grown = []
    for tau_stress in (0.0, 1.0):
        bias = BiasSettings(tau=0.1, tau_stress=tau_stress, window_steps=20, stress_window_steps=20, stress_every=1)
        walkers = walkers_of(bias=bias, pressures_MPa=[40.0] * 4, kind="flexible")
        walkers.run(80)
        grown.append(volumes_along(walkers, 120, 20).mean())
    assert grown[1] > 1.05 * grown[0]
