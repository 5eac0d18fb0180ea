"""What a campaign knows depends on what happened, not on the order in which labels came, and does not grow with them."""

import random
from dataclasses import replace

import pytest
from fabricated import TIMING, settings
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from pipeline.errors import StoreError
from pipeline.events import (
    SCHEMA,
    Created,
    EndReason,
    Event,
    Gathered,
    LabelFailed,
    Labelled,
    Resumed,
    Selected,
    Stopped,
    TaskFailed,
    TaskLost,
    Trained,
    Walked,
    Work,
)
from pipeline.fold import apply, fold
from pipeline.plan import batches, enough_left, enough_per_batch, fresh_labels, last_leg, start_labels
from pipeline.policy import decide
from pipeline.records import FileRef, Split
from pipeline.rows import Rows
from pipeline.splits import split_of
from pipeline.state import MAX_STARTS

CHOSEN = settings(
    labels__budget=100_000, labels__recovery={"pause_share": 1.0}, selection__batch=1000, selection__growth=1.0
)
FILE = FileRef(path="shards/x.h5", sha256="0" * 64)
BEGIN = Created(time=0.0, schema=SCHEMA, settings=CHOSEN.model_dump(mode="json"), digest="", structures="", versions={})


def labelled(round_index: int, item: int, number: int, system: str = "a") -> Labelled:
    return Labelled(
        time=1.0,
        round=round_index,
        item=item,
        number=number,
        identity=f"{number}",
        system=system,
        split=split_of(number, campaign_seed=3, settings=CHOSEN.labels),
        file=FILE,
        row=0,
        timing=TIMING,
    )


def label_failed(round_index: int, item: int, number: int) -> LabelFailed:
    return LabelFailed(
        time=1.0,
        round=round_index,
        item=item,
        number=number,
        identity=f"{number}",
        system="a",
        reason="no",
        scratch="",
        timing=None,
    )


def walked(item: int, leg: int = 0, steps_left: int = 0, **stops: int) -> Walked:
    return Walked(
        time=1.0,
        round=1,
        item=item,
        leg=leg,
        version=1,
        candidates=FILE,
        walkers=FileRef(path=f"shards/{item}-{leg}.h5", sha256=""),
        count=1,
        stops=stops,
        walker_steps=4,
        steps=2,
        steps_left=steps_left,
        born=(1, 1),
        timing=TIMING,
    )


def trained(round_index: int, labels: int) -> Trained:
    return Trained(
        time=1.0,
        round=round_index,
        version=round_index + 1,
        file=FILE,
        labels=labels,
        fresh=None,
        train=None,
        validation=None,
        factors=(),
        epochs=1,
        history=({"epoch": 1.0},),
        timing=TIMING,
    )


def labels_of(round_index: int, first: int, count: int) -> list[Event]:
    return [labelled(round_index, item, first + item, "ab"[item % 3 == 0]) for item in range(count)]


def round_of(number: int, first: int, count: int) -> list[Event]:
    """A whole round after the first one, all of whose labels succeed."""
    selected = Selected(time=1.0, round=number, picks=FILE, count=count, dropped={}, timing=TIMING)
    gathered = Gathered(time=1.0, round=number, file=FILE, count=count)
    walks = [replace(walked(item), round=number) for item in range(batches(CHOSEN))]
    return [*walks, selected, *labels_of(number, first, count), gathered, trained(number, first + count)]


def initial(count: int = 10) -> list[Event]:
    return [
        BEGIN,
        *labels_of(0, 0, count),
        Gathered(time=1.0, round=0, file=FILE, count=count),
        trained(0, count),
    ]


@given(st.lists(st.integers()), st.lists(st.integers()))
def test_rows_that_grow_leave_the_shorter_ones_as_they_were(start, more):
    rows, expected = Rows(start), tuple(start)
    for item in more:
        longer, other = rows.plus(item), rows.plus(item + 1)
        assert tuple(rows) == expected
        assert tuple(other) == (*expected, item + 1)
        rows, expected = longer, (*expected, item)
        assert rows == Rows(expected)
    assert len(rows) == len(expected)
    assert rows[1:] == expected[1:]
    assert [rows[-1 - k] for k in range(len(rows))] == list(reversed(expected)) == list(reversed(rows))
    with pytest.raises(IndexError):
        rows[len(rows)]


@effort(max_examples=30, deadline=None)
@given(count=st.integers(4, 40), failed=st.sets(st.integers(1, 39), max_size=20), seed=st.integers(0, 2**16))
def test_the_order_in_which_labels_come_changes_nothing_that_is_decided(count, failed, seed):
    selected = Selected(time=1.0, round=1, picks=FILE, count=count, dropped={}, timing=TIMING)
    walks = [walked(item) for item in range(batches(CHOSEN))]
    arriving = [
        label_failed(1, item, 10 + item) if item in failed else labelled(1, item, 10 + item) for item in range(count)
    ]
    shuffled = random.Random(seed).sample(arriving, count)
    ends = []
    for order in (arriving, shuffled):
        state = fold([*initial(), *walks, selected])
        for event in order:
            assert state.round == 1
            state = apply(state, event)
        assert decide(state, CHOSEN, now=2.0).gather
        row_numbers = [row.number for row in state.round_labels]
        state = apply(state, Gathered(time=1.0, round=1, file=FILE, count=len(row_numbers)))
        fresh = [row.number for row in fresh_labels(state)]
        state = apply(state, trained(1, state.labelled))
        requests = decide(state, CHOSEN, now=2.0).requests
        ends.append((row_numbers, fresh, start_labels(state), requests, state.labelled, state.failed, state.newest))
    assert ends[0] == ends[1]
    assert ends[0][4:6] == (10 + count - len(failed & set(range(count))), len(failed & set(range(count))))


@pytest.mark.parametrize("size", [3, 300])
def test_labels_of_finished_rounds_are_counted_and_only_the_newest_of_each_system_kept(size):
    events, everything = initial(), [event for event in initial() if isinstance(event, Labelled)]
    for number in range(1, 6):
        part = round_of(number, 10 + (number - 1) * size, size)
        events += part
        everything += [event for event in part if isinstance(event, Labelled)]
    state = fold(events)
    assert state.labelled == state.spent == state.first_number == len(everything) == 10 + 5 * size
    assert len(state.arrived) == len(state.walked) == 0
    assert sum(len(rows) for rows in state.newest.values()) <= 2 * MAX_STARTS
    assert all(model.history == () for model in state.models)
    expected: list[Labelled] = []
    for system in ("a", "b"):
        rows = [row for row in everything if row.system == system]
        expected += [row for row in rows if row.round == rows[-1].round][-MAX_STARTS // 2 :]
    assert start_labels(state) == tuple(sorted(expected, key=lambda row: row.number))


def test_labels_asked_for_are_only_looked_for_when_one_is_missing():
    selected = Selected(time=1.0, round=1, picks=FILE, count=5, dropped={}, timing=TIMING)
    state = fold([*initial(), *[walked(item) for item in range(batches(CHOSEN))], selected, *labels_of(1, 10, 2)])
    names = {f"label-r0001-{item:04d}" for item in range(2, 5)}
    assert {request.name for request in decide(state, CHOSEN, now=2.0).requests} == names
    assert decide(state, CHOSEN, now=2.0, in_flight=names).requests == ()
    (missing,) = decide(state, CHOSEN, now=2.0, in_flight=names - {"label-r0001-0003"}).requests
    assert missing.item == 3


def test_every_batch_goes_on_with_its_next_leg_until_its_segment_is_over():
    assert batches(CHOSEN) == 3
    state = fold(initial())
    first = [request.name for request in decide(state, CHOSEN, now=2.0).requests]
    assert first == [f"walk-r0001-{item:04d}-l00" for item in range(3)]
    state = apply(state, walked(1, leg=0, steps_left=7))
    in_flight = frozenset(first) - {"walk-r0001-0001-l00"}
    (following,) = decide(state, CHOSEN, now=2.0, in_flight=in_flight).requests
    assert following.name == "walk-r0001-0001-l01"
    for event in (walked(0), walked(1, leg=1, steps_left=3), walked(2), walked(1, leg=2)):
        assert decide(state, CHOSEN, now=2.0).requests[0].work is Work.WALK
        state = apply(state, event)
    (request,) = decide(state, CHOSEN, now=2.0).requests
    assert request.work is Work.SELECT
    assert {item: walk.leg for item, walk in state.walkers.items()} == {0: 0, 1: 2, 2: 0}
    assert [last_leg(state, item).leg for item in range(3)] == [0, 2, 0]


def test_walkers_that_stopped_in_earlier_legs_count_towards_enough_and_completed_ones_do_not():
    state = fold(initial())
    whole = enough_per_batch(state, CHOSEN)
    state = apply(state, walked(1, leg=0, steps_left=7, uncertain=2, completed=3, force=1))
    state = apply(state, walked(0, leg=0, steps_left=7, uncertain=5))
    assert enough_left(state, 1, CHOSEN) == whole - 3
    state = apply(state, walked(1, leg=1, steps_left=5, uncertain=whole))
    assert enough_left(state, 1, CHOSEN) == 1  # 0 would mean never
    assert enough_left(state, 2, CHOSEN) == whole


def lost(name: str) -> TaskLost:
    return TaskLost(time=1.0, work=Work.WALK, round=1, task=name, reason="gone", remedy="")


def test_lost_tasks_are_counted_until_their_round_is_over_or_somebody_takes_up_a_failed_campaign():
    resumed = Resumed(time=1.0, settings=BEGIN.settings, host="h", pid=1)
    state = fold([*initial(), lost("x"), lost("x"), lost("y")])
    assert state.lost.count("x") == 2
    assert apply(state, resumed).lost == state.lost  # a driver that was killed, say
    failure = TaskFailed(time=1.0, work=Work.WALK, round=1, task="x", reason="gone")
    failed = apply(state, failure)
    assert decide(failed, CHOSEN, now=2.0).end.reason is EndReason.TASK_FAILED
    stopped = Stopped(time=1.0, reason=EndReason.TASK_FAILED, message="")
    assert apply(apply(failed, stopped), resumed).lost == ()
    for event in round_of(1, 10, 4):
        state = apply(state, event)
    assert state.lost == ()


def test_a_log_begins_with_created_and_has_one_only():
    with pytest.raises(StoreError, match="begins with"):
        fold([lost("x")])
    with pytest.raises(StoreError, match="second"):
        fold([BEGIN, BEGIN])


def test_the_initial_labels_must_hold_all_splits():
    same = [replace(event, split=Split.TRAIN) if isinstance(event, Labelled) else event for event in initial()[:-2]]
    decision = decide(fold(same), CHOSEN, now=2.0)
    assert [request.item for request in decision.requests] == [10]
