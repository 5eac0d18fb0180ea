"""Train and select tasks that several ranks carry out: the result of one process, and nothing left when one of them dies."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_data import copper, pool, select_task, split_labels, train_task

from pipeline.potentials import load
from pipeline.records import FileRef, Status
from pipeline.references.processes import processes_of
from pipeline.select import run_select
from pipeline.settings.training import TrainingSettings
from pipeline.shards import read_candidates
from pipeline.together import seal
from pipeline.train import run_train

SOON_S = 30.0
"""What ends within this time was not waited for: gloo alone would wait for minutes."""


def processes_in(directory: Path) -> list[int]:
    """All processes that belong to a task with its files there: what starts ranks, and the ranks."""
    return [pid for place in directory.glob("**/ranks-*") for pid in processes_of(place)]


def ranks_in(directory: Path) -> list[int]:
    """The ranks alone."""
    python = Path(sys.executable).resolve()
    return [pid for pid in processes_in(directory) if _program(pid) == python]


def _program(pid: int) -> Path | None:
    """What a process runs; None where it has just ended."""
    try:
        return Path(f"/proc/{pid}/exe").resolve()
    except FileNotFoundError:
        return None


def wait_for_epochs(directory: Path, seconds: float = 120.0) -> None:
    """Until the ranks of a training are at work."""
    until = time.monotonic() + seconds
    while not (directory / "progress.json").exists():
        assert time.monotonic() < until, "the training does not start"
        time.sleep(0.1)


def test_two_ranks_train_the_model_of_one_process(tmp_path, launch):
    labels = split_labels(15)
    alone = run_train(train_task(tmp_path / "a", labels, launch))
    both = run_train(train_task(tmp_path / "b", labels, launch, ranks=2))
    assert (both.status, both.reason) == (Status.DONE, "")
    assert both.timing.host == alone.timing.host
    assert both.timing.cpu_s > 1.0
    for ours, theirs in zip(both.history, alone.history, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    models = [load(result.file.path, result.file.sha256) for result in (alone, both)]
    for one, other in zip(*(model.first.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert [one.value for one in both.factors] == pytest.approx([one.value for one in alone.factors], rel=1e-3)
    assert [(one.group, one.count, one.own) for one in both.factors] == [
        (one.group, one.count, one.own) for one in alone.factors
    ]
    assert both.validation.force_mae == pytest.approx(alone.validation.force_mae, rel=1e-4)
    assert both.epochs == alone.epochs
    assert (tmp_path / "b" / "progress.json").exists()
    assert not list(tmp_path.glob("b/ranks-*"))


def test_two_ranks_select_the_picks_of_one_process(tmp_path, launch):
    task = select_task(tmp_path / "a", pool(300), launch)
    alone = run_select(task)
    several = run_select(replace(task, ranks=2, output=str(tmp_path / "several")))
    assert (several.status, several.reason) == (Status.DONE, "")
    assert (several.count, several.dropped) == (alone.count, alone.dropped)
    picks = [read_candidates(result.picks) for result in (alone, several)]
    assert [pick.step for pick in picks[1]] == [pick.step for pick in picks[0]]
    for one, other in zip(*picks, strict=True):
        assert other.total_uncertainty == one.total_uncertainty
        np.testing.assert_array_equal(other.atomic_uncertainty, one.atomic_uncertainty)


def test_a_damaged_file_is_a_failure_that_names_it_on_whichever_rank(tmp_path, launch):
    task = select_task(tmp_path / "a", pool(30), launch)
    bad = FileRef(path=task.candidates[1].path, sha256="0" * 64)
    result = run_select(replace(task, candidates=(task.candidates[0], bad, *task.candidates[2:]), ranks=2))
    assert result.status is Status.FAILED
    assert "c1.h5" in result.reason
    assert not processes_in(tmp_path)


def test_a_rank_that_is_killed_again_fails_the_training_at_once_and_leaves_nothing(tmp_path, launch):
    endless = TrainingSettings(epochs=1_000_000, batch=4)
    task = train_task(tmp_path / "a", copper(10), launch, ranks=2, settings=endless)
    results = []
    thread = threading.Thread(target=lambda: results.append(run_train(task)))
    thread.start()
    for rank in (1, 0):
        wait_for_epochs(tmp_path / "a")
        pids = ranks_in(tmp_path)
        assert len(pids) == 2
        os.kill(pids[rank], signal.SIGKILL)
        until = time.monotonic() + SOON_S
        while set(pids) & set(ranks_in(tmp_path)):
            assert time.monotonic() < until, "the other rank goes on"
            time.sleep(0.05)
        (tmp_path / "a" / "progress.json").unlink()
    thread.join(SOON_S)
    assert not thread.is_alive()
    assert results[0].status is Status.FAILED
    assert "One of 2 ranks of train-1 died" in results[0].reason
    assert not processes_in(tmp_path)


def test_ranks_end_with_their_worker(tmp_path, launch):
    endless = TrainingSettings(epochs=1_000_000, batch=4)
    seal(tmp_path / "task", train_task(tmp_path / "a", copper(10), launch, ranks=2, settings=endless))
    code = (
        "import sys; from pathlib import Path; from pipeline.together import unseal; from pipeline.train import run_train;"
        "run_train(unseal(Path(sys.argv[1])))"
    )
    worker = subprocess.Popen([sys.executable, "-c", code, tmp_path / "task"])
    try:
        wait_for_epochs(tmp_path / "a")
        assert len(ranks_in(tmp_path)) == 2
    finally:
        worker.kill()
        worker.wait()
    until = time.monotonic() + SOON_S
    while processes_in(tmp_path) and time.monotonic() < until:
        time.sleep(0.1)
    assert not processes_in(tmp_path)


def test_workers_without_mpi4py_are_told_how_to_get_it(tmp_path, launch, monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    result = run_train(train_task(tmp_path / "a", copper(2), launch, ranks=2))
    assert result.status is Status.FAILED
    assert "farwalk[mpi]" in result.reason


def test_a_launcher_that_is_missing_is_a_failure_that_names_the_setting(tmp_path, launch):
    nowhere = launch.model_copy(update={"mpi": "no-such-mpirun -n {ranks}"})
    result = run_train(train_task(tmp_path / "a", copper(2), nowhere, ranks=2))
    assert result.status is Status.FAILED
    assert "no-such-mpirun" in result.reason
    assert "site.launch.mpi" in result.reason


def test_a_launcher_of_another_mpi_is_a_failure_that_says_so(tmp_path, launch):
    # what mpi4py does under a launcher that it does not belong to: each process takes itself for the only one
    alone = launch.model_copy(update={"mpi": "env"})
    result = run_train(train_task(tmp_path / "a", copper(2), alone, ranks=2))
    assert result.status is Status.FAILED
    assert "sees 1 rank" in result.reason
    assert "MPI4PY_MPIABI" in result.reason
