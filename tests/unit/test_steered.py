"""Walkers whose τ follows a schedule, or that leave hills behind: what the engine makes of both."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from engine import ethanol, model, water
from test_walkers import DIGEST, OPEN, TRAJECTORY_TOLERANCE, newborn, nursery_of, same_bits, settings_of

from pipeline.analysis.variables import evaluate_all
from pipeline.dynamics.walkers import WalkerBatch
from pipeline.records import Hills
from pipeline.settings.variables import DihedralVariable, DistanceVariable
from pipeline.settings.walkers import AdaptiveTau, BiasSettings, MetadynamicsSettings, RampTau

VARIABLES = {
    "ethanol": (
        DihedralVariable(name="turn", atoms=(2, 1, 0, 3)),
        DistanceVariable(name="reach", atoms=(0, 2), range_A=(1.0, 4.0)),
    ),
    "pair": (
        DihedralVariable(name="turn", atoms=(8, 1, 0, 4)),
        DistanceVariable(name="reach", atoms=(2, 0), range_A=(1.0, 4.0)),
    ),
}
HILLS = MetadynamicsSettings(variables=("turn", "reach"), widths=(15.0, 0.1), height_eV=0.05, every=10, bias_factor=5.0)
NONE = Hills(centers=np.zeros((0, 2)), heights=np.zeros(0))


def hilly(seed, system="ethanol", **changes):
    return replace(newborn(replace(ethanol(seed), system=system), seed=seed, **changes), hills=NONE)


def batch_of(subject, settings, resume, nursery=None):
    nursery = nursery or nursery_of(settings, [replace(ethanol(k), system="ethanol") for k in range(3)], len(resume))
    return WalkerBatch(subject, DIGEST, settings, nursery, resume, variables=VARIABLES)


@pytest.fixture(scope="module")
def subject():
    return model()


def test_hills_are_left_at_their_interval_where_the_walker_is_and_push_it_away(subject):
    settings = settings_of(tau=0.0, metadynamics=HILLS)
    journey = batch_of(subject, settings, [hilly(1, tau=0.0), hilly(2, "pair", tau=0.0)]).run(30)
    for k, system in enumerate(("ethanol", "pair")):
        walker = journey.walkers[k]
        seen = [c.frame for c in journey.candidates if c.frame.system == system]
        assert [c.step for c in journey.candidates if c.frame.system == system] == [10, 20, 30]
        np.testing.assert_allclose(walker.hills.centers, evaluate_all(VARIABLES[system], seen), atol=1e-9)
        assert (np.diff(walker.hills.heights) < 0).all()
        # the last hill came after the forces of this step
        centers, heights = walker.hills.centers[:-1], walker.hills.heights[:-1]

        def landscape(frame, system=system, centers=centers, heights=heights):
            difference = evaluate_all(VARIABLES[system], [frame]) - centers
            difference[:, 0] = (difference[:, 0] + 180.0) % 360.0 - 180.0
            return float(np.sum(heights * np.exp(-0.5 * np.sum((difference / HILLS.widths) ** 2, axis=1))))

        push = walker.forces - subject.evaluate([walker.frame]).forces
        for atom in range(9):
            for axis in range(3):
                step = np.zeros((9, 3))
                step[atom, axis] = 1e-5
                up, down = (
                    landscape(replace(walker.frame, positions=walker.frame.positions + s * step)) for s in (1, -1)
                )
                assert push[atom, axis] == pytest.approx(-(up - down) / 2e-5, abs=2e-7)
        assert np.abs(push).max() > 0.01


@pytest.mark.parametrize("split", [3, 10, 26, 47])
def test_hills_and_schedules_are_continued_bit_for_bit(subject, split):
    bias = BiasSettings(tau=0.2, update_every=7, window_steps=35, schedule=AdaptiveTau(steps=60, most=0.9))
    stop = OPEN.model_copy(update={"uncertainty_eV_per_A": 20.0})
    settings = settings_of(metadynamics=HILLS, max_steps=40).model_copy(update={"bias": bias, "stop": stop})
    resume = [hilly(1, age=3, name="a"), None, hilly(2, "pair", age=21, name="b")]
    nurseries = [nursery_of(settings, [replace(ethanol(k), system="ethanol") for k in range(3)], 3) for _ in range(2)]
    whole = batch_of(subject, settings, resume, nurseries[0]).run(60)
    first = batch_of(subject, settings, resume, nurseries[1]).run(split)
    second = batch_of(subject, settings, pickle.loads(pickle.dumps(first.walkers)), nurseries[1]).run(60 - split)
    assert whole.stops  # walkers were replaced, and their hills with them
    assert len({len(walker.hills.heights) for walker in whole.walkers}) > 1
    assert len({walker.tau for walker in whole.walkers}) > 1
    for found, expected in zip(second.walkers, whole.walkers, strict=True):
        same_bits(found, expected)
    same_bits(first.candidates + second.candidates, whole.candidates)


def test_walkers_with_hills_of_two_systems_equal_the_same_walkers_one_by_one(subject):
    settings = settings_of(metadynamics=HILLS)
    start = [hilly(1, name="a"), hilly(2, "pair", name="b", temperature_K=500.0)]
    together = batch_of(subject, settings, start).run(35)
    for k, one in enumerate(start):
        alone = batch_of(subject, settings, [one]).run(35).walkers[0]
        found = together.walkers[k]
        assert np.abs(found.frame.positions - alone.frame.positions).max() < TRAJECTORY_TOLERANCE
        np.testing.assert_allclose(found.hills.heights, alone.hills.heights, rtol=1e-9)


def test_tau_of_a_ramp_is_that_of_the_age(subject):
    bias = BiasSettings(tau=0.4, update_every=5, schedule=RampTau(first=0.1, steps=30))
    settings = settings_of().model_copy(update={"bias": bias})
    nursery = nursery_of(settings, [water(1)], 1)
    journey = WalkerBatch(subject, DIGEST, settings, nursery, [None]).run(40)
    assert [c.tau for c in journey.candidates] == pytest.approx([0.2, 0.3, 0.4, 0.4])
    assert journey.walkers[0].tau == 0.4


def test_a_walker_that_stays_far_below_the_threshold_gets_the_most_after_half_its_time(subject):
    bias = BiasSettings(tau=0.1, update_every=5, schedule=AdaptiveTau(steps=40, least=0.05, most=0.7))
    settings = settings_of().model_copy(update={"bias": bias})
    nursery = nursery_of(settings, [water(1)], 1)
    journey = WalkerBatch(subject, DIGEST, settings, nursery, [None]).run(40)
    taus = [c.tau for c in journey.candidates]
    assert taus == sorted(taus)
    assert taus[-1] == journey.walkers[0].tau == 0.7


def test_forces_of_hills_do_not_depend_on_the_parts_of_a_batch(subject):
    settings = settings_of(metadynamics=HILLS)
    start = [hilly(k, system, name=system) for k, system in enumerate(("ethanol", "pair", "ethanol"))]
    nursery = nursery_of(settings, [replace(ethanol(0), system="ethanol")], 3)
    whole, parted = (
        WalkerBatch(subject, DIGEST, settings, nursery, start, variables=VARIABLES, parts=parts).run(25).walkers
        for parts in (1, 3)
    )
    for one, other in zip(whole, parted, strict=True):
        torch.testing.assert_close(torch.tensor(one.forces), torch.tensor(other.forces), rtol=1e-7, atol=1e-8)
