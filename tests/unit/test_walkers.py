import math
import pickle
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from engine import crystal, ethanol, model, slab, water, zoo

from pipeline.dynamics.langevin import thermal_velocities
from pipeline.dynamics.slots import Nursery, masses_of, no_hills
from pipeline.dynamics.walkers import WalkerBatch
from pipeline.frames import Frame
from pipeline.potentials import save
from pipeline.records import Label, ModelRef, Split, StopReason, WalkerState, WalkTask
from pipeline.settings.walkers import BiasSettings, StopSettings, WalkerSettings
from pipeline.shards import read_candidates, read_walkers, write_labels, write_walkers
from pipeline.strength import empty_bias_state
from pipeline.walk import run_walk

DIGEST = "a" * 64
TRAJECTORY_TOLERANCE = 1e-8
"""Largest difference of float64 trajectories of 40 steps that are equal in exact arithmetic, Å and Å per time unit."""
OPEN = StopSettings(
    uncertainty_eV_per_A=1e9, max_force_eV_per_A=1e9, min_distance_fraction=0.0, isolation_A=4.0, check_every=5
)


def settings_of(*, stop=OPEN, tau=0.25, **changes):
    bias = BiasSettings(tau=tau, update_every=7, window_steps=35)
    return WalkerSettings(**{"timestep_fs": 0.2, "store_every": 10, "bias": bias, "stop": stop, **changes})


def nursery_of(settings, starts, slots, seed=11):
    temperatures = [300.0 + 100.0 * k for k in range(slots)]
    return Nursery(
        starts=starts,
        settings=settings,
        temperatures_K=temperatures,
        pressures_MPa=[0.0] * len(temperatures),
        seed=seed,
        prefix="t",
    )


def batch_of(subject, settings, resume, *, starts=None, nursery=None):
    starts = [water(k) for k in range(20, 24)] if starts is None else starts
    nursery = nursery or nursery_of(settings, starts, len(resume))
    return WalkerBatch(subject, DIGEST, settings, nursery, resume)


def newborn(frame, *, seed=5, temperature_K=300.0, tau=0.25, name="w", velocities=None, start=None, age=0):
    if velocities is None:
        velocities = thermal_velocities(seed, masses_of(frame), temperature_K).numpy()
    return WalkerState(
        walker=name,
        frame=frame,
        velocities=velocities,
        temperature_K=temperature_K,
        pressure_MPa=0.0,
        tau=tau,
        seed=seed,
        age=age,
        clock=0,
        bias=empty_bias_state(),
        forces=np.zeros((len(frame), 3)),
        virial=np.zeros((3, 3)),
        strain_rate=np.zeros((3, 3)),
        model="",
        anchor=frame.positions,
        anchor_cell=frame.cell,
        start=frame.positions if start is None else start,
        start_cell=frame.cell,
        hills=no_hills(0),
    )


def label_of(frame):
    return Label(frame=frame, energy=0.0, forces=np.zeros((len(frame), 3)), stress=None, split=Split.TRAIN, round=0)


def same_bits(one, other):
    """Equal in every field of every record, arrays to the bit."""
    assert type(one) is type(other)
    if is_dataclass(one):
        for field in fields(one):
            same_bits(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same_bits(a, b)
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes()
    else:
        assert one == other


@pytest.fixture(scope="module")
def double():
    return model()


@pytest.fixture(scope="module")
def single():
    return model(dtype=torch.float32)


def test_a_batch_of_walkers_of_different_sizes_equals_the_same_walkers_one_by_one(double):
    settings = settings_of()
    states = [
        newborn(frame, seed=k, temperature_K=200.0 + 100 * k, tau=0.1 * k, name=f"w{k}")
        for k, frame in enumerate([*zoo(30), *zoo(31)])
    ]
    together = batch_of(double, settings, states).run(40)
    for k, state in enumerate(states):
        alone = batch_of(double, settings, [state]).run(40)
        found, expected = together.walkers[k], alone.walkers[0]
        assert (found.walker, found.age, found.clock) == (expected.walker, 40, 40)
        for name in ("velocities", "forces"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=TRAJECTORY_TOLERANCE, rtol=0)
        np.testing.assert_allclose(found.frame.positions, expected.frame.positions, atol=TRAJECTORY_TOLERANCE, rtol=0)
        own = [c for c in together.candidates if c.walker == state.walker]
        assert [c.step for c in own] == [c.step for c in alone.candidates] == [10, 20, 30, 40]
        for a, b in zip(own, alone.candidates, strict=True):
            np.testing.assert_allclose(a.frame.positions, b.frame.positions, atol=TRAJECTORY_TOLERANCE, rtol=0)
            np.testing.assert_allclose(a.atomic_uncertainty, b.atomic_uncertainty, rtol=1e-5)
            assert a.total_uncertainty == pytest.approx(b.total_uncertainty, rel=1e-6)


def test_a_lost_walker_does_not_change_when_the_others_are_checked(double):
    # the first explodes at a step where no check is due; the second is past its threshold all the time
    settings = settings_of(stop=OPEN.model_copy(update={"uncertainty_eV_per_A": 1e-9}))
    fast = np.zeros((3, 3))
    fast[0] = [1e4, 0.0, 0.0]
    exploding = newborn(water(20), velocities=fast, name="exploding")
    journey = batch_of(double, settings, [exploding, newborn(water(21), name="calm")]).run(5)
    calm = [c for c in journey.candidates if c.walker == "calm"]
    assert [(c.step, c.reason) for c in calm] == [(5, StopReason.UNCERTAIN)]
    assert journey.stops[StopReason.NOT_FINITE] == 1


@pytest.mark.parametrize("split", [1, 3, 7, 20, 36, 59])
def test_a_continued_walker_makes_the_steps_of_an_uninterrupted_one_bit_for_bit(single, split):
    settings = settings_of()
    start = [newborn(frame, seed=k, name=f"w{k}") for k, frame in enumerate(zoo(30))]
    whole = batch_of(single, settings, start).run(60)
    first = batch_of(single, settings, start).run(split)
    walkers = pickle.loads(pickle.dumps(first.walkers))
    second = batch_of(single, settings, walkers).run(60 - split)
    for found, expected in zip(second.walkers, whole.walkers, strict=True):
        same_bits(found, expected)
    same_bits(first.candidates + second.candidates, whole.candidates)


@pytest.mark.parametrize("split", [6, 13, 41])
def test_continuation_is_bit_for_bit_with_walkers_that_are_replaced(single, split):
    settings = settings_of(max_steps=20)
    resume = [newborn(water(20), seed=1, age=3), None, newborn(water(21), seed=2, age=11)]
    nurseries = [nursery_of(settings, [water(k) for k in range(20, 24)], 3) for _ in range(2)]
    whole = batch_of(single, settings, resume, nursery=nurseries[0]).run(60)
    first = batch_of(single, settings, resume, nursery=nurseries[1]).run(split)
    second = batch_of(single, settings, first.walkers, nursery=nurseries[1]).run(60 - split)
    assert whole.stops == {StopReason.COMPLETED: 9}
    for found, expected in zip(second.walkers, whole.walkers, strict=True):
        same_bits(found, expected)
    same_bits(first.candidates + second.candidates, whole.candidates)


def test_continuation_is_bit_for_bit_when_rows_were_rebuilt(single):
    settings = settings_of(temperatures_K=(300.0,), timestep_fs=1.0)
    start = [newborn(frame, seed=k, temperature_K=3000.0, name=f"w{k}") for k, frame in enumerate(zoo(30))]
    whole = batch_of(single, settings, start).run(80)
    first = batch_of(single, settings, start).run(43)
    assert any((w.anchor != s.anchor).any() for w, s in zip(first.walkers, start, strict=True))
    second = batch_of(single, settings, first.walkers).run(37)
    for found, expected in zip(second.walkers, whole.walkers, strict=True):
        same_bits(found, expected)


def test_another_model_computes_forces_anew(single):
    settings = settings_of()
    first = batch_of(single, settings, [newborn(water(20))]).run(10)
    newer = model(dtype=torch.float32, features="sketched")
    walker = WalkerBatch(newer, "b" * 64, settings, nursery_of(settings, [water()], 1), first.walkers)
    state = walker.run(1).walkers[0]
    assert state.model == "b" * 64
    assert state.age == 11
    assert len(state.bias.force_squared) == len(first.walkers[0].bias.force_squared) + 1


STOPS = {
    StopReason.TOO_CLOSE: (
        Atoms("HH", positions=[[0, 0, 0], [0, 0, 0.2]]),
        {"min_distance_fraction": 0.5},
    ),
    StopReason.ISOLATED_ATOM: (
        Atoms("OHH", positions=[[0, 0, 0], [0, 0, 1.0], [0, 0, -3.9]]),
        {"isolation_A": 2.0},
    ),
    StopReason.FORCE: (water(20).to_atoms(), {"max_force_eV_per_A": 1e-6}),
    StopReason.UNCERTAIN: (water(20).to_atoms(), {"uncertainty_eV_per_A": 1e-9}),
}


@pytest.mark.parametrize("reason", STOPS, ids=str)
def test_a_walker_that_went_too_far_stops_for_its_reason_and_is_replaced(double, reason):
    atoms, limits = STOPS[reason]
    settings = settings_of(stop=OPEN.model_copy(update=limits), tau=0.0, timestep_fs=0.01)
    fine = newborn(water(21), name="other", tau=0.0)
    frame = Frame.from_atoms(atoms, system="test")
    still = np.zeros((len(frame), 3))
    batch = batch_of(double, settings, [newborn(frame, velocities=still, tau=0.0), fine])
    journey = batch.run(5)
    assert journey.stops[reason] >= 1
    replacement = journey.walkers[0]
    assert replacement.walker == "t-s00-000"
    assert (replacement.age, replacement.clock) == (0, 5)
    assert any((replacement.frame.positions == water(k).positions).all() for k in range(20, 24))
    if reason is StopReason.UNCERTAIN:
        own = [c for c in journey.candidates if c.walker == "w"]
        assert [(c.reason, c.step) for c in own] == [(reason, 5)]
    else:  # no geometry passed a check before: nothing worth a label
        assert not [c for c in journey.candidates if c.walker == "w"]
        if reason is not StopReason.FORCE:
            assert journey.walkers[1].walker == "other"


def test_after_an_unphysical_stop_the_last_geometry_that_passed_is_proposed(double):
    settings = settings_of(stop=OPEN.model_copy(update={"isolation_A": 3.0}), tau=0.0, store_every=1000)
    frame = Frame.from_atoms(Atoms("OHH", positions=[[0, 0, 0], [0, 0, 1.0], [0, 0, -2.5]]), system="test")
    flying = np.array([[0, 0, 0], [0, 0, 0], [0, 0, -2.5]])  # about 0.05 Å a step
    journey = batch_of(double, settings, [newborn(frame, velocities=flying, tau=0.0)]).run(20)
    assert journey.stops == {StopReason.ISOLATED_ATOM: 1}
    (candidate,) = journey.candidates
    distances = np.linalg.norm(candidate.frame.positions[2] - candidate.frame.positions[:2], axis=1)
    assert candidate.reason is StopReason.ISOLATED_ATOM
    assert distances.min() < 3.0
    assert candidate.step in (5, 10, 15)


@pytest.mark.parametrize("velocity", [1e4, np.nan], ids=["leap", "not a number"])
def test_a_walker_that_leaves_physics_stands_still_until_it_is_replaced_and_the_others_go_on(double, velocity):
    settings = settings_of(store_every=1000)
    wild = np.zeros((3, 3))
    wild[1, 2] = velocity
    calm = newborn(ethanol(20), name="calm", seed=9)
    batch = batch_of(double, settings, [newborn(water(20), velocities=wild), calm])
    lost = batch.run(3).walkers[0]
    np.testing.assert_array_equal(lost.frame.positions, water(20).positions)
    assert np.isnan(lost.velocities).all()
    journey = batch.run(9)
    assert journey.stops == {StopReason.NOT_FINITE: 1}
    assert journey.walkers[0].walker == "t-s00-000"
    assert journey.walkers[0].age == 7  # since the check at step 5
    alone = batch_of(double, settings, [calm]).run(12).walkers[0]
    np.testing.assert_allclose(
        journey.walkers[1].frame.positions, alone.frame.positions, atol=TRAJECTORY_TOLERANCE, rtol=0
    )


def test_a_broken_bond_stops_a_walker_only_where_bonds_are_watched(double):
    whole, torn = water(20), water(20)
    torn.positions[1] += torn.positions[1] - torn.positions[0]  # one O-H twice as long
    for watched in (True, False):
        settings = settings_of(stop=OPEN.model_copy(update={"bond_graph": watched}), tau=0.0, timestep_fs=0.01)
        state = newborn(torn, start=whole.positions, velocities=np.zeros((3, 3)))
        journey = batch_of(double, settings, [state, newborn(water(21), name="other")]).run(5)
        assert journey.stops == ({StopReason.BONDS: 1} if watched else {})
        if watched:
            assert [(c.walker, c.reason) for c in journey.candidates] == [("w", StopReason.BONDS)]


def test_an_old_walker_is_replaced(double):
    settings = settings_of(max_steps=15, store_every=1000)
    journey = batch_of(double, settings, [newborn(water(20)), newborn(water(21), age=5, name="older")]).run(15)
    assert journey.stops == {StopReason.COMPLETED: 2}
    assert [(c.walker, c.step) for c in journey.candidates] == [("older", 15), ("w", 15)]
    assert [w.age for w in journey.walkers] == [0, 5]


def test_a_segment_ends_once_enough_walkers_have_stopped(double):
    settings = settings_of(stop=OPEN.model_copy(update={"uncertainty_eV_per_A": 1e-9}))
    resume = [None] * 3
    journey = batch_of(double, settings, resume).run(100, enough=5)
    assert journey.stops == {StopReason.UNCERTAIN: 6}  # three at step 5, three at step 10
    assert journey.walker_steps == 30
    assert len({w.walker for w in journey.walkers}) == 3
    assert batch_of(double, settings, resume).run(10).stops == {StopReason.UNCERTAIN: 6}


def test_old_age_does_not_count_as_enough(double):
    journey = batch_of(double, settings_of(max_steps=5), [None] * 3).run(20, enough=1)
    assert journey.walker_steps == 60


def test_candidates_carry_the_uncertainty_the_model_gives_their_frame(double):
    settings = settings_of(stop=OPEN.model_copy(update={"check_every": 4}))
    states = [newborn(frame, seed=k, name=f"w{k}") for k, frame in enumerate(zoo(30))]
    journey = batch_of(double, settings, states).run(30)
    assert {c.step for c in journey.candidates} == {10, 20, 30}  # store_every, whatever check_every is
    assert len(journey.candidates) == 12
    for candidate in journey.candidates:
        said = double.evaluate([candidate.frame])
        assert candidate.total_uncertainty == pytest.approx(said.total_uncertainty[0], rel=1e-9)
        np.testing.assert_allclose(candidate.atomic_uncertainty, said.atomic_uncertainty, rtol=1e-6)
        assert candidate.model_version == double.version


@pytest.mark.parametrize("kind", ["distance", "committee"])
def test_walkers_move_with_every_kind_of_uncertainty(kind):
    subject = model(kind)
    journey = batch_of(subject, settings_of(), [newborn(frame, seed=k) for k, frame in enumerate(zoo(30))]).run(10)
    for candidate in journey.candidates:
        said = subject.evaluate([candidate.frame])
        assert candidate.total_uncertainty == pytest.approx(said.total_uncertainty[0], rel=1e-6)
        np.testing.assert_allclose(candidate.atomic_uncertainty, said.atomic_uncertainty, rtol=1e-5)
    assert len(journey.candidates) == 4


def test_no_bias_is_plain_dynamics_bit_for_bit(single):
    """Also where the strength would be measured: a walker with τ = 0 next to a biased one, and every other setting of it."""
    plain = settings_of(tau=0.0)
    other = settings_of(tau=0.0).model_copy(update={"bias": BiasSettings(tau=0.0, update_every=1, window_steps=3)})
    state = newborn(ethanol(20), tau=0.0)
    found = batch_of(single, plain, [state]).run(20).walkers[0]
    expected = batch_of(single, other, [state]).run(20).walkers[0]
    same_bits(found, expected)
    assert len(found.bias.force_squared) == 0
    beside = [batch_of(single, plain, [state, newborn(ethanol(21), tau=tau)]).run(20).walkers[0] for tau in (0.0, 0.25)]
    same_bits(beside[1].frame, beside[0].frame)


def test_the_bias_acts_from_the_first_step_on(double):
    biased, plain = (
        batch_of(double, settings_of(), [newborn(ethanol(20), tau=tau)]).run(6).walkers[0] for tau in (0.25, 0.0)
    )
    assert np.abs(biased.frame.positions - plain.frame.positions).max() > 1e-6
    state = newborn(ethanol(20), tau=0.25)
    one_step = batch_of(double, settings_of(), [state]).run(1).walkers[0]
    forces = double.evaluate([one_step.frame]).forces
    relative = np.linalg.norm(one_step.forces - forces) / np.linalg.norm(forces)
    assert relative == pytest.approx(0.25, rel=0.1)  # s is that of one step before


def test_the_strength_is_carried_over_segments(double):
    settings = settings_of()
    first = batch_of(double, settings, [newborn(ethanol(20))]).run(15).walkers[0]
    assert len(first.bias.force_squared) == 3  # at birth, steps 7 and 14
    second = batch_of(double, settings, [first]).run(15).walkers[0]
    np.testing.assert_array_equal(second.bias.force_squared[:3], first.bias.force_squared)
    assert len(second.bias.force_squared) == 5
    assert len(batch_of(double, settings, [second]).run(50).walkers[0].bias.force_squared) == 5  # 35 / 7


def test_an_impulse_bias_acts_at_every_nth_step_with_n_times_the_force(double):
    bias = BiasSettings(tau=0.25, update_every=100, every=3)
    settings = settings_of().model_copy(update={"bias": bias})
    walker = newborn(ethanol(20))
    for steps, factor in ((1, 0.0), (2, 0.0), (3, 3.0), (4, 0.0)):
        state = batch_of(double, settings, [walker]).run(steps).walkers[0]
        forces = double.evaluate([state.frame]).forces
        relative = np.linalg.norm(state.forces - forces) / np.linalg.norm(forces)
        assert relative == pytest.approx(0.25 * factor, rel=0.3, abs=1e-9)


def test_an_impulse_of_the_bias_is_no_force_that_stops_a_walker(double):
    walker = newborn(ethanol(20), tau=1.0)
    bias = BiasSettings(tau=1.0, update_every=100, every=5)
    for limit in (1.05, 0.95):
        free = batch_of(double, settings_of(bias=bias), [walker]).run(5).walkers[0]
        largest = np.linalg.norm(double.evaluate([free.frame]).forces, axis=1).max()
        assert np.linalg.norm(free.forces, axis=1).max() > 2 * largest
        stop = OPEN.model_copy(update={"max_force_eV_per_A": float(limit * largest)})
        journey = batch_of(double, settings_of(bias=bias, stop=stop), [walker]).run(5)
        assert journey.stops == ({} if limit > 1 else {StopReason.FORCE: 1})


def test_seeds_give_the_same_walkers_and_other_seeds_give_others(double):
    settings = settings_of(max_steps=10)

    def run(seed):
        starts = [water(k) for k in range(20, 24)]
        return batch_of(double, settings, [None] * 4, nursery=nursery_of(settings, starts, 4, seed)).run(25)

    same_bits(run(3).walkers, run(3).walkers)
    one, other = run(3).walkers, run(4).walkers
    assert all((a.velocities != b.velocities).all() for a, b in zip(one, other, strict=True))
    assert len({w.seed for w in one}) == 4


def test_a_walker_is_the_same_whatever_batch_it_is_born_into(double):
    settings = settings_of()
    starts = [slab(20), crystal(20), ethanol(20)]
    alone, many = (nursery_of(settings, starts, n).walker(0, 0) for n in (1, 5))
    same_bits(alone, many)


@pytest.fixture(scope="module")
def task(tmp_path_factory, single):
    here = tmp_path_factory.mktemp("walk")
    ref = save(single, here / "v0003.pt")
    return WalkTask(
        task="walk-r0002-0001-l00",
        round=2,
        item=1,
        leg=0,
        model=ModelRef(version=3, file=ref),
        settings=settings_of(max_steps=20),
        temperatures_K=(300.0, 500.0, 700.0),
        pressures_MPa=(0.0,) * len((300.0, 500.0, 700.0)),
        variables={},
        starts=write_labels(here / "starts.h5", [label_of(frame) for frame in (water(20), ethanol(20), crystal(20))]),
        resume=write_walkers(here / "resume.h5", [None, newborn(slab(20), name="old"), None]),
        steps=35,
        enough=0,
        born=(0, 0, 0),
        seconds=math.inf,
        output=str(here / "out"),
        seed=1234567,
        threads=1,
    )


def found(result):
    """Everything but the clock and the places of the files."""
    candidates, walkers = read_candidates(result.candidates), read_walkers(result.walkers)
    return tuple(candidates), tuple(walkers), replace(result, timing=None, candidates=None, walkers=None)


def test_a_walk_task_gives_the_same_bits_whenever_it_runs(task, tmp_path):
    first, second = run_walk(task), run_walk(replace(task, output=str(tmp_path / "second")))
    same_bits(found(first), found(second))
    assert first.candidates.sha256 == second.candidates.sha256
    assert (first.walker_steps, first.steps, first.steps_left) == (105, 35, 0)
    assert first.task == task.task
    walkers = {candidate.walker for candidate in read_candidates(first.candidates)}
    assert walkers >= {"old", "r0002-b001-s00-000", "r0002-b001-s02-000"}


def test_a_walk_task_gives_the_same_bits_in_another_process(task, tmp_path):
    (tmp_path / "task.pickle").write_bytes(pickle.dumps(replace(task, output=str(tmp_path / "there"))))
    code = (
        "import pickle, sys; from pathlib import Path; from pipeline.walk import run_walk; here = Path(sys.argv[1]);"
        "result = run_walk(pickle.loads((here / 'task.pickle').read_bytes()));"
        "(here / 'result.pickle').write_bytes(pickle.dumps(result))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=300)
    there = pickle.loads((Path(tmp_path) / "result.pickle").read_bytes())
    here = run_walk(task)
    assert there.timing.host != here.timing.host
    same_bits(found(there), found(here))
