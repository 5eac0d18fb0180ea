"""Turns of systems follow their shares of all labels."""

import itertools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pipeline.selection.quotas import turns

SYSTEMS = ("a", "b", "c", "d")
weights = st.lists(st.floats(0.05, 1.0), min_size=2, max_size=4).map(
    lambda some: {system: weight / sum(some) for system, weight in zip(SYSTEMS, some, strict=False)}
)
counts = st.dictionaries(st.sampled_from(SYSTEMS), st.integers(0, 12))


@given(shares=weights)
def test_no_system_is_ever_a_label_ahead_of_its_share(shares: dict[str, float]) -> None:
    order = turns(dict.fromkeys(shares, 100), shares, {}, 60)
    for n in range(61):
        served = Counter(order[:n])
        ahead = [served[system] - share * n for system, share in shares.items()]
        assert max(ahead) < 1 + 1e-9
        if len(shares) == 2:
            assert min(ahead) > -1 - 1e-9


@given(available=counts, shares=weights, labelled=counts, count=st.integers(0, 50))
def test_every_turn_has_a_candidate_and_none_is_left_unused(
    available: dict[str, int], shares: dict[str, float], labelled: dict[str, int], count: int
) -> None:
    order = turns(available, shares, labelled, count)
    assert len(order) == min(count, sum(available.values()))
    assert all(number <= available[system] for system, number in Counter(order).items())
    assert turns(available, shares, labelled, count // 2) == order[: count // 2]
    assert turns(available, {system: 4 * share for system, share in shares.items()}, labelled, count) == order


def test_a_system_that_lacks_labels_catches_up_first() -> None:
    order = turns({"a": 50, "b": 50}, {"a": 0.5, "b": 0.5}, {"a": 10}, 16)
    assert order[:10] == ["b"] * 10
    assert Counter(order[10:]) == {"a": 3, "b": 3}


def test_turns_without_a_candidate_go_to_the_others_in_proportion_and_come_back() -> None:
    shares = {"a": 0.5, "b": 0.3, "c": 0.2}
    without = turns({"b": 90, "c": 90}, shares, {}, 50)
    assert Counter(without) == {"b": 30, "c": 20}
    later = turns({"a": 90, "b": 90, "c": 90}, shares, Counter(without), 52)
    assert later[:49] == ["a"] * 49


def test_a_system_whose_candidates_run_out_leaves_its_turns_to_the_others() -> None:
    order = turns({"a": 2, "b": 9}, {"a": 0.5, "b": 0.5}, {}, 9)
    assert [len(list(run)) for _, run in itertools.groupby(order[4:])] == [5]
    assert Counter(order) == {"a": 2, "b": 7}


def test_a_system_without_a_share_is_served_last() -> None:
    assert turns({"a": 2, "x": 5}, {"a": 1.0}, {"a": 9}, 4) == ["a", "a", "x", "x"]
