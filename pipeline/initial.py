"""The first frames a campaign labels: its start structures, then rattled and strained copies of them."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.frames import Frame
from pipeline.seeds import Stream, generator, seed_for
from pipeline.settings.campaign import CampaignSettings


def rattled(frame: Frame, *, std_A: float, strain: float = 0.0, rng: np.random.Generator) -> Frame:
    """The frame strained, where it has a cell to strain, and every coordinate then moved.

    Args:
        frame: a structure.
        std_A: standard deviation of the normal deviates that are added to the coordinates, Å.
        strain: the six components of the symmetric strain ε are uniform between minus this and this; cell and positions are
            multiplied by 1 + ε. Frames that are not periodic in three directions keep their cells.
        rng: of the deviates, then of the strain.
    """
    moves = rng.normal(scale=std_A, size=frame.positions.shape)
    if strain == 0 or not frame.pbc.all():
        return replace(frame, positions=frame.positions + moves)
    components = rng.uniform(-strain, strain, size=(3, 3))
    deformation = np.eye(3) + np.tril(components) + np.tril(components, -1).T
    return replace(frame, positions=frame.positions @ deformation + moves, cell=frame.cell @ deformation)


def start_volumes(starts: Sequence[Frame]) -> dict[str, tuple[float, float]]:
    """Smallest and largest volume of the start structures of each system, Å³, of those periodic in three directions."""
    volumes: dict[str, list[float]] = {}
    for frame in starts:
        if frame.pbc.all():
            volumes.setdefault(frame.system, []).append(float(abs(np.linalg.det(frame.cell))))
    return {system: (min(found), max(found)) for system, found in volumes.items()}


def rattled_for(settings: CampaignSettings, frame: Frame, rng: np.random.Generator) -> Frame:
    """The frame moved and strained as much as the campaign's first labels are."""
    labels = settings.labels
    return rattled(frame, std_A=labels.initial_rattle_A, strain=labels.initial_strain, rng=rng)


def initial_frame(starts: Sequence[Frame], item: int, settings: CampaignSettings) -> tuple[Frame, dict[str, Any]]:
    """The ``item``-th frame to label in round 0 and its origin: start structures first, then rattled ones in turn."""
    start = item % len(starts)
    if item < len(starts):
        return starts[start], {"start": start}
    labels = settings.labels
    origin = {"start": start, "rattle_A": labels.initial_rattle_A}
    if labels.initial_strain > 0 and starts[start].pbc.all():
        origin["strain"] = labels.initial_strain
    rng = generator(seed_for(settings.seed, Stream.START, 0, item))
    return rattled_for(settings, starts[start], rng), origin


def starts_in_turn(systems: Mapping[str, Sequence[Frame]]) -> list[Frame]:
    """The different start structures, one of each system in turn, so that few labels still see every system."""
    turns = itertools.chain.from_iterable(itertools.zip_longest(*systems.values()))
    return list({frame.identity: frame for frame in turns if frame is not None}.values())


def digest_of(starts: Sequence[Frame]) -> str:
    """sha256 over the exact geometries, in order."""
    return hashlib.sha256(" ".join(frame.identity for frame in starts).encode()).hexdigest()
