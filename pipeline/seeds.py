"""Seeds that depend on what a task is, never on when it ran.

Every random stream of a campaign is ``SeedSequence([campaign, kind, round, item])``: the same task draws the same numbers
inline, on threads, on a cluster, and after a resume.
"""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a random stream is for. Numbers are part of stored campaigns: never reuse one."""

    START = 1
    WALK = 2
    SELECT = 3
    LABEL = 4
    TRAIN = 5
    SPLIT = 6
    SKETCH = 7
    HELD_OUT = 8


def seed_for(campaign_seed: int, stream: Stream, round_index: int, item: int) -> int:
    """A 63-bit seed for one task.

    Args:
        campaign_seed: ``seed`` of the campaign file, >= 0.
        stream: what the numbers are for.
        round_index: round of the campaign, >= 0.
        item: index of the task, walker or frame within the round, >= 0.
    """
    state = np.random.SeedSequence([campaign_seed, int(stream), round_index, item]).generate_state(2, np.uint32)
    return int((int(state[0]) << 31) ^ int(state[1]))


def generator(seed: int) -> np.random.Generator:
    """The numpy generator of a seed from :func:`seed_for`."""
    return np.random.default_rng(seed)
