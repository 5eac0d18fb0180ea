"""Selections count on labels that are asked for and not learned yet."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_selection import candidate, ethanol, identities, in_flight, label_of, picks_of, task_in, train_model

from pipeline.select import run_select
from pipeline.selection.pending import given
from pipeline.shards import write_labels
from pipeline.uncertainty.posterior import Posterior

SIGMA = 0.1


def unit_rows(rng: np.random.Generator, count: int) -> torch.Tensor:
    """Of length 1, so that the scale of a posterior does not depend on how many it knows."""
    rows = torch.from_numpy(rng.normal(size=(count, 12)) * np.linspace(2.0, 0.1, 12))
    return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)


@pytest.mark.parametrize("pending", [1, 5, 40])
def test_conditioning_on_pending_structures_is_a_fit_with_them(pending: int) -> None:
    rng = np.random.default_rng(pending)
    train, asked, queries = (unit_rows(rng, count) for count in (20, pending, 15))
    before = Posterior.fit(train, sigma=SIGMA)
    after = Posterior.fit(torch.cat([train, asked]), sigma=SIGMA).transformed(queries)
    rows = given(before.transformed(queries).numpy(), before.transformed(asked).numpy(), SIGMA)
    assert np.allclose(rows @ rows.T, (after @ after.T).numpy(), rtol=1e-9, atol=1e-12)
    assert (np.square(rows).sum(axis=1) <= before(queries).numpy() ** 2 + 1e-12).all(), "labels never add variance"


def test_nothing_pending_leaves_every_bit_alone() -> None:
    rows = np.random.default_rng(0).normal(size=(4, 12))
    assert given(rows, np.zeros((0, 12)), SIGMA) is rows


@pytest.mark.parametrize("kind", ["maxdet", "maxdiag"])
def test_the_like_of_what_is_asked_for_is_not_asked_for_again(tmp_path: Path, kind: str) -> None:
    labelled = [ethanol(seed) for seed in range(6)]
    model = train_model(labelled)
    pool = [candidate(ethanol(seed, 0.2), seed) for seed in range(100, 116)]
    task = task_in(tmp_path, model, labelled, pool, kind=kind)
    first = picks_of(run_select(replace(task, count=1, keep=1)))[0]
    near = replace(first.frame, positions=first.frame.positions + np.random.default_rng(1).normal(0, 0.03, (9, 3)))
    as_label = write_labels(tmp_path / "late.h5", [label_of(near)])
    for known in ({"in_flight": in_flight(tmp_path, [near])}, {"unlearned": (as_label,)}):
        again = run_select(replace(task, count=1, keep=1, output=str(tmp_path / next(iter(known))), **known))
        assert identities(picks_of(again)) != identities([first])
