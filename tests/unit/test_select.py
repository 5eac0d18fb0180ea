"""The select task with a real model and real files."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_selection import SIZE, candidate, ethanol, identities, in_flight, picks_of, task_in, train_model

from pipeline.frames import Frame
from pipeline.potentials import Model
from pipeline.records import FileRef, Status, StopReason
from pipeline.select import run_select
from pipeline.selection import kernel_rows
from pipeline.selection.kernel import maxdet


@pytest.fixture(scope="module")
def labelled() -> list[Frame]:
    return [ethanol(seed) for seed in range(6)]


@pytest.fixture(scope="module")
def model(labelled: list[Frame]) -> Model:
    return train_model(labelled)


def test_picks_are_those_of_the_kernel_method(tmp_path: Path, model: Model, labelled: list[Frame]) -> None:
    pool = [candidate(ethanol(seed, 0.2), seed) for seed in range(100, 130)]
    result = run_select(task_in(tmp_path, model, labelled, pool))
    assert result.status is Status.DONE
    ordered = [*pool[::2], *pool[1::2]]
    expected = maxdet(model.kernel_features([item.frame for item in ordered]), 4)
    assert identities(picks_of(result)) == [ordered[k].frame.identity for k in expected]
    assert result.dropped == {"surplus": 26}


def test_picks_carry_the_newest_uncertainties(tmp_path: Path, model: Model, labelled: list[Frame]) -> None:
    pool = [candidate(ethanol(seed, 0.2), seed) for seed in range(100, 106)]
    result = run_select(task_in(tmp_path, model, labelled, pool))
    for picked in picks_of(result):
        fresh = model.evaluate([picked.frame])
        assert fresh.total_uncertainty is not None
        assert picked.total_uncertainty == pytest.approx(float(fresh.total_uncertainty[0]), rel=1e-5)
        assert picked.model_version == 1  # who moved it
        assert picked.atomic_uncertainty.shape == (SIZE,)
        assert picked.atomic_uncertainty.dtype == np.float32


def test_what_is_known_in_flight_or_seen_twice_is_dropped(tmp_path: Path, model: Model, labelled: list[Frame]) -> None:
    fresh = [ethanol(seed, 0.2) for seed in (200, 201, 202)]
    pool = [candidate(frame, k) for k, frame in enumerate([labelled[0], fresh[0], fresh[1], fresh[1], fresh[2]])]
    task = replace(task_in(tmp_path, model, labelled, pool), in_flight=in_flight(tmp_path, fresh[:1]))
    result = run_select(task)
    assert result.dropped == {"duplicate": 3}
    assert sorted(identities(picks_of(result))) == sorted(frame.identity for frame in fresh[1:])


def test_unphysical_candidates_are_dropped_and_counted(tmp_path: Path, model: Model, labelled: list[Frame]) -> None:
    broken, close, good = ethanol(300), ethanol(301), ethanol(302)
    broken.positions[0] = np.nan
    close.positions[1] = close.positions[0] + 0.1
    pool = [candidate(frame, k) for k, frame in enumerate((broken, close, good))]
    result = run_select(task_in(tmp_path, model, labelled, pool))
    assert result.dropped == {"not_finite": 1, "too_close": 1}
    assert identities(picks_of(result)) == [good.identity]


@pytest.mark.parametrize("kind", ["maxdet", "maxdist", "lcmd", "maxdiag"])
def test_candidates_without_finite_features_are_dropped_and_counted(
    kind: str, tmp_path: Path, model: Model, labelled: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = [candidate(ethanol(seed), seed) for seed in range(310, 318)]
    bad = {pool[3].frame.identity: np.nan, pool[6].frame.identity: np.inf, labelled[2].identity: np.nan}
    features = Model.kernel_features

    def broken(self: Model, frames: Sequence[Frame], batch_size: int = 64) -> np.ndarray:
        factors = np.array([bad.get(frame.identity, 1.0) for frame in frames])
        return features(self, frames, batch_size) * factors[:, None]

    good = [item for k, item in enumerate(pool) if k not in (3, 6)]
    expected = run_select(task_in(tmp_path, model, labelled[:2] + labelled[3:], good, kind=kind))
    monkeypatch.setattr(Model, "kernel_features", broken)
    (tmp_path / "broken").mkdir()
    result = run_select(task_in(tmp_path / "broken", model, labelled, pool, kind=kind))
    assert result.dropped == {"not_finite": 2, "surplus": 2}
    assert sorted(identities(picks_of(result))) == sorted(identities(picks_of(expected)))


@pytest.mark.parametrize("kind", ["maxdist", "lcmd"])
def test_single_precision_tells_candidates_apart_that_have_much_in_common(
    kind: str, tmp_path: Path, model: Model, labelled: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = [candidate(ethanol(seed, 0.2), seed) for seed in range(700, 730)]
    task = task_in(tmp_path, model, labelled, pool, kind=kind)
    expected = identities(picks_of(run_select(task)))
    features = Model.kernel_features
    spread = float(np.ptp(features(model, [item.frame for item in pool]), axis=0).max())

    def far_away(self: Model, frames: Sequence[Frame], batch_size: int = 64) -> np.ndarray:
        return features(self, frames, batch_size) + 1e4 * spread

    monkeypatch.setattr(Model, "kernel_features", far_away)
    monkeypatch.setattr(kernel_rows, "SINGLE_ABOVE_BYTES", 0)
    assert identities(picks_of(run_select(replace(task, output=str(tmp_path / "single"))))) == expected


def test_large_predicted_forces_are_dropped(tmp_path: Path, model: Model, labelled: list[Frame]) -> None:
    frames = [ethanol(seed, 0.2) for seed in range(400, 408)]
    largest = [np.linalg.norm(model.evaluate([frame]).forces, axis=1).max() for frame in frames]
    limit = float(np.median(largest))
    pool = [candidate(frame, k) for k, frame in enumerate(frames)]
    result = run_select(task_in(tmp_path, model, labelled, pool, max_force_eV_per_A=limit))
    gentle = {frame.identity for frame, force in zip(frames, largest, strict=True) if force <= limit}
    assert result.dropped == {"force": 4}
    assert set(identities(picks_of(result))) <= gentle


def test_thinning_keeps_the_frames_walkers_stopped_at(tmp_path: Path, model: Model, labelled: list[Frame]) -> None:
    pool = [candidate(ethanol(seed, 0.12), seed) for seed in range(500, 520)]
    stops = [3, 11]
    for k in stops:
        pool[k] = replace(pool[k], reason=StopReason.UNCERTAIN)
    result = run_select(task_in(tmp_path, model, labelled, pool, max_candidates=4))
    assert result.dropped == {"thinned": 16}
    assert result.count == 4
    assert {pool[k].frame.identity for k in stops} <= set(identities(picks_of(result)))


@pytest.mark.parametrize("kind", ["maxdet", "maxdist", "lcmd", "maxdiag", "random"])
def test_the_same_task_picks_the_same_whatever_came_before(
    kind: str, tmp_path: Path, model: Model, labelled: list[Frame]
) -> None:
    pool = [candidate(ethanol(seed, 0.2), seed) for seed in range(600, 620)]
    task = task_in(tmp_path, model, labelled, pool, kind=kind)
    first = run_select(task)
    run_select(replace(task, count=2, seed=9, output=str(tmp_path / "other")))
    again = run_select(replace(task, output=str(tmp_path / "again")))
    assert first.count == 4
    assert identities(picks_of(first)) == identities(picks_of(again))
    assert [p.total_uncertainty for p in picks_of(first)] == [p.total_uncertainty for p in picks_of(again)]


def test_nothing_proposed_gives_nothing_to_label(tmp_path: Path, model: Model, labelled: list[Frame]) -> None:
    result = run_select(task_in(tmp_path, model, labelled, []))
    assert result.status is Status.DONE
    assert picks_of(result) == []
    assert result.count == 0


def test_a_changed_shard_is_a_failure_that_names_it(tmp_path: Path, model: Model, labelled: list[Frame]) -> None:
    task = task_in(tmp_path, model, labelled, [candidate(ethanol(1), 0)])
    bad = FileRef(path=task.candidates[0].path, sha256="0" * 64)
    result = run_select(replace(task, candidates=(bad,)))
    assert result.status is Status.FAILED
    assert "a.h5" in result.reason


def test_picks_that_cannot_be_written_are_a_failure_that_names_the_place(
    tmp_path: Path, model: Model, labelled: list[Frame]
) -> None:
    task = task_in(tmp_path, model, labelled, [candidate(ethanol(1), 0)])
    (tmp_path / "scratch").write_text("in the way")
    result = run_select(task)
    assert result.status is Status.FAILED
    assert str(tmp_path / "scratch") in result.reason
