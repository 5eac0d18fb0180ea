"""How long evenly sampled series remember: autocorrelation, correlation time, error of a mean, period.

Series may come in pieces (several walkers, one broken off and another begun): they share one mean, so that what moves more
slowly than a piece is long still counts. Shapes: n samples, L lags. Times are in samples.

A. Sokal, *Monte Carlo Methods in Statistical Mechanics* (1996), in Functional Integration (Plenum, 1997), sections 3 and 4.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.frames import FloatArray

WINDOW = 5.0
"""Sokal's c: the correlation time is summed up to the first lag of at least so many correlation times."""
ENOUGH = 20.0
"""Correlation times that a series must be long for its own to be believed."""
INDEPENDENT = 0.5
"""Correlation time of independent samples, the least that is ever told: of a shorter one too little can be known."""
FEWEST = 10
"""With fewer samples in all, how far their mean is off is unknown: their correlation is lost in its noise."""


def autocorrelation(pieces: Sequence[FloatArray], *, biased: bool = True) -> FloatArray:
    """(L,) autocorrelation ρ at lags 0 … L − 1, L the length of the longest piece; ρ₀ = 1.

    Args:
        pieces: (n,) or, for vectors, (n, D) samples each; products are summed over D.
        biased: divide the sum at lag k by the number of all samples, whatever k: less noise at long lags, where fewer pairs are
            left, at the price of a factor 1 − k/n. Otherwise by the number of pairs of that lag.

    Returns:
        ones at every lag where nothing moves; empty without samples.
    """
    series = [np.asarray(piece, dtype=np.float64).reshape(len(piece), -1) for piece in pieces if len(piece)]
    if not series:
        return np.zeros(0)
    everything = np.concatenate(series)
    mean = everything.mean(axis=0)
    lags = max(len(piece) for piece in series)
    sums, pairs = np.zeros(lags), np.zeros(lags)
    for piece in series:
        own = len(piece)
        padded = np.fft.rfft(piece - mean, n=2 * own, axis=0)  # twice as long: the end does not meet the beginning
        products = np.fft.irfft(np.abs(padded) ** 2, n=2 * own, axis=0)[:own]
        sums[:own] += products.sum(axis=1)
        pairs[:own] += own - np.arange(own)
    if sums[0] <= np.finfo(np.float64).eps * np.square(everything).sum():
        return np.ones(lags)
    covariance: FloatArray = sums / (len(everything) if biased else pairs)
    correlation: FloatArray = covariance / covariance[0]
    return correlation


def integrated_time(correlation: FloatArray) -> float:
    """Integrated autocorrelation time τ = ½ + Σ ρ_k, in samples, over Sokal's automatic window; never below ½.

    The sum ends at the first lag M ≥ c τ(M), c = 5, or with the data: then τ is too short, see :func:`is_resolved`.
    Independent samples give ½, an exponential decay exp(−t/T) sampled finely gives T, and n samples are worth n/(2τ)
    independent ones. Where ρ swings far below 0, τ is smaller than the time in which ρ decays. Where ρ alternates from sample
    to sample, as by chance in a short series, the larger of two sums in a row counts, and an error is rather too large.

    Args:
        correlation: (L,) ρ from lag 0, L ≥ 1.
    """
    sums = INDEPENDENT + np.concatenate([np.zeros(1), np.cumsum(correlation[1:])])
    times = np.maximum(np.maximum(sums, np.concatenate([sums[:1], sums[:-1]])), INDEPENDENT)
    enough = np.arange(len(times)) >= WINDOW * times
    window = int(np.argmax(enough)) if enough.any() else len(times) - 1
    return float(times[window])


def is_resolved(correlation: FloatArray) -> bool:
    """Whether the longest piece, of L samples, is at least 20 correlation times long: ten samples or more.

    Shorter ones do not tell a slow motion from a drift, and their correlation time comes out too short.
    """
    return len(correlation) >= ENOUGH * integrated_time(correlation)


def standard_error(pieces: Sequence[FloatArray]) -> float:
    """Standard error of the mean of all samples, √(2 τ s²/n); NaN, not known, for fewer than ten.

    Args:
        pieces: (n,) samples each.
    """
    values = np.concatenate([np.asarray(piece, dtype=np.float64) for piece in pieces]) if pieces else np.zeros(0)
    if len(values) < FEWEST:
        return float("nan")
    time = integrated_time(autocorrelation(pieces))
    return float(np.sqrt(2.0 * time * values.var(ddof=1) / len(values)))


def dominant_period(correlation: FloatArray, *, least: float = 0.0) -> float | None:
    """Period of an oscillation, in samples: where ρ is largest between its second and third change of sign.

    That is the first positive peak after the first zero. Of exp(−t/T) cos(2πt/P) it lies at P (1 − atan(P/2πT)/2π). A parabola
    through the largest value and its neighbours places it between samples.

    Args:
        correlation: (L,) ρ from lag 0.
        least: peaks that are not higher than this are noise.

    Returns:
        None where ρ does not come back above 0, or still rises at its last lag.
    """
    below = np.flatnonzero(correlation <= 0)
    if len(below) == 0:
        return None
    back = below[0] + np.flatnonzero(correlation[below[0] :] > 0)
    if len(back) == 0:
        return None
    down = back[0] + np.flatnonzero(correlation[back[0] :] <= 0)
    end = int(down[0]) if len(down) else len(correlation)
    peak = int(back[0] + np.argmax(correlation[back[0] : end]))
    if peak == len(correlation) - 1 or correlation[peak] <= least:
        return None
    before, here, after = correlation[peak - 1 : peak + 2]
    return peak + float(0.5 * (before - after) / (before - 2.0 * here + after))
