"""The first frames a campaign labels: its start structures, then rattled copies of them."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.frames import Frame
from pipeline.seeds import Stream, generator, seed_for
from pipeline.settings.campaign import CampaignSettings


def rattled(frame: Frame, *, std_A: float, rng: np.random.Generator) -> Frame:
    """The frame with every coordinate moved by a normal deviate of standard deviation ``std_A``, Å."""
    return replace(frame, positions=frame.positions + rng.normal(scale=std_A, size=frame.positions.shape))


def initial_frame(starts: Sequence[Frame], item: int, settings: CampaignSettings) -> tuple[Frame, dict[str, Any]]:
    """The ``item``-th frame to label in round 0 and its origin: start structures first, then rattled ones in turn."""
    start = item % len(starts)
    if item < len(starts):
        return starts[start], {"start": start}
    std_A = settings.labels.initial_rattle_A
    rng = generator(seed_for(settings.seed, Stream.START, 0, item))
    return rattled(starts[start], std_A=std_A, rng=rng), {"start": start, "rattle_A": std_A}


def starts_in_turn(systems: Mapping[str, Sequence[Frame]]) -> list[Frame]:
    """The different start structures, one of each system in turn, so that few labels still see every system."""
    turns = itertools.chain.from_iterable(itertools.zip_longest(*systems.values()))
    return list({frame.identity: frame for frame in turns if frame is not None}.values())


def digest_of(starts: Sequence[Frame]) -> str:
    """sha256 over the exact geometries, in order."""
    return hashlib.sha256(" ".join(frame.identity for frame in starts).encode()).hexdigest()
