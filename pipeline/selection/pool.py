"""What walkers propose, read and screened by several ranks and dealt out among them."""

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np

from pipeline.frames import BoolArray
from pipeline.ranks import Ranks
from pipeline.records import Candidate, FileRef, StopReason
from pipeline.selection.screening import thinned, unphysical
from pipeline.selection.spread import Spread, owner_of
from pipeline.shards import listed, read_candidates


def read_pool(
    files: Sequence[FileRef], most: int, ranks: Ranks, dropped: Counter[str]
) -> tuple[list[Candidate], Spread]:
    """The sound candidates of shards, at most ``most``, in the order of the shards.

    Each rank reads and screens some shards. No rank has more than these and its part of the whole.

    Args:
        files: shards, or lists of shards.
        most: more are thinned.
        ranks: who shares the work.
        dropped: counts those of all ranks that were left out, by reason.

    Returns:
        The candidates of this rank, and which of all they are.

    Raises:
        StoreError: a shard is missing or changed.
    """
    shards = listed(files)
    read = {shard: read_candidates(shards[shard]) for shard in range(ranks.rank, len(shards), ranks.size)}
    screened = {shard: _screened(candidates) for shard, candidates in read.items()}
    known = {shard: found for part in ranks.gather(screened) for shard, found in part.items()}
    reasons = list(itertools.chain.from_iterable(known[shard][0] for shard in sorted(known)))
    stopped = np.concatenate([np.zeros(0, dtype=np.bool_), *(known[shard][1] for shard in sorted(known))])
    dropped.update(reason for reason in reasons if reason)
    sound = np.flatnonzero([not reason for reason in reasons])
    few = sound[thinned(stopped[sound], most)]
    dropped["thinned"] += len(sound) - len(few)
    sizes = [len(known[shard][0]) for shard in sorted(known)]
    firsts = np.cumsum([0, *sizes])
    parcels: list[list[tuple[int, Candidate]]] = [[] for _ in range(ranks.size)]
    for shard, candidates in read.items():
        here = np.arange(*np.searchsorted(few, firsts[shard : shard + 2]))
        for item, owner in zip(here.tolist(), owner_of(here, ranks).tolist(), strict=True):
            parcels[owner].append((item, candidates[few[item] - firsts[shard]]))
    got = sorted(itertools.chain.from_iterable(ranks.exchange(parcels)), key=lambda pair: pair[0])
    return [candidate for _, candidate in got], Spread.dealt(ranks, len(few))


def _screened(candidates: Sequence[Candidate]) -> tuple[list[str], BoolArray]:
    """Why each cannot be labelled (empty: it can), and whether a walker stopped there."""
    stopped = np.array([candidate.reason is not StopReason.RUNNING for candidate in candidates], dtype=np.bool_)
    return [unphysical(candidate.frame) for candidate in candidates], stopped
