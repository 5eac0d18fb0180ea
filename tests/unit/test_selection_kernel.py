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

from pipeline.selection import rows
from pipeline.selection.kernel import at_random, lcmd, maxdet, maxdiag, maxdist
from pipeline.selection.rows import Rows

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


def looked_at_whole(kind: str, pool: np.ndarray, train: np.ndarray, count: int) -> list[int]:
    """Greedy picks with all values computed anew from all picks each time."""
    picks: list[int] = []
    for _ in range(count):
        if kind == "maxdet":
            basis = np.linalg.qr(pool[picks].T)[0] if picks else np.zeros((pool.shape[1], 0))
            values = np.square(pool).sum(axis=1) - np.square(pool @ basis).sum(axis=1)
        else:
            points = np.concatenate([train, pool[picks]])
            values = np.min(np.square(pool[:, None] - points).sum(axis=2), axis=1)
        values[picks] = -np.inf
        picks.append(int(np.argmax(values)))
    return picks


@pytest.mark.parametrize("spectrum", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["maxdet", "maxdist"])
def test_candidates_that_were_left_alone_would_not_have_been_picked(
    kind: str, spectrum: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few candidates are kept up to date, in blocks of a few: the others catch up many times."""
    monkeypatch.setattr(rows, "FEWEST_ACTIVE", 7)
    monkeypatch.setattr(rows, "BLOCK_BYTES", 4096)
    scale = np.arange(1, 25) ** -spectrum
    rng = np.random.default_rng(11)
    pool, train = rng.normal(size=(300, 24)) * scale, rng.normal(size=(5, 24)) * scale
    found = maxdet(pool, 20) if kind == "maxdet" else maxdist(pool, train, 20)
    assert found == looked_at_whole(kind, pool, train, 20)


@pytest.mark.parametrize("active", [1, 3])
def test_equal_candidates_beyond_those_kept_up_to_date_go_by_index(
    active: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "FEWEST_ACTIVE", active)
    same = np.ones((40, 3))
    assert maxdet(same, 5) == [0, 1, 2, 3, 4]
    assert maxdist(same, np.zeros((1, 3)), 5) == [0, 1, 2, 3, 4]
    twice = np.repeat(np.eye(6), 2, axis=0)
    assert maxdet(twice, 6) == [0, 2, 4, 6, 8, 10]
    assert maxdist(twice, np.zeros((1, 6)), 6) == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("kind", ["maxdiag", "maxdet", "maxdist", "lcmd"])
def test_single_precision_picks_the_same_from_candidates_that_differ(kind: str) -> None:
    pool, train = clustered(400, 32, 3), clustered(60, 32, 4)
    method = {"maxdiag": maxdiag, "maxdet": maxdet}.get(kind)
    found = []
    for precision in (np.float64, np.float32):
        one, known = pool.astype(np.float32).astype(precision), train.astype(np.float32).astype(precision)
        chosen = {"maxdist": maxdist, "lcmd": lcmd}
        found.append(method(one, COUNT) if method else chosen[kind](one, known, COUNT))
    assert found[0] == found[1]


def test_rows_that_visit_a_device_block_by_block_are_those_that_stay_there(monkeypatch: pytest.MonkeyPatch) -> None:
    features = clustered(50, 6, 1)
    monkeypatch.setattr(rows, "BLOCK_BYTES", 7 * features[0].nbytes)
    held = Rows(features)
    blocks = list(held.blocks())
    assert [part.start for part, _ in blocks] == list(range(0, 50, 7))
    np.testing.assert_array_equal(torch.cat([block for _, block in blocks]), features)
    np.testing.assert_allclose(held.squares(), np.square(features).sum(axis=1), rtol=1e-14)
    assert all(len(block) == 1 for _, block in held.blocks(width=42))


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
