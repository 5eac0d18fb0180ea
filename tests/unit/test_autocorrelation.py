"""Autocorrelation against counting by hand, a process whose answers are known, and a damped cosine."""

import numpy as np
import pytest

from pipeline.analysis.autocorrelation import (
    autocorrelation,
    dominant_period,
    integrated_time,
    is_resolved,
    standard_error,
)


def autoregressive(phi: float, count: int, length: int, seed: int = 0) -> np.ndarray:
    """(count, length) stationary AR(1) series of variance 1: ρ_k = φ^k."""
    noise = np.random.default_rng(seed).normal(size=(count, length))
    values = np.empty_like(noise)
    values[:, 0] = noise[:, 0]
    for k in range(1, length):
        values[:, k] = phi * values[:, k - 1] + np.sqrt(1 - phi**2) * noise[:, k]
    return values


def damped(period: float, decay: float, length: int) -> np.ndarray:
    times = np.arange(length)
    return np.exp(-times / decay) * np.cos(2 * np.pi * times / period)


@pytest.mark.parametrize("biased", [True, False])
def test_it_is_what_counting_pairs_gives_also_over_pieces_of_unequal_length(biased: bool) -> None:
    pieces = [autoregressive(0.7, 1, n, seed=n)[0] for n in (17, 5, 30)]
    mean = np.concatenate(pieces).mean()
    total = sum(len(piece) for piece in pieces)

    def covariance(lag: int) -> float:
        products = [(p[i] - mean) * (p[i + lag] - mean) for p in pieces for i in range(len(p) - lag)]
        return sum(products) / (total if biased else len(products))

    expected = [covariance(lag) / covariance(0) for lag in range(30)]
    np.testing.assert_allclose(autocorrelation(pieces, biased=biased), expected, atol=1e-12)


def test_vectors_are_correlated_by_their_scalar_product() -> None:
    values = np.random.default_rng(1).normal(size=(40, 2))
    moved = values - values.mean(axis=0)
    expected = [(moved[: 40 - k] * moved[k:]).sum() / (moved**2).sum() for k in range(40)]
    np.testing.assert_allclose(autocorrelation([values]), expected, atol=1e-12)


def test_correlations_and_time_of_an_autoregressive_process_are_the_exact_ones() -> None:
    phi = 0.9
    correlation = autocorrelation(list(autoregressive(phi, 20, 20_000)))
    lags = np.arange(30)
    np.testing.assert_allclose(correlation[lags], phi**lags, atol=0.02)
    assert integrated_time(correlation) == pytest.approx(0.5 * (1 + phi) / (1 - phi), rel=0.04)  # 9.5
    assert is_resolved(correlation)


def test_the_error_of_a_mean_is_how_much_means_scatter() -> None:
    phi, length = 0.8, 2000
    series = autoregressive(phi, 400, length, seed=2)
    exact = np.sqrt(((1 + phi) / (1 - phi) - 2 * phi * (1 - phi**length) / (length * (1 - phi) ** 2)) / length)
    assert series.mean(axis=1).std() == pytest.approx(exact, rel=0.1)
    found = [standard_error([one]) for one in series]
    assert np.mean(found) == pytest.approx(exact, rel=0.05)
    # in pieces, the same samples are worth as much
    assert standard_error(list(series)) == pytest.approx(exact / np.sqrt(len(series)), rel=0.05)


def test_independent_samples_are_worth_their_number() -> None:
    values = np.random.default_rng(3).normal(size=100_000)
    assert integrated_time(autocorrelation([values])) == pytest.approx(0.5, abs=0.02)
    assert standard_error([values]) == pytest.approx(1 / np.sqrt(100_000), rel=0.03)


@pytest.mark.parametrize("length", [10, 15, 20])
def test_few_independent_samples_are_not_trusted_more_than_independence_allows(length: int) -> None:
    series = np.random.default_rng(length).normal(size=(1000, length))
    scores = np.array([abs(one.mean()) / standard_error([one]) for one in series])
    assert np.mean(scores > 2.0) < 0.1  # Student's t gives 0.077, 0.065, 0.060
    correlations = [autocorrelation([one]) for one in series]
    assert min(integrated_time(correlation) for correlation in correlations) == 0.5
    noise = 2.0 / np.sqrt(length)
    assert np.mean([dominant_period(correlation, least=noise) is not None for correlation in correlations]) < 0.05


@pytest.mark.parametrize("length", [20, 2000])
def test_the_error_of_alternating_samples_is_rather_too_large(length: int) -> None:
    series = autoregressive(-0.8, 300, length, seed=5)
    errors = [standard_error([one]) for one in series]
    assert np.quantile(errors, 0.05) > series.mean(axis=1).std()


def test_a_slow_motion_below_an_alternating_one_counts() -> None:
    lags = np.arange(2000)
    correlation = 0.7 * (-0.9) ** lags + 0.3 * 0.98**lags
    exact = 0.5 + 0.7 * -0.9 / 1.9 + 0.3 * 0.98 / 0.02
    assert exact / 2 < integrated_time(correlation) < exact  # the window, five times that, cuts the tail off


@pytest.mark.parametrize(("period", "decay"), [(40.0, 200.0), (40.0, 25.0), (13.3, 30.0)])
def test_the_period_of_a_damped_cosine_is_found_between_samples(period: float, decay: float) -> None:
    expected = period * (1 - np.arctan(period / (2 * np.pi * decay)) / (2 * np.pi))
    found = dominant_period(damped(period, decay, 300))
    assert found == pytest.approx(expected, abs=0.05)


def test_an_oscillation_in_noise_is_found_and_noise_alone_is_not_taken_for_one() -> None:
    times = np.arange(4000)
    rng = np.random.default_rng(4)
    swinging = np.cos(2 * np.pi * times / 50 + 0.3) + rng.normal(scale=0.5, size=4000)
    assert dominant_period(autocorrelation([swinging]), least=0.1) == pytest.approx(50.0, abs=1.0)
    for seed in range(10):
        assert dominant_period(autocorrelation(list(autoregressive(0.5, 1, 4000, seed))), least=0.1) is None


def test_there_is_no_period_without_a_way_back_above_zero() -> None:
    assert dominant_period(0.9 ** np.arange(50)) is None
    assert dominant_period(damped(40.0, 100.0, 25)) is None  # ends below 0
    assert dominant_period(damped(40.0, 100.0, 35)) is None  # ends on the way up
    assert dominant_period(np.ones(1)) is None


def test_a_run_that_is_too_short_for_its_correlation_time_says_so() -> None:
    assert not is_resolved(0.99 ** np.arange(50))
    assert is_resolved(0.5 ** np.arange(50))
    alternating = (-0.9) ** np.arange(10)
    assert is_resolved(alternating)
    assert not is_resolved(alternating[:9])


def test_series_without_motion_or_samples_are_no_error() -> None:
    np.testing.assert_array_equal(autocorrelation([np.full(5, 1412.3)]), np.ones(5))
    assert autocorrelation([]).shape == (0,)
    assert autocorrelation([np.zeros(0), np.arange(4.0)]).shape == (4,)
    assert np.isnan(standard_error([np.ones(1)]))
    assert np.isnan(standard_error([np.arange(5.0), np.arange(4.0)]))  # too few in all
    assert standard_error([np.arange(5.0), np.arange(5.0)]) > 0
    assert np.isnan(standard_error([]))
