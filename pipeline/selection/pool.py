"""Candidates: those kept by earlier selections, and what walkers propose now, screened by several ranks and dealt out."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.frames import BoolArray
from pipeline.ranks import Ranks
from pipeline.records import Candidate, FileRef, FrameRows, StopReason
from pipeline.selection.screening import thinned, unphysical
from pipeline.selection.spread import Spread, owner_of
from pipeline.shards import listed, read_candidates


@dataclass(frozen=True, slots=True)
class Screened:
    """Why candidates cannot be labelled (empty: they can), and at which of them a walker stopped."""

    reasons: list[str]
    stopped: BoolArray


def read_pool(
    kept: FrameRows | None, files: Sequence[FileRef], most: int, ranks: Ranks, dropped: Counter[str]
) -> tuple[list[Candidate], Spread]:
    """Candidates that were kept, in their order, then the sound ones of new shards, at most ``most``, in the order of these.

    Each rank reads and screens some shards. No rank has more than these and its part of the whole.

    Args:
        kept: by an earlier selection, which has screened them; None: there are none.
        files: new shards, or lists of shards.
        most: more new ones are thinned.
        ranks: who shares the work.
        dropped: counts those of all ranks that were left out, by reason.

    Returns:
        The candidates of this rank, and which of all they are.

    Raises:
        StoreError: a shard is missing or changed.
    """
    rows: list[FrameRows | FileRef] = [*([] if kept is None else [kept]), *listed(files)]
    read = {k: _read(rows[k]) for k in range(ranks.rank, len(rows), ranks.size)}
    screened = {k: _screened(candidates, isinstance(rows[k], FileRef)) for k, candidates in read.items()}
    every = dict(itertools.chain.from_iterable(part.items() for part in ranks.gather(screened)))
    known = [every[k] for k in range(len(rows))]
    reasons = list(itertools.chain.from_iterable(one.reasons for one in known))
    stopped = np.concatenate([np.zeros(0, dtype=np.bool_), *(one.stopped for one in known)])
    dropped.update(reason for reason in reasons if reason)
    before = 0 if kept is None else len(kept.rows)
    sound = before + np.flatnonzero([not reason for reason in reasons[before:]])
    few = np.concatenate([np.arange(before), sound[thinned(stopped[sound], most)]])
    dropped["thinned"] += before + len(sound) - len(few)
    firsts = np.cumsum([0, *(len(one.reasons) for one in known)])
    parcels: list[list[tuple[int, Candidate]]] = [[] for _ in range(ranks.size)]
    for k, candidates in read.items():
        here = np.arange(*np.searchsorted(few, firsts[k : k + 2]))
        for item, owner in zip(here.tolist(), owner_of(here, ranks).tolist(), strict=True):
            parcels[owner].append((item, candidates[few[item] - firsts[k]]))
    got = sorted(itertools.chain.from_iterable(ranks.exchange(parcels)), key=lambda pair: pair[0])
    return [candidate for _, candidate in got], Spread.dealt(ranks, len(few))


def _read(some: FrameRows | FileRef) -> list[Candidate]:
    """All candidates of a shard, or those of some rows."""
    if isinstance(some, FileRef):
        return read_candidates(some)
    candidates = read_candidates(some.file)
    return [candidates[row] for row in some.rows]


def _screened(candidates: Sequence[Candidate], new: bool) -> Screened:
    """What is wrong with new candidates; others have been looked at before."""
    stopped = np.array([candidate.reason is not StopReason.RUNNING for candidate in candidates], dtype=np.bool_)
    return Screened([unphysical(candidate.frame) if new else "" for candidate in candidates], stopped)
