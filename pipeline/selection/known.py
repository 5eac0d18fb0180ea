"""Structures that need no label: what is labelled, and what is being labelled."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from pipeline.frames import Frame
from pipeline.ranks import Ranks
from pipeline.records import FileRef, FrameRows
from pipeline.shards import listed, read_candidates, read_label_frames


def read_known(labels: Sequence[FileRef], in_flight: Sequence[FrameRows], ranks: Ranks) -> list[list[Frame]]:
    """Structures that need no label, in groups: one of each shard of labels, then those in flight.

    Args:
        labels: shards, or lists of shards; each rank reads consecutive ones.
        in_flight: candidates that are being labelled; the last rank reads them, each file once.
        ranks: who shares the work.

    Raises:
        StoreError: a shard is missing or changed.
    """
    shards = listed(labels)
    known = [read_label_frames(shards[k]) for k in ranks.mine(np.arange(len(shards)))]
    return [*known, _frames(in_flight)] if ranks.rank == ranks.size - 1 else known


def _frames(several: Sequence[FrameRows]) -> list[Frame]:
    """The structures of some rows of several shards of candidates."""
    files: dict[FileRef, list[int]] = defaultdict(list)
    for some in several:
        files[some.file] += some.rows
    found: list[Frame] = []
    for file, rows in files.items():
        candidates = read_candidates(file)
        found += [candidates[row].frame for row in rows]
    return found
