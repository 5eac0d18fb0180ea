"""Intervals of shares against an independent implementation."""

import pytest
from scipy.stats import binomtest

from pipeline.analysis.intervals import share_interval


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (10, 10), (3, 10), (95, 100), (1, 1)])
def test_the_interval_is_the_exact_binomial_one(hits: int, count: int) -> None:
    expected = binomtest(hits, count).proportion_ci(0.95, method="exact")
    assert share_interval(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-10)


def test_without_trials_any_share_is_possible() -> None:
    assert share_interval(0, 0) == (0.0, 1.0)
