"""The controller of the relative strengths: what it measures, what it forgets, what it carries over."""

import copy

import numpy as np
import pytest
import torch
from engine import crystal, ethanol, water

from pipeline.batching import make_batch
from pipeline.bias import BiasedForces
from pipeline.records import BiasState
from pipeline.settings.walkers import BiasSettings
from pipeline.strength import RelativeStrength, empty_bias_state

SETTINGS = BiasSettings(window_steps=30, stress_window_steps=50, update_every=10)


def split(batch, *, force=1.0, gradient=1.0, virial=None, strain=None):
    """The derivatives of E and u apart, each with the same number everywhere."""
    atoms, cells = torch.ones_like(batch.positions), torch.ones_like(batch.cells)
    return BiasedForces(
        forces=force * atoms,
        plain=force * atoms,
        gradient=gradient * atoms,
        virials=None,
        plain_virials=None if virial is None else virial * cells,
        strain_gradient=None if strain is None else strain * cells,
        outcome=None,
        batch=batch,
    )


def random_split(batch, seed):
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.randn((2, *batch.positions.shape), generator=generator, dtype=torch.float64)
    cells = torch.randn((2, *batch.cells.shape), generator=generator, dtype=torch.float64)
    return BiasedForces(atoms[0], atoms[0], atoms[1], None, cells[0], cells[1], None, batch)


def same(one: BiasState, other: BiasState) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in one.__slots__)


def test_both_windows_forget_what_is_older():
    strength = RelativeStrength([empty_bias_state()], SETTINGS)
    batch = make_batch([water()], 4.0)
    for scale in (9.0, 1.0, 2.0, 3.0):
        strength.record(split(batch, force=scale, virial=scale, strain=2.0))
    state = strength.state(0)
    np.testing.assert_allclose(state.force_squared, [9.0, 36.0, 81.0])
    np.testing.assert_allclose(state.gradient_squared, [9.0, 9.0, 9.0])
    np.testing.assert_allclose(state.stress_squared, [729.0, 9.0, 36.0, 81.0])
    np.testing.assert_allclose(state.strain_squared, [36.0] * 4)
    assert strength.force().item() == pytest.approx(np.sqrt((9 + 36 + 81) / 27))
    assert strength.stress().item() == pytest.approx(np.sqrt((729 + 9 + 36 + 81) / (4 * 36)))


def test_the_first_sample_already_sets_the_strength():
    batch = make_batch([water(), ethanol()], 4.0)
    strength = RelativeStrength([empty_bias_state() for _ in range(2)], SETTINGS)
    assert strength.force().tolist() == strength.stress().tolist() == [0.0, 0.0]
    sample = random_split(batch, 1)
    strength.record(sample)
    for k in range(2):
        own = batch.system == k
        assert strength.force()[k].item() == pytest.approx(
            (sample.plain[own].norm() / sample.gradient[own].norm()).item()
        )
        assert strength.stress()[k].item() == pytest.approx(
            (sample.plain_virials[k].norm() / sample.strain_gradient[k].norm()).item()
        )


def test_forces_alone_leave_the_window_of_the_stress_as_it_is():
    batch = make_batch([water()], 4.0)
    strength = RelativeStrength([empty_bias_state()], SETTINGS)
    strength.record(split(batch, force=2.0))
    assert strength.state(0).stress_squared.shape == (0,)
    assert (strength.force().item(), strength.stress().item()) == (pytest.approx(2.0), 0.0)


def test_a_flat_or_broken_sample_gives_no_bias():
    cases = [(4.0, 0.0), (0.0, 0.0), (np.nan, 1.0), (1.0, np.nan), (np.inf, 1.0), (np.inf, np.inf), (0.0, 1.0)]
    states = [
        BiasState(
            force_squared=np.array([above]),
            gradient_squared=np.array([below]),
            stress_squared=np.array([above]),
            strain_squared=np.array([below]),
        )
        for above, below in cases
    ]
    strength = RelativeStrength([*states, empty_bias_state()], SETTINGS)
    assert strength.force().tolist() == strength.stress().tolist() == [0.0] * (len(cases) + 1)


def test_a_walker_taken_up_again_goes_on_bit_for_bit():
    batch = make_batch([water(), crystal()], 4.0)
    through = RelativeStrength([empty_bias_state() for _ in range(2)], SETTINGS)
    for step in range(9):
        # a state with fewer samples than the window, and one with a full one
        again = RelativeStrength([through.state(k) for k in range(2)], SETTINGS)
        assert torch.equal(again.force(), through.force())
        assert torch.equal(again.stress(), through.stress())
        for one in (through, again):
            one.record(random_split(batch, step))
        assert torch.equal(again.force(), through.force())
        assert all(same(a, b) for a, b in zip(again.states(), through.states(), strict=True))
    assert all(same(through.state(k), state) for k, state in enumerate(through.states()))


def test_a_slot_that_is_replaced_leaves_the_others_alone():
    batch = make_batch([water(), water(1), ethanol()], 4.0)
    strength = RelativeStrength([empty_bias_state() for _ in range(3)], SETTINGS)
    for step in range(4):
        strength.record(random_split(batch, step))
    before = strength.states()
    fresh = BiasState(force_squared=np.array([4.0]), gradient_squared=np.array([1.0]))
    strength.exchange(np.array([0, 3, 2]), [fresh])
    assert same(strength.state(0), before[0])
    assert same(strength.state(2), before[2])
    assert strength.force()[1].item() == 2.0
    assert strength.stress()[1].item() == 0.0
    np.testing.assert_array_equal(strength.state(1).force_squared, [4.0])


def test_slots_that_are_replaced_at_once_hold_what_they_hold_one_after_another():
    batch = make_batch([water(k) for k in range(5)], 4.0)
    at_once, one_by_one = (RelativeStrength([empty_bias_state() for _ in range(5)], SETTINGS) for _ in range(2))
    fresh = [BiasState(force_squared=np.arange(1.0, k), gradient_squared=np.ones(k - 1)) for k in (2, 4)]
    for strength in (at_once, one_by_one):
        strength.record(random_split(batch, 1))
    at_once.exchange(np.array([0, 6, 2, 5, 4]), fresh)
    one_by_one.exchange(np.array([0, 1, 2, 5, 4]), fresh[:1])
    one_by_one.exchange(np.array([0, 5, 2, 3, 4]), fresh[1:])
    for strength in (at_once, one_by_one):
        strength.record(random_split(batch, 2))
    assert all(same(a, b) for a, b in zip(at_once.states(), one_by_one.states(), strict=True))
    assert torch.equal(at_once.force(), one_by_one.force())


def test_a_copy_keeps_what_was_when_more_is_recorded():
    batch = make_batch([water()], 4.0)
    strength = RelativeStrength([empty_bias_state()], SETTINGS)
    strength.record(random_split(batch, 1))
    kept = copy.copy(strength)
    before = kept.state(0)
    strength.record(random_split(batch, 2))
    strength.exchange(np.array([1]), [empty_bias_state()])
    assert same(kept.state(0), before)


def test_windows_cut_shorter_keep_the_newest_samples():
    long = BiasState(force_squared=np.arange(5.0), gradient_squared=np.ones(5))
    strength = RelativeStrength([long], SETTINGS)
    np.testing.assert_array_equal(strength.state(0).force_squared, [2.0, 3.0, 4.0])


def test_recording_and_strengths_never_wait_for_the_device():
    batch = make_batch([water(), ethanol()], 4.0).to(torch.device("meta"))
    strength = RelativeStrength([empty_bias_state() for _ in range(2)], SETTINGS, device="meta")
    strength.record(split(batch, virial=1.0, strain=1.0))
    strength.exchange(np.array([0, 2]), [empty_bias_state()])
    assert strength.force().device.type == strength.stress().device.type == "meta"
    assert strength.force().shape == (2,)
