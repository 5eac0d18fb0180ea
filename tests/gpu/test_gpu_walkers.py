"""Walkers on a GPU: the steps of the CPU, no wait for the device within an interval, and no more memory than there is."""

import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))  # the small models of the unit tests

from engine import ethanol, model, water, zoo
from test_propagation import bare, crystals, hilly, pressed, with_hills
from test_walkers import batch_of, newborn, nursery_of, settings_of

from pipeline.dynamics import capacity

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = "cuda"
TOLERANCE = 1e-7
"""Largest difference of float64 trajectories of 20 steps between two devices, Å and Å per time unit."""


@contextmanager
def no_waiting():
    """Whatever makes the host wait for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def batches(subject):
    """A batch of each kind."""
    free = settings_of()
    yield "NVT", batch_of(subject, free, [newborn(f, seed=k, name=f"w{k}") for k, f in enumerate(zoo(30))])
    yield "NPT", batch_of(subject, pressed(), crystals())
    hills = [bare(water(20)), bare(ethanol(20), name="v")]
    yield "hills", with_hills(subject, hilly(), hills, nursery=nursery_of(hilly(), [water()], 2))


def test_a_gpu_makes_the_steps_of_the_cpu():
    on_cpu, on_gpu = batches(model()), batches(model().to(DEVICE))
    for (kind, one), (_, other) in zip(on_cpu, on_gpu, strict=True):
        expected, found = one.run(20), other.run(20)
        for a, b in zip(found.walkers, expected.walkers, strict=True):
            for name in ("velocities", "forces", "virial", "strain_rate"):
                np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=TOLERANCE, rtol=0, err_msg=kind)
            np.testing.assert_allclose(a.frame.positions, b.frame.positions, atol=TOLERANCE, rtol=0)
            np.testing.assert_allclose(a.frame.cell, b.frame.cell, atol=TOLERANCE, rtol=0)
        assert [c.walker for c in found.candidates] == [c.walker for c in expected.candidates]
        for a, b in zip(found.candidates, expected.candidates, strict=True):
            np.testing.assert_allclose(a.atomic_uncertainty, b.atomic_uncertainty, rtol=1e-5)


def test_an_interval_never_waits_for_the_gpu():
    for kind, batch in batches(model(dtype=torch.float32).to(DEVICE)):
        batch.run(11)
        walk = batch._walk
        with no_waiting():
            for last in (False, False, False, True):
                walk.step(uncertainty=last)
                walk.moving.wear()
        assert walk.clock == 15, kind


def test_a_continued_walker_makes_the_steps_of_an_uninterrupted_one_up_to_rounding():
    """Not to the bit: the gradient of the edges is summed by a GPU in the order in which its threads come by."""
    subject = model().to(DEVICE)
    for settings, start in (
        (settings_of(), [newborn(f, seed=k, name=f"w{k}") for k, f in enumerate(zoo(30))]),
        (pressed(), crystals()),
    ):
        whole = batch_of(subject, settings, start).run(40)
        first = batch_of(subject, settings, start).run(17)
        second = batch_of(subject, settings, first.walkers).run(23)
        for a, b in zip(second.walkers, whole.walkers, strict=True):
            np.testing.assert_allclose(a.frame.positions, b.frame.positions, atol=TOLERANCE, rtol=0)
            np.testing.assert_allclose(a.frame.cell, b.frame.cell, atol=TOLERANCE, rtol=0)


def test_what_an_evaluation_takes_is_foreseen(monkeypatch):
    monkeypatch.setattr(capacity, "UNMEASURED", 0)
    subject, settings = model(dtype=torch.float32).to(DEVICE), settings_of()
    many = batch_of(subject, settings, [newborn(ethanol(k), seed=k) for k in range(512)])
    foreseen = many._capacity._per_entry * many._walk.moving.batch.neighbors.numel()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    many.run(7)  # the bias is sampled at the last
    taken = torch.cuda.max_memory_allocated() - before
    assert 0.3 * foreseen < taken < 1.5 * foreseen


def test_a_batch_that_is_too_large_is_evaluated_in_parts(monkeypatch):
    monkeypatch.setattr(capacity, "UNMEASURED", 10**12)  # nothing is foreseen: it has to be met
    subject, settings = model(dtype=torch.float32).to(DEVICE), settings_of()
    many = batch_of(subject, settings, [newborn(ethanol(k), seed=k) for k in range(512)])
    torch.cuda.reset_peak_memory_stats()
    many.run(7)
    peak = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    try:
        torch.cuda.set_per_process_memory_fraction(0.7 * peak / torch.cuda.mem_get_info()[1])
        many.run(7)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert many._capacity.parts >= 2
