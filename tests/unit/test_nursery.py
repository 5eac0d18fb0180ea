"""Who is born in a slot: a pure function of seed, slot and count, with systems in their shares."""

from collections import Counter

import numpy as np
import pytest
from fabricated import frame

from pipeline.dynamics.slots import Nursery
from pipeline.errors import TaskError
from pipeline.settings.walkers import WalkerSettings

STARTS = [frame(system, number) for system, number in (("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5), ("c", 6))]
SLOTS = 4
EACH = 500


def nursery(seed=7, born=None, shares=None):
    return Nursery(
        starts=STARTS,
        settings=WalkerSettings(),
        temperatures_K=[300.0] * SLOTS,
        pressures_MPa=[0.0] * SLOTS,
        seed=seed,
        prefix="t",
        born=born,
        shares=shares,
    )


def drawn(several, count=EACH):
    """Identities of the start structures of so many walkers in each slot."""
    return [[several.walker(slot, 0).frame.identity for _ in range(count)] for slot in range(SLOTS)]


def test_without_shares_the_draw_is_what_it_has_always_been():
    expected = [
        [
            STARTS[np.random.default_rng(np.random.SeedSequence([7, slot, born])).integers(len(STARTS))].identity
            for born in range(50)
        ]
        for slot in range(SLOTS)
    ]
    assert drawn(nursery(), 50) == expected
    assert drawn(nursery(shares={}), 50) == expected


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("shares", "chances"),
    [
        ({"a": 0.2, "b": 0.5, "c": 0.3}, {"a": 0.2, "b": 0.5, "c": 0.3}),
        ({"c": 3.0, "a": 1.0}, {"a": 0.25, "c": 0.75}),
        # one that has no start structure gives its share to the others
        ({"a": 0.1, "b": 0.3, "missing": 0.6}, {"a": 0.25, "b": 0.75}),
    ],
)
def test_shares_come_out_and_starts_of_a_system_are_equally_likely(seed, shares, chances):
    counts = Counter(identity for slot in drawn(nursery(seed, shares=shares)) for identity in slot)
    sizes = Counter(start.system for start in STARTS if start.system in chances)
    expected = {
        start.identity: SLOTS * EACH * chances[start.system] / sizes[start.system]
        for start in STARTS
        if start.system in chances
    }
    assert set(counts) == set(expected)
    squared = sum((counts[identity] - value) ** 2 / value for identity, value in expected.items())
    # mean k and variance 2k for k degrees of freedom: five standard deviations
    freedom = len(expected) - 1
    assert squared < freedom + 5 * np.sqrt(2 * freedom)


def test_a_walker_depends_on_seed_slot_and_count_alone():
    shares = {"a": 0.5, "b": 0.5}
    whole = drawn(nursery(shares=shares), 20)
    later = drawn(nursery(born=(12,) * SLOTS, shares=shares), 8)
    assert later == [slot[12:] for slot in whole]
    assert drawn(nursery(shares=dict(reversed(shares.items()))), 20) == whole
    assert drawn(nursery(seed=8, shares=shares), 20) != whole


def test_shares_of_systems_without_any_start_say_so():
    with pytest.raises(TaskError, match="missing"):
        nursery(shares={"missing": 1.0})
