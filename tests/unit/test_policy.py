"""Decisions, without files or processes."""

from collections import Counter
from dataclasses import replace

import pytest
from fabricated import TIMING, frame, settings, systems
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from pipeline.events import SCHEMA, Created, Labelled, Work
from pipeline.fold import begin
from pipeline.initial import initial_frame, starts_in_turn
from pipeline.plan import conditions_of, enough_per_batch, first_labels, picks_allowed
from pipeline.policy import decide
from pipeline.records import FileRef, Split
from pipeline.requests import Request
from pipeline.splits import split_in, split_of


def fresh_state(chosen):
    return begin(
        Created(time=0.0, schema=SCHEMA, settings=chosen.model_dump(mode="json"), digest="", structures="", versions={})
    )


def labelled(number):
    return Labelled(
        time=0.0,
        round=0,
        item=number,
        number=number,
        identity=str(number),
        system="a",
        split=Split.TRAIN,
        file=FileRef(path="", sha256=""),
        row=number,
        timing=TIMING,
    )


def test_the_first_thing_is_to_label_the_initial_frames():
    chosen = settings()
    decision = decide(fresh_state(chosen), chosen, now=0.0)
    assert [request.item for request in decision.requests] == list(range(10))
    assert {request.work for request in decision.requests} == {Work.LABEL}


def test_what_is_in_flight_is_not_asked_for_again():
    chosen = settings()
    decision = decide(
        fresh_state(chosen), chosen, now=0.0, in_flight=frozenset({"label-r0000-0003", "label-r0000-0007"})
    )
    assert [request.item for request in decision.requests] == [0, 1, 2, 4, 5, 6, 8, 9]


def test_names_of_requests_are_unique():
    requests = [Request(work, round_index, item) for work in Work for round_index in range(3) for item in range(3)]
    names = Counter(request.name for request in requests if request.work is not Work.TRAIN)
    assert set(names.values()) == {1}


def test_slots_take_the_temperatures_in_turn_over_all_batches():
    chosen = settings()
    slots = [kelvin for item in range(3) for kelvin, _ in conditions_of(item, chosen)]
    assert slots == [300.0, 500.0, 700.0, 900.0, 300.0, 500.0]


def test_batches_share_what_is_enough():
    chosen = settings()
    assert enough_per_batch(fresh_state(chosen), chosen) == 6  # 4 x 4 picks over 3 batches, rounded up
    few = settings(walkers__enough=3)
    assert enough_per_batch(fresh_state(few), few) == 1


def test_rounds_grow_with_the_labels_up_to_the_batch():
    chosen = settings(selection__batch=20, selection__growth=0.25, labels__budget=500)
    sizes = []
    for count in (4, 40, 60, 200, 490):
        state = replace(fresh_state(chosen), labelled=count)
        sizes.append(picks_allowed(state, chosen))
    assert sizes == [8, 10, 15, 20, 10]


@effort(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    initial=st.integers(4, 60),
    validation=st.floats(0.02, 0.45),
    calibration=st.floats(0.02, 0.45),
)
def test_initial_labels_hold_every_split_and_later_ones_follow_the_shares(seed, initial, validation, calibration):
    chosen = settings(
        labels__initial=initial,
        labels__budget=1000,
        labels__splits={"validation": validation, "calibration": calibration},
    ).labels
    splits = [split_of(n, campaign_seed=seed, settings=chosen) for n in range(initial + 200)]
    first, later = Counter(splits[:initial]), Counter(splits[initial:])
    assert splits[0] is Split.TRAIN  # a start structure as it is: its forces may all vanish
    assert all(first[split] >= 1 for split in Split)
    assert later[Split.VALIDATION] == pytest.approx(200 * validation, abs=1.0)
    assert later[Split.CALIBRATION] == pytest.approx(200 * calibration, abs=1.0)


@pytest.mark.parametrize("initial", [4, 5, 9, 16, 40])
def test_the_first_labels_of_a_stream_hold_every_split_and_the_later_ones_follow_the_shares(initial):
    for seed in range(20):
        chosen = settings(schedule="streaming", seed=seed, labels__initial=initial, labels__budget=1000)
        first = first_labels(chosen)
        splits = [split_in(number, chosen) for number in range(first + 100)]
        assert first == max(4, (initial + 1) // 2)
        assert set(splits[:first]) == set(Split)
        assert Counter(splits[first:]) == {Split.TRAIN: 80, Split.VALIDATION: 10, Split.CALIBRATION: 10}
    rounds = settings(seed=3, labels__initial=initial, labels__budget=1000)
    same = [split_of(number, campaign_seed=3, settings=rounds.labels) for number in range(60)]
    assert [split_in(number, rounds) for number in range(60)] == same


def test_the_split_of_a_label_depends_on_the_seed():
    chosen = settings().labels
    assert len({tuple(split_of(n, campaign_seed=s, settings=chosen) for n in range(10)) for s in range(20)}) > 10


def test_start_structures_come_first_one_system_after_the_other_then_rattled_copies():
    chosen = settings()
    starts = starts_in_turn(systems())
    assert [start.identity for start in starts] == [
        frame(name, number).identity for name, number in (("a", 1), ("b", 3), ("a", 2))
    ]
    frames = [initial_frame(starts, item, chosen) for item in range(9)]
    assert [one.identity for one, _ in frames[:3]] == [start.identity for start in starts]
    for item, (rattled, origin) in enumerate(frames[3:], start=3):
        moved = rattled.positions - starts[item % 3].positions
        assert 0.01 < moved.std() < 0.12
        assert origin == {"start": item % 3, "rattle_A": 0.05}
    assert len({one.identity for one, _ in frames}) == 9
    assert initial_frame(starts, 5, chosen)[0].identity == frames[5][0].identity


def test_equal_start_structures_are_labelled_once():
    assert len(starts_in_turn({"a": (frame("a", 1), frame("a", 1))})) == 1
