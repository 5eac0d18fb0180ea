"""Idle workers are told with how many, how long and why, and never twice."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.events import Work
from pipeline.idling import LEAST_S, LONGEST_S, Idling

WHY = {Work.LABEL: "no candidates", Work.WALK: "the pool is full"}


def test_a_spell_is_told_when_it_ends_with_the_time_of_all_its_workers():
    idling = Idling()
    assert idling.look(10.0, {Work.LABEL: 2}, WHY) == []
    assert idling.look(13.0, {Work.LABEL: 1}, WHY) == []
    (told,) = idling.look(14.0, {Work.LABEL: 0}, WHY)
    assert (told.work, told.since, told.time, told.reason, told.slot_s) == (
        Work.LABEL,
        10.0,
        14.0,
        WHY[Work.LABEL],
        7.0,
    )
    assert idling.look(15.0, {Work.LABEL: 0}, WHY) == []


def test_a_long_spell_is_told_in_parts_that_follow_one_another():
    idling = Idling()
    parts = [part for second in range(151) for part in idling.look(float(second), {Work.WALK: 2}, WHY)]
    parts += idling.look(151.0, {Work.WALK: 0}, WHY)
    assert [(part.since, part.time, part.slot_s) for part in parts] == [
        (0.0, LONGEST_S, 2 * LONGEST_S),
        (LONGEST_S, 2 * LONGEST_S, 2 * LONGEST_S),
        (2 * LONGEST_S, 151.0, 2 * 31.0),
    ]


def test_another_reason_begins_another_spell():
    idling = Idling()
    idling.look(0.0, {Work.WALK: 1}, WHY)
    (first,) = idling.look(5.0, {Work.WALK: 1}, {Work.WALK: "the campaign ends"})
    (second,) = idling.look(8.0, {}, {})
    assert (first.reason, first.slot_s, second.reason, second.since, second.slot_s) == (
        WHY[Work.WALK],
        5.0,
        "the campaign ends",
        5.0,
        3.0,
    )


def test_spells_of_a_moment_and_clocks_set_back_tell_nothing():
    idling = Idling()
    idling.look(0.0, {Work.LABEL: 4}, WHY)
    assert idling.look(0.9 * LEAST_S, {Work.LABEL: 0}, WHY) == []
    idling.look(100.0, {Work.LABEL: 4}, WHY)
    assert idling.look(40.0, {Work.LABEL: 0}, WHY) == []


@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.integers(0, 5), st.integers(0, 5), st.sampled_from(["x", "y"])), min_size=1
    )
)
def test_what_is_told_adds_up_to_what_was_idle(looks):
    idling, now, told, expected = Idling(), 0.0, [], {Work.LABEL: 0.0, Work.WALK: 0.0}
    last = dict.fromkeys(expected, 0)
    for seconds, labels, walks, reason in looks:
        now += seconds
        for work, count in last.items():
            expected[work] += seconds * count
        last = {Work.LABEL: labels, Work.WALK: walks}
        told += idling.look(now, last, dict.fromkeys(last, reason))
    told += idling.look(now, {}, {})
    for work, slot_s in expected.items():
        assert sum(event.slot_s for event in told if event.work is work) == pytest.approx(slot_s)
        spells = [(event.since, event.time) for event in told if event.work is work]
        assert all(since < end for since, end in spells)
        assert all(before[1] <= after[0] for before, after in pairwise(spells))
