"""τ in the life of a walker: what the schedules promise, and that the adaptive one keeps a deadline."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dynamics.schedules import first_tau, tau_at
from pipeline.settings.walkers import AdaptiveTau, BiasSettings, RampTau


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def adaptive(tau=0.25, steps=100, least=0.05, most=0.9) -> BiasSettings:
    return BiasSettings(tau=tau, schedule=AdaptiveTau(steps=steps, least=least, most=most))


def life(settings, ages, progress):
    """τ at each check of one walker."""
    tau, found = tensor(first_tau(settings)), []
    for age, reached in zip(ages, progress, strict=True):
        tau = tau_at(settings, tau=tau, ages=torch.tensor([age]), progress=tensor(reached))
        found.append(tau.item())
    return found


def test_a_constant_tau_stays_as_it_is():
    tau = tensor(0.1, 0.7)
    assert tau_at(BiasSettings(tau=0.3), tau=tau, ages=torch.tensor([0, 900]), progress=tensor(0.0, 2.0)) is tau
    assert first_tau(BiasSettings(tau=0.3)) == 0.3


def test_a_ramp_is_linear_in_age_and_ends_at_tau():
    settings = BiasSettings(tau=0.6, schedule=RampTau(first=0.2, steps=40))
    ages = torch.tensor([0, 10, 40, 1000])
    tau = tau_at(settings, tau=torch.zeros(4, dtype=torch.float64), ages=ages)
    torch.testing.assert_close(tau, tensor(0.2, 0.3, 0.6, 0.6), rtol=1e-14, atol=0)
    assert first_tau(settings) == tau[0].item() == 0.2
    assert tau[3].item() == 0.6


lives = st.lists(st.tuples(st.integers(1, 40), st.floats(0, 3) | st.just(float("nan"))), min_size=1, max_size=12)
least = st.floats(0, 1)


@given(least, st.floats(0, 1), st.floats(0, 1), lives)
def test_an_adaptive_tau_never_leaves_its_bounds(low, width, place, steps):
    most = low + max(width, 1e-3)
    settings = adaptive(tau=min(low + place * (most - low), most), least=low, most=most)
    ages = np.cumsum([step for step, _ in steps])
    assert all(low <= tau <= most for tau in life(settings, ages, [p for _, p in steps]))
    outside = tau_at(settings, tau=tensor(0.0, 5.0), ages=torch.tensor([3, 3]))
    assert outside.tolist() == [low, most]


@given(least, st.floats(0, 1), st.floats(0, 1), st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_a_walker_late_at_every_check_has_the_most_from_half_its_time_on(low, width, place, steps):
    most = low + max(width, 1e-3)
    settings = adaptive(tau=min(low + place * (most - low), most), least=low, most=most)
    ages = np.cumsum(steps)
    barely_late = [np.nextafter(age / 100, 0.0) for age in ages]
    found = life(settings, ages, barely_late)
    assert found == sorted(found)
    assert all(tau == most for tau, age in zip(found, ages, strict=True) if age >= 50)


def test_a_walker_on_time_keeps_its_tau_and_one_slightly_early_keeps_it_roughly():
    ages = np.arange(5, 101, 5)
    assert life(adaptive(), ages, ages / 100) == [0.25] * 20
    slightly = life(adaptive(), ages, 1.02 * ages / 100)
    assert slightly == sorted(slightly, reverse=True)
    assert slightly[-1] == pytest.approx(0.25, abs=0.06)


def test_a_walker_far_ahead_falls_to_the_least():
    ages = np.arange(5, 101, 5)
    found = life(adaptive(), ages, 2.0 * ages / 100)
    assert found == sorted(found, reverse=True)
    assert all(tau == 0.05 for tau, age in zip(found, ages, strict=True) if age >= 50)
    # a start structure that is not well known says little about a young walker
    assert life(adaptive(), [1], [0.5])[0] == pytest.approx(0.25, abs=0.01)


def test_adaptive_tau_reaches_the_threshold_in_time_where_constant_tau_never_does():
    # progress relaxes to drive · τ; with τ = 0.25 only those of the largest drive get past 1
    drive = torch.linspace(1.4, 5.0, 37, dtype=torch.float64)
    wanted, check = 400, 5
    settings = {
        "constant": BiasSettings(tau=0.25),
        "adaptive": adaptive(steps=wanted, least=0.0, most=1.0),
    }
    reached, mean_tau = {}, {}
    for name, bias in settings.items():
        noise = torch.Generator().manual_seed(3)
        tau = torch.full_like(drive, first_tau(bias))
        progress, first = torch.zeros_like(drive), torch.full_like(drive, np.inf)
        taus = []
        for age in range(1, 2 * wanted + 1):
            kick = 0.01 * torch.randn(len(drive), generator=noise, dtype=torch.float64)
            progress = (progress + (drive * tau - progress) / 60 + kick).abs()
            first = torch.where((progress >= 1) & torch.isinf(first), torch.full_like(drive, age), first)
            if age % check == 0:
                tau = tau_at(bias, tau=tau, ages=torch.full(drive.shape, age), progress=progress)
                taus.append(tau)
        reached[name], mean_tau[name] = first, torch.stack(taus[: wanted // check]).mean(dim=0)
    assert (reached["adaptive"] <= wanted).all()
    late = reached["constant"] > wanted
    assert late.sum() > len(drive) // 2
    # where the constant τ is in time, the adaptive one saves some of it
    assert (mean_tau["adaptive"][-5:] < 0.25).all()


def test_whether_walkers_can_ever_be_biased_is_known_beforehand():
    assert BiasSettings().may_act
    assert not BiasSettings(tau=0).may_act
    assert BiasSettings(tau=0, tau_stress=0.1).may_act
    assert BiasSettings(tau=0, schedule=RampTau(first=0.1, steps=5)).may_act
    assert adaptive(tau=0.0, least=0.0).may_act


@pytest.mark.parametrize("settings", [BiasSettings(), adaptive(), BiasSettings(schedule=RampTau(steps=5))], ids=str)
def test_schedules_never_wait_for_the_device(settings):
    tau, ages = torch.zeros(3, dtype=torch.float64, device="meta"), torch.zeros(3, dtype=torch.int64, device="meta")
    for progress in (None, tau):
        assert tau_at(settings, tau=tau, ages=ages, progress=progress).device.type == "meta"
