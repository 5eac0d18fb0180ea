"""Intervals on a device, cells that move, hills, schedules of τ: what a step does besides plain dynamics."""

import io
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import bulk
from engine import crystal, ethanol, model, water, zoo
from test_walkers import (
    DIGEST,
    OPEN,
    TRAJECTORY_TOLERANCE,
    batch_of,
    newborn,
    nursery_of,
    same_bits,
    settings_of,
)

from pipeline.dynamics.propagator import Propagator
from pipeline.dynamics.slots import no_hills
from pipeline.dynamics.stops import StartCells
from pipeline.dynamics.walkers import WalkerBatch
from pipeline.frames import Frame
from pipeline.records import StopReason
from pipeline.settings.variables import DistanceVariable
from pipeline.settings.walkers import (
    AdaptiveTau,
    BarostatSettings,
    BiasSettings,
    MetadynamicsSettings,
    RampTau,
)

DISTANCE = {"test": (DistanceVariable(name="d", atoms=(0, 1), range_A=(0.5, 3.0)),)}
KINDS = ("isotropic", "anisotropic", "flexible")


@pytest.fixture(scope="module")
def single():
    return model(dtype=torch.float32)


@pytest.fixture(scope="module")
def double():
    return model()


def box(seed):
    """Eight atoms, so that crystals of two sizes are together."""
    atoms = bulk("Cu", cubic=True, a=3.7) * (2, 1, 1)
    atoms.rattle(0.05, seed=seed)
    return Frame.from_atoms(atoms, system="test")


def pressed(kind="flexible", **changes):
    """Settings under which cells move visibly within some dozen steps."""
    barostat = BarostatSettings(kind=kind, time_fs=50.0, friction_per_ps=50.0)
    bias = BiasSettings(tau=0.25, tau_stress=0.2, update_every=7, window_steps=35, stress_window_steps=21)
    return settings_of(**{"barostat": barostat, "bias": bias, **changes})


def crystals():
    return [
        replace(newborn(frame, seed=k, name=f"w{k}", tau=0.25), pressure_MPa=pressure)
        for k, (frame, pressure) in enumerate([(crystal(1), 0.0), (box(2), 2000.0), (crystal(3), -1000.0)])
    ]


def hilly(**changes):
    hills = MetadynamicsSettings(variables=("d",), widths=(0.05,), height_eV=0.5, every=10)
    return settings_of(metadynamics=hills, tau=0.0, **changes)


def with_hills(subject, settings, resume, *, nursery=None, **options):
    nursery = nursery or nursery_of(settings, [water(k) for k in range(20, 24)], len(resume))
    return WalkerBatch(subject, DIGEST, settings, nursery, resume, variables=DISTANCE, **options)


def bare(frame, **changes):
    """A walker that has been without hills so far."""
    return replace(newborn(frame, tau=0.0, **changes), hills=no_hills(1))


def without_parts(state):
    """A walker whose bits one may compare where the sums of its model were made in another order."""
    return {name: getattr(state, name) for name in ("velocities", "forces", "virial", "strain_rate", "anchor")} | {
        "positions": state.frame.positions,
        "cell": state.frame.cell,
        "heights": state.hills.heights,
    }


def close(found, expected):
    for name, values in without_parts(found).items():
        np.testing.assert_allclose(values, without_parts(expected)[name], atol=TRAJECTORY_TOLERANCE, rtol=1e-9)


@pytest.mark.parametrize("moving_cells", [False, True], ids=["NVT", "NPT"])
def test_intervals_without_a_look_at_the_rows_make_the_same_steps_bit_for_bit(single, monkeypatch, moving_cells):
    stop = OPEN.model_copy(update={"check_every": 40, "min_angle_deg": 0.0, "volume_change": 1e9})
    wild = {"stop": stop, "store_every": 20, "timestep_fs": 1.0}
    if moving_cells:
        settings, frames = pressed(**wild), [crystal(1), box(2), crystal(3)]
    else:
        settings, frames = settings_of(**wild), zoo(30)
    start = [newborn(frame, seed=k, temperature_K=3000.0, name=f"w{k}") for k, frame in enumerate(frames)]
    nursery = [nursery_of(settings, [frames[0]], len(frames)) for _ in range(2)]
    back = []
    original = Propagator.return_to
    monkeypatch.setattr(Propagator, "return_to", lambda self, mark: (back.append(mark.clock), original(self, mark))[1])
    looked, blind = (
        WalkerBatch(single, DIGEST, settings, nursery[not looks], start, looks=looks).run(70) for looks in (True, False)
    )
    assert back, "no interval was made again: the test shows nothing"
    same_bits(blind.walkers, looked.walkers)
    same_bits(blind.candidates, looked.candidates)


@pytest.mark.parametrize("kind", ["NVT", "NPT", "hills", "ramp"])
def test_the_steps_of_an_interval_never_wait_for_the_device(single, kind):
    """On torch's meta device whatever needs a number on the host raises, and so does mixing devices."""
    if kind == "NPT":
        batch = batch_of(single, pressed(), crystals())
    elif kind == "hills":
        batch = with_hills(single, hilly(), [bare(water(20)), bare(ethanol(20))])
    else:
        schedule = RampTau(first=0.1, steps=50) if kind == "ramp" else BiasSettings().schedule
        bias = BiasSettings(update_every=2, schedule=schedule)
        batch = batch_of(single, settings_of().model_copy(update={"bias": bias}), [newborn(f) for f in zoo(30)])
    batch.run(11)
    file = io.BytesIO()
    torch.save(batch._walk, file)
    file.seek(0)
    walk = torch.load(file, map_location="meta", weights_only=False)
    assert walk.phase.positions.device.type == "meta"
    for last in (False, False, False, True):
        evaluated = walk.step(uncertainty=last)
        assert walk.moving.wear().shape == (len(walk.sizes),)
    assert walk.clock == 15
    cells = batch._checks.cells
    if cells is not None:
        cells = StartCells(cells.cells.to("meta"), cells.volumes.to("meta"))
    checks = replace(batch._checks, cells=cells)
    codes = checks.codes(
        walk.moving.batch,
        forces=walk.phase.forces,
        atomic=evaluated.atomic,
        lost=walk.phase.lost,
        ages=walk.phase.ages,
    )
    assert codes.device.type == "meta"


@pytest.mark.parametrize("kind", KINDS)
def test_continuation_is_bit_for_bit_with_cells_that_move(single, kind):
    settings = pressed(kind, max_steps=25)
    nurseries = [nursery_of(settings, [crystal(5), box(6)], 3) for _ in range(2)]
    whole = batch_of(single, settings, crystals(), nursery=nurseries[0]).run(48)
    first = batch_of(single, settings, crystals(), nursery=nurseries[1]).run(31)
    second = batch_of(single, settings, pickle.loads(pickle.dumps(first.walkers)), nursery=nurseries[1]).run(17)
    same_bits(second.walkers, whole.walkers)
    same_bits(first.candidates + second.candidates, whole.candidates)
    assert whole.stops[StopReason.COMPLETED] >= 3
    for walker in whole.walkers:
        assert np.abs(walker.strain_rate).max() > 0
        assert len(walker.bias.stress_squared) >= 1
        assert (walker.frame.cell != walker.start_cell).any()


def test_walkers_whose_cells_move_equal_the_same_walkers_one_by_one(double):
    settings = pressed()
    together = batch_of(double, settings, crystals()).run(30)
    for k, state in enumerate(crystals()):
        alone = batch_of(double, settings, [state]).run(30)
        close(together.walkers[k], alone.walkers[0])
        own = [c for c in together.candidates if c.walker == state.walker]
        assert [(c.step, c.pressure_MPa) for c in own] == [(n, state.pressure_MPa) for n in (10, 20, 30)]
        for found, expected in zip(own, alone.candidates, strict=True):
            np.testing.assert_allclose(found.frame.cell, expected.frame.cell, atol=TRAJECTORY_TOLERANCE, rtol=0)
            said = double.evaluate([found.frame])
            assert found.total_uncertainty == pytest.approx(said.total_uncertainty[0], rel=1e-7)


def test_the_bias_stress_is_as_strong_as_asked_for(double):
    settings = pressed()
    settings = settings.model_copy(update={"bias": settings.bias.model_copy(update={"stress_every": 1})})
    state = batch_of(double, settings, [newborn(crystal(1), tau=0.25)]).run(1).walkers[0]
    said = double.evaluate([state.frame], stress=True)
    xx, yy, zz, yz, xz, xy = said.stress[0] * abs(np.linalg.det(state.frame.cell))
    plain = -np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    relative = np.linalg.norm(state.virial - plain) / np.linalg.norm(plain)
    assert relative == pytest.approx(0.2, rel=0.1)  # s is that of one step before


def test_a_cell_that_has_changed_too_much_stops_its_walker(double):
    stop = OPEN.model_copy(update={"volume_change": 1.02, "check_every": 5})
    settings = pressed("isotropic", stop=stop, store_every=1000)
    swelling = replace(newborn(crystal(1), name="swelling"), strain_rate=np.eye(3) * 0.02)
    nursery = nursery_of(settings, [crystal(5)], 2)
    journey = batch_of(double, settings, [swelling, newborn(box(2), name="calm")], nursery=nursery).run(60)
    assert journey.stops[StopReason.CELL] >= 1
    own = [c for c in journey.candidates if c.walker == "swelling"]
    assert [c.reason for c in own] in ([StopReason.CELL], [])  # the last geometry that passed, where there was one
    assert all(1 / 1.02 < abs(np.linalg.det(c.frame.cell) / np.linalg.det(swelling.start_cell)) < 1.02 for c in own)


def test_a_walker_that_starts_where_volumes_end_has_no_limits_of_its_own(double):
    settings = pressed("isotropic", store_every=1000)
    start = newborn(crystal(1))
    volume = abs(np.linalg.det(start.start_cell))
    for volumes, stops in (
        ({}, {}),
        ({"another": (volume / 3, volume / 3)}, {}),
        ({"test": (volume / 3, 2 * volume)}, {}),
        ({"test": (volume / 3, volume / 3)}, {StopReason.CELL: 1}),
    ):
        nursery = nursery_of(settings, [crystal(5)], 1)
        journey = WalkerBatch(double, DIGEST, settings, nursery, [start], volumes_A3=volumes).run(5)
        assert journey.stops == stops


def test_a_cell_that_leaps_is_held_until_its_walker_is_replaced(double):
    settings = pressed(store_every=1000)
    bursting = replace(newborn(crystal(1), name="bursting"), strain_rate=np.eye(3) * 1e3)
    batch = batch_of(double, settings, [bursting], nursery=nursery_of(settings, [crystal(5)], 1))
    held = batch.run(4).walkers[0]
    np.testing.assert_array_equal(held.frame.cell, bursting.start_cell)
    assert batch.run(1).stops == {StopReason.NOT_FINITE: 1}


def test_hills_are_left_behind_and_continuation_is_bit_for_bit(single):
    settings = hilly(max_steps=35)
    start = [bare(water(20), name="a", seed=1), bare(ethanol(20), name="b", seed=2, age=12)]
    nurseries = [nursery_of(settings, [water(k) for k in range(20, 24)], 2) for _ in range(2)]
    whole = with_hills(single, settings, start, nursery=nurseries[0]).run(52)
    first = with_hills(single, settings, start, nursery=nurseries[1]).run(33)
    second = with_hills(single, settings, first.walkers, nursery=nurseries[1]).run(19)
    same_bits(second.walkers, whole.walkers)
    same_bits(first.candidates + second.candidates, whole.candidates)
    assert [len(w.hills.heights) for w in first.walkers] == [3, 1]  # the second was replaced at step 25
    assert whole.stops == {StopReason.COMPLETED: 2}


def test_hills_push_walkers_away_from_where_they_were(double):
    last = {}
    for height in (1e-9, 0.5):
        hills = MetadynamicsSettings(variables=("d",), widths=(0.05,), height_eV=height, every=5)
        settings = hilly().model_copy(update={"metadynamics": hills})
        state = with_hills(double, settings, [bare(water(20))]).run(6).walkers[0]
        plain = double.evaluate([state.frame]).forces
        last[height] = state.forces - plain
    bond = water(20).positions[1] - water(20).positions[0]
    assert np.abs(last[1e-9]).max() < 1e-6
    assert np.abs(last[0.5]).max() > 1e-2
    np.testing.assert_allclose(last[0.5][0], -last[0.5][1], atol=1e-12)  # along the distance, opposite on its two atoms
    assert np.abs(np.cross(last[0.5][0], bond)).max() < 0.05 * np.linalg.norm(last[0.5][0]) * np.linalg.norm(bond)


def test_a_batch_in_parts_is_the_batch_in_one_piece(double):
    kinds = {
        "NVT": (settings_of(), [newborn(f, seed=k, name=f"w{k}") for k, f in enumerate(zoo(30))]),
        "NPT": (pressed(), crystals()),
        "hills": (hilly(), [bare(water(k), seed=k, name=f"w{k}") for k in range(20, 23)]),
    }
    for settings, states in kinds.values():
        for parts in (2, 3):
            whole, cut = (
                with_hills(double, settings, states, parts=n, nursery=nursery_of(settings, [water()], len(states))).run(
                    20
                )
                for n in (1, parts)
            )
            for found, expected in zip(cut.walkers, whole.walkers, strict=True):
                close(found, expected)
            for found, expected in zip(cut.candidates, whole.candidates, strict=True):
                np.testing.assert_allclose(found.atomic_uncertainty, expected.atomic_uncertainty, rtol=1e-5)
                assert found.total_uncertainty == pytest.approx(expected.total_uncertainty, rel=1e-7)


def test_a_ramp_gives_every_walker_the_strength_of_its_age(double):
    bias = BiasSettings(tau=0.4, update_every=7, schedule=RampTau(first=0.0, steps=40))
    settings = settings_of(max_steps=60).model_copy(update={"bias": bias})
    nursery = nursery_of(settings, [water(20)], 2)
    born = batch_of(double, settings, [None, newborn(water(21), age=30, tau=0.3)], nursery=nursery)
    journey = born.run(20)
    assert [w.tau for w in journey.walkers] == pytest.approx([0.2, 0.4])
    assert [c.tau for c in journey.candidates if c.step == 10] == pytest.approx([0.1])


def test_an_adaptive_strength_grows_while_a_walker_is_late_and_survives_a_cut(single):
    schedule = AdaptiveTau(steps=40, least=0.0, most=1.0)
    bias = BiasSettings(tau=0.25, update_every=7, schedule=schedule)
    settings = settings_of().model_copy(update={"bias": bias})  # a threshold nobody comes near
    states = [newborn(water(20)), newborn(ethanol(20), name="v")]
    whole = batch_of(single, settings, states).run(30)
    assert [w.tau for w in whole.walkers] == [1.0, 1.0]
    first = batch_of(single, settings, states).run(12)
    assert all(0.25 < w.tau < 1.0 for w in first.walkers)
    same_bits(batch_of(single, settings, first.walkers).run(18).walkers, whole.walkers)
