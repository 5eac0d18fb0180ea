"""One campaign, three ways to run it, one data set."""

import os
import threading
from pathlib import Path

import pytest
from small_campaign import run, settings, systems

from pipeline.events import Walked
from pipeline.store import Store

pytestmark = [pytest.mark.parsl, pytest.mark.slow]


def dataset(directory: Path):
    """Everything that must not depend on where tasks ran, bit for bit."""
    store = Store(directory)
    state = store.state()
    rows = [
        (x.frame.identity, x.energy, x.forces.tobytes(), x.stress.tobytes(), x.split, x.round, sorted(x.origin.items()))
        for x in store.labels(state)
    ]
    return rows, [(m.version, m.file.sha256, m.fresh, m.factors) for m in state.models]


def children() -> set[int]:
    """Processes descended from this one."""
    parents = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found, grown = {os.getpid()}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        grown, found = bool(more), found | more
    return found - {os.getpid()}


@pytest.fixture(scope="module")
def inline(tmp_path_factory):
    directory = tmp_path_factory.mktemp("inline") / "c"
    run(directory, settings("inline"))
    return dataset(directory)


def test_the_campaign_is_not_trivial(inline):
    rows, models = inline
    assert len(rows) == 32
    assert len({row[0] for row in rows}) == 32
    assert [model[0] for model in models] == [1, 2, 3, 4]
    assert systems()["copper"][0].identity == rows[0][0]


@pytest.mark.parametrize("site", ["local_threads", "local_htex"])
def test_the_data_set_is_the_same_bit_for_bit(inline, tmp_path, site):
    threads, processes = threading.active_count(), children()
    run(tmp_path / "c", settings(site))
    assert dataset(tmp_path / "c") == inline
    assert children() <= processes, "worker processes stay behind"
    assert threading.active_count() <= threads + 1, "threads stay behind"


def test_two_inline_runs_are_the_same(inline, tmp_path):
    run(tmp_path / "c", settings("inline"))
    assert dataset(tmp_path / "c") == inline


@pytest.mark.parametrize("site", ["inline", "local_htex"])
def test_the_data_set_is_the_same_however_walks_are_cut(inline, tmp_path, site):
    hasty = settings(site)
    # no time at all: each leg ends at its first stop check, every five steps
    hasty = hasty.model_copy(update={"site": hasty.site.model_copy(update={"walk_task_s": 1e-3})})
    run(tmp_path / "c", hasty)
    walks = [event for event in Store(tmp_path / "c").events() if isinstance(event, Walked)]
    assert max(walk.leg for walk in walks) >= 3
    assert dataset(tmp_path / "c") == inline
