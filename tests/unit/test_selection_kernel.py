"""Selection methods against an independent implementation and brute force."""

import numpy as np
import pytest
import torch
from bmdal_reg.bmdal.feature_data import TensorFeatureData
from bmdal_reg.bmdal.feature_maps import IdentityFeatureMap
from bmdal_reg.bmdal.features import Features
from bmdal_reg.bmdal.selection import (
    LargestClusterMaxDistSelectionMethod,
    MaxDetSelectionMethod,
    MaxDiagSelectionMethod,
    MaxDistSelectionMethod,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.selection.kernel import at_random, lcmd, maxdet, maxdiag, maxdist

COUNT = 25


def clustered(n: int, p: int, seed: int) -> np.ndarray:
    """Features as walkers give them: lumps of very different sizes."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(6, p)) * rng.uniform(0.5, 3.0, size=(6, 1))
    return centres[rng.integers(6, size=n)] + 0.3 * rng.normal(size=(n, p))


def oracle(kind: str, pool: np.ndarray, train: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)  # the oracle was written for numpy 1
    wrapped = [
        Features(IdentityFeatureMap(n_features=x.shape[1]), TensorFeatureData(torch.from_numpy(x)))
        for x in (pool, train)
    ]
    match kind:
        case "maxdiag":
            return MaxDiagSelectionMethod(wrapped[0]).select(COUNT).tolist()[::-1]
        case "maxdet":
            return MaxDetSelectionMethod(*wrapped, verbosity=0).select(COUNT).tolist()
        case "maxdist":
            return MaxDistSelectionMethod(*wrapped, verbosity=0).select(COUNT).tolist()
        case _:
            return LargestClusterMaxDistSelectionMethod(*wrapped, verbosity=0).select(COUNT).tolist()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["maxdiag", "maxdet", "maxdist", "lcmd"])
def test_picks_are_those_of_bmdal_reg(kind: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, train = clustered(400, 32, seed), clustered(60, 32, seed + 100)
    ours = {
        "maxdiag": lambda: maxdiag(pool, COUNT),
        "maxdet": lambda: maxdet(pool, COUNT),
        "maxdist": lambda: maxdist(pool, train, COUNT),
        "lcmd": lambda: lcmd(pool, train, COUNT),
    }[kind]()
    assert ours == oracle(kind, pool, train, monkeypatch)


def test_maxdet_maximises_the_determinant_greedily() -> None:
    features = clustered(40, 12, 5)
    kernel = features @ features.T
    picks: list[int] = []
    for _ in range(8):
        determinants = [
            -np.inf if k in picks else np.linalg.slogdet(kernel[np.ix_([*picks, k], [*picks, k])])[1] for k in range(40)
        ]
        picks.append(int(np.argmax(determinants)))
    assert maxdet(features, 8) == picks


def test_maxdist_picks_the_farthest_point_each_time() -> None:
    pool, train = clustered(50, 6, 7), clustered(10, 6, 8)
    known = list(train)
    for pick in maxdist(pool, train, 10):
        distances = [min(np.linalg.norm(x - y) for y in known) for x in pool]
        assert pick == int(np.argmax(distances))
        known.append(pool[pick])


@pytest.mark.parametrize("method", [maxdet, maxdiag])
def test_a_set_smaller_than_the_batch_is_taken_whole(method) -> None:
    assert sorted(method(clustered(5, 3, 1), 9)) == list(range(5))


def test_maxdet_never_picks_twice_beyond_the_rank() -> None:
    low_rank = clustered(30, 2, 3)
    assert sorted(set(maxdet(low_rank, 20))) == sorted(maxdet(low_rank, 20))
    assert len(maxdet(low_rank, 20)) == 20
    assert maxdet(np.zeros((4, 3)), 2) == [0, 1]


def test_the_first_pick_without_training_set_is_the_most_uncertain() -> None:
    features = clustered(30, 4, 2)
    top = maxdiag(features, 1)
    none = np.zeros((0, 4))
    assert maxdist(features, none, 3)[:1] == top
    assert lcmd(features, none, 3)[:1] == top
    assert maxdet(features, 3)[:1] == top


def test_equal_candidates_go_by_index() -> None:
    same = np.ones((6, 3))
    assert maxdiag(same, 3) == [0, 1, 2]
    assert maxdet(same, 3) == [0, 1, 2]
    assert maxdist(same, np.zeros((1, 3)), 3) == [0, 1, 2]
    assert lcmd(same, np.zeros((1, 3)), 3) == [0, 1, 2]


@given(
    n=st.integers(0, 20),
    m=st.integers(0, 5),
    p=st.integers(1, 5),
    count=st.integers(0, 25),
    seed=st.integers(0, 2**16),
    zero=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_method_picks_distinct_candidates_as_many_as_asked(
    n: int, m: int, p: int, count: int, seed: int, zero: bool
) -> None:
    rng = np.random.default_rng(seed)
    pool, train = rng.normal(size=(n, p)) * (not zero), rng.normal(size=(m, p))
    for picks in (
        maxdiag(pool, count),
        maxdet(pool, count),
        maxdist(pool, train, count),
        lcmd(pool, train, count),
        at_random(n, count, seed),
    ):
        assert len(picks) == min(n, count)
        assert len(set(picks)) == len(picks)
        assert all(0 <= k < n for k in picks)


def test_random_picks_follow_the_seed() -> None:
    assert at_random(100, 10, 1) == at_random(100, 10, 1)
    assert at_random(100, 10, 1) != at_random(100, 10, 2)
