"""What selections keep for later: looked at again with every model, picked by shares of systems, or no longer needed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_selection import candidate, ethanol, identities, in_flight, picks_of, task_in, train_model

from pipeline.frames import Frame
from pipeline.potentials import Model
from pipeline.records import Candidate, FrameRows, SelectTask, Status, StopReason
from pipeline.select import run_select
from pipeline.selection.kernel import maxdet
from pipeline.selection.quotas import turns
from pipeline.selection.scores import Scored
from pipeline.shards import write_candidates

SHIFT_A = 1e-3
"""Of one atom: such structures are the same."""


@pytest.fixture(scope="module")
def labelled() -> list[Frame]:
    return [ethanol(seed) for seed in range(6)]


@pytest.fixture(scope="module")
def model(labelled: list[Frame]) -> Model:
    return train_model(labelled)


def shifted(frame: Frame) -> Frame:
    positions = frame.positions.copy()
    positions[0] += SHIFT_A
    return replace(frame, positions=positions)


def bounds(model: Model, candidates: list[Candidate]) -> np.ndarray:
    """Largest calibrated bound on an atom's force error of each, eV/Å."""
    return np.array([float(model.evaluate([one.frame]).atomic_uncertainty.max()) for one in candidates])


def kept_in(directory: Path, kept: list[Candidate]) -> FrameRows:
    """What an earlier selection kept, behind one that was labelled since, in another order than the file's."""
    file = write_candidates(directory / "kept.h5", [candidate(ethanol(9001), 0), *kept[::-1]])
    return FrameRows(file=file, rows=tuple(range(len(kept), 0, -1)))


def proposed(count: int, first: int, system: str = "m") -> list[Candidate]:
    frames = [replace(ethanol(seed, 0.2), system=system) for seed in range(first, first + count)]
    return [candidate(frame, k) for k, frame in enumerate(frames)]


def changed(task: SelectTask, directory: Path, **changes: object) -> SelectTask:
    """The same with its output elsewhere."""
    return replace(task, output=str(directory / "changed"), **changes)


def test_what_was_kept_comes_first_and_is_chosen_from_like_what_is_new(
    tmp_path: Path, model: Model, labelled: list[Frame]
) -> None:
    kept, new = proposed(12, 100), proposed(18, 200)
    task = replace(task_in(tmp_path, model, labelled, new), pool=kept_in(tmp_path, kept), keep=11)
    result = run_select(task)
    every = [*kept, *new[::2], *new[1::2]]
    picked = maxdet(model.kernel_features([one.frame for one in every]), 4)
    rest = [k for k in np.argsort(-bounds(model, every), kind="stable").tolist() if k not in picked]
    assert identities(picks_of(result)) == [every[k].frame.identity for k in [*picked, *rest[:7]]]
    assert (result.count, result.kept, result.saved) == (4, 11, 0)
    assert result.dropped == {"surplus": 19}
    again = run_select(changed(task, tmp_path))
    assert identities(picks_of(again)) == identities(picks_of(result))
    as_new = changed(task, tmp_path, pool=None, candidates=(write_candidates(tmp_path / "all.h5", every),))
    assert identities(picks_of(run_select(as_new))) == identities(picks_of(result))


def test_what_the_model_knows_by_now_is_dropped(tmp_path: Path, model: Model, labelled: list[Frame]) -> None:
    kept, new = proposed(8, 100), proposed(8, 200)
    found = bounds(model, [*kept, *new])
    limit = float(np.median(found))
    task = replace(task_in(tmp_path, model, labelled, new), pool=kept_in(tmp_path, kept), waiting=5, keep=16)
    result = run_select(replace(task, known_eV_per_A=limit))
    assert result.dropped == {"known": 8}
    unknown = {one.frame.identity for one, bound in zip([*kept, *new], found, strict=True) if bound >= limit}
    assert set(identities(picks_of(result))) == unknown
    assert result.saved == int((found[:5] < limit).sum()) > 0
    assert run_select(changed(task, tmp_path)).dropped == {}


def test_bounds_that_are_not_finite_are_never_known() -> None:
    scored = Scored([candidate(ethanol(k), k) for k in range(3)], np.zeros(3), np.array([0.1, np.nan, 3.0]))
    assert scored.known_below(1.0).tolist() == [True, False, False]
    assert scored.known_below(None).tolist() == [False, False, False]


def test_waiting_ones_outlive_new_ones_like_them_but_not_labels(
    tmp_path: Path, model: Model, labelled: list[Frame]
) -> None:
    kept = [*proposed(4, 100), candidate(shifted(labelled[3]), 5), candidate(shifted(labelled[4]), 6)]
    new = [candidate(shifted(kept[1].frame), 0), candidate(shifted(kept[2].frame), 1), *proposed(1, 300)]
    task = replace(task_in(tmp_path, model, labelled, new), pool=kept_in(tmp_path, kept), waiting=5, keep=20)
    result = run_select(replace(task, in_flight=in_flight(tmp_path, [shifted(kept[0].frame)])))
    assert result.dropped == {"duplicate": 5}
    assert set(identities(picks_of(result))) == {one.frame.identity for one in (kept[1], kept[2], kept[3], new[2])}
    assert result.saved == 2  # like one in flight, like a label; the second one like a label was not waiting


def test_only_new_candidates_are_thinned(tmp_path: Path, model: Model, labelled: list[Frame]) -> None:
    kept, new = proposed(9, 100), proposed(20, 200)
    new[7] = replace(new[7], reason=StopReason.UNCERTAIN)
    task = task_in(tmp_path, model, labelled, new, max_candidates=5)
    result = run_select(replace(task, pool=kept_in(tmp_path, kept), keep=40))
    assert result.dropped == {"thinned": 15}
    assert {one.frame.identity for one in [*kept, new[7]]} <= set(identities(picks_of(result)))


def test_picks_follow_the_shares_of_systems_in_all_labels(tmp_path: Path, model: Model, labelled: list[Frame]) -> None:
    kept, new = proposed(10, 100, "a"), [*proposed(14, 200, "b"), *proposed(4, 300, "a"), *proposed(2, 400, "c")]
    shares, before = {"a": 0.3, "b": 0.5, "c": 0.2}, {"a": 1, "b": 9}
    task = task_in(tmp_path, model, labelled, new)
    task = replace(task, pool=kept_in(tmp_path, kept), count=12, keep=15, shares=shares, labelled=before)
    result = run_select(task)
    picked = picks_of(result)[:12]
    order = turns({"a": 14, "b": 14, "c": 2}, shares, before, 12)
    assert [one.frame.system for one in picked] == order
    every = [*kept, *new[::2], *new[1::2]]
    for system in "abc":
        own = [one for one in every if one.frame.system == system]
        best = maxdet(model.kernel_features([one.frame for one in own]), order.count(system))
        expected = [own[k].frame.identity for k in best]
        assert [one.frame.identity for one in picked if one.frame.system == system] == expected
    assert (result.count, result.kept, result.dropped) == (12, 15, {"surplus": 15})


@pytest.mark.parametrize("kind", ["maxdet", "lcmd", "random"])
@pytest.mark.parametrize(("count", "keep"), [(0, 0), (0, 7), (3, 3), (5, 1000), (1000, 1000)])
@pytest.mark.parametrize("shared", [False, True])
def test_every_row_that_is_read_is_kept_or_counted(
    kind: str, count: int, keep: int, shared: bool, tmp_path: Path, model: Model, labelled: list[Frame]
) -> None:
    broken, close = ethanol(1), ethanol(2)
    broken.positions[0] = np.nan
    close.positions[1] = close.positions[0] + 0.1
    kept = [*proposed(12, 100), candidate(labelled[1], 4)]
    new = [candidate(broken, 1), candidate(close, 2), candidate(kept[1].frame, 3), *proposed(20, 200, "b")]
    limit = float(np.quantile(bounds(model, kept), 0.3))
    largest = [np.linalg.norm(model.evaluate([one.frame]).forces, axis=1).max() for one in kept]
    task = task_in(
        tmp_path,
        model,
        labelled,
        new,
        kind=kind,
        max_candidates=15,
        max_force_eV_per_A=float(np.quantile(largest, 0.8)),
    )
    result = run_select(
        replace(
            task,
            pool=kept_in(tmp_path, kept),
            waiting=4,
            count=count,
            keep=keep,
            known_eV_per_A=limit,
            shares={"b": 1.0} if shared else {},
        )
    )
    assert result.status is Status.DONE
    assert len(kept) + len(new) == result.kept + sum(result.dropped.values())
    assert len(picks_of(result)) == result.kept <= keep
    assert result.count == min(count, result.kept)
    assert {"duplicate", "known", "thinned", "too_close", "not_finite", "force"} <= set(result.dropped)


def test_when_everything_is_known_nothing_is_kept(tmp_path: Path, model: Model, labelled: list[Frame]) -> None:
    kept = proposed(3, 100)
    task = replace(task_in(tmp_path, model, labelled, []), pool=kept_in(tmp_path, kept), waiting=2, known_eV_per_A=1e9)
    result = run_select(task)
    assert (result.count, result.kept, result.saved, result.dropped) == (0, 0, 2, {"known": 3})
    assert picks_of(result) == []
