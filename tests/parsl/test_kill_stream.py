"""A streaming driver killed at any instant loses nothing, labels nothing twice, and goes on without a barrier."""

import time
from collections import Counter
from itertools import takewhile
from pathlib import Path

import pytest
from small_campaign import settings
from test_kill import CALCULATOR, kill_again_and_again, labelled, processes_with

from pipeline.events import EndReason, Resumed, Submitted, Work
from pipeline.fold import fold
from pipeline.requests import request_of
from pipeline.store import Store
from pipeline.streaming import pool_size

pytestmark = [pytest.mark.parsl, pytest.mark.slow]

STREAM = {"kind": "streaming", "pool": 40, "train_share": 0.3}
BUDGET = 32


def check(directory: Path, in_flight: int, kills: int, site: str) -> None:
    store = Store(directory)
    state = store.state()
    assert state.stopped is not None
    assert state.stopped.reason is EndReason.BUDGET
    assert sorted(labelled(directory).values()) == list(range(BUDGET))
    assert state.labelled == state.learned == BUDGET
    assert state.flow is not None
    # all were trained on, whatever the gate said of the model
    assert not state.flow.pending
    assert not state.arrived
    evaluations = Counter((directory.parent / "evaluations").read_text().split())
    assert len(evaluations) == BUDGET
    # only a calculation that a kill cut off between its end and the writing of its result may have been made again
    assert evaluations.total() - BUDGET <= in_flight * kills // 5
    assert len({label.frame.identity for label in store.labels(state)}) == BUDGET
    assert not any(path.name.endswith(".tmp") for path in directory.rglob("*")), "torn files stay behind"
    check_no_barrier(store, site)


def check_no_barrier(store: Store, site: str) -> None:
    """Whoever takes the campaign up asks first for the labels that were in flight, and walkers walk meanwhile."""
    chosen, events = settings(site, CALCULATOR, STREAM), store.events()
    for k, event in enumerate(events):
        if not isinstance(event, Resumed):
            continue
        flow = fold(events[: k + 1]).flow
        assert flow is not None
        following = [one for one in events[k + 1 :] if not isinstance(one, Submitted) or one.tasks]
        asked = list(takewhile(lambda one: isinstance(one, Submitted), following))
        labels = [request_of(name) for one in asked if one.work is Work.LABEL for name in one.tasks]
        if len(asked) == len(following) or not asked:  # killed before all were asked for, or labels were gathered first
            continue
        assert {(one.round, one.item) for one in labels[: len(flow.open)]} == set(flow.open)
        has_room = fold(events[: k + 1]).models and flow.numbers < BUDGET and flow.pool < pool_size(chosen)
        is_complete = any(not isinstance(one, Submitted | Resumed) for one in following[: len(asked) + 1])
        assert not (has_room and is_complete) or Work.WALK in {one.work for one in asked}


def test_a_stream_killed_twenty_times_ends_with_everything_once(tmp_path):
    directory = tmp_path / "c"
    kills = kill_again_and_again(directory, settings("inline", CALCULATOR, STREAM), kills=20, longest_s=0.5, seed=3)
    assert kills >= 10, "the campaign was over before it could be killed often enough"
    check(directory, 1, kills, "inline")


def test_workers_of_a_killed_stream_end_and_do_no_harm(tmp_path):
    directory = tmp_path / "c"
    kills = kill_again_and_again(directory, settings("local_htex", CALCULATOR, STREAM), kills=2, longest_s=4.0, seed=3)
    assert kills >= 1
    check(directory, 4, kills, "local_htex")
    deadline = time.monotonic() + 60
    while left := [line for line in processes_with(str(directory)) if "forkserver" not in line]:
        assert time.monotonic() < deadline, left
        time.sleep(1)
