"""Structures that are the same: equal up to rotation, translation, and permutation of equal atoms.

Shapes: n structures, N atoms, D pairs. Two structures of one composition are the same when the root-mean-square difference of
their interatomic distances, sorted within each pair of elements, is below a tolerance. Mirror images have equal distances
(and equal energies) and count as the same.
"""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.frames import BoolArray, FloatArray, Frame, IntArray
from pipeline.selection.spread import BLOCK, Spread, owner_of

Float32Array = npt.NDArray[np.float32]
Key = tuple[bytes, bytes]

CHUNK_FRAMES = 64
IMAGES = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
HALF_IMAGES = IMAGES[14:]
"""One of each pair of opposite lattice translations."""


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Which of n candidates need not be seen.

    Attributes:
        same: (n,) the same as a known structure or as an earlier candidate that is none itself.
        of_known: (n,) the same as a known structure; exact copies of earlier candidates only where these are exactly known.
    """

    same: BoolArray
    of_known: BoolArray


def duplicates(
    candidates: Sequence[Frame], known: Sequence[Frame], *, tolerance_A: float, spread: Spread | None = None
) -> Duplicates:
    """Which candidates are the same as a known structure or an earlier candidate that is none itself.

    Several ranks share candidates and known structures: blocks visit all ranks in the order of the candidates, each compares
    them with what it holds, and those that are new stay with their owner.

    Args:
        candidates: (n,) structures in order of preference.
        known: structures that need not be seen again.
        tolerance_A: root-mean-square difference of sorted distances below which two structures are the same, Å; with 0 only
            exactly equal ones are.
        spread: which of all candidates these are, as :meth:`Spread.dealt` deals them out.
    """
    spread = spread or Spread.alone(len(candidates))
    exact = _repeated(candidates, known, spread)
    if tolerance_A == 0:
        return exact
    same, of_known = exact.same.copy(), exact.of_known.copy()
    references, pools = defaultdict(list), defaultdict(list)
    for frame in known:
        references[_key(frame)].append(frame)
    for place in np.flatnonzero(~same).tolist():
        pools[_key(candidates[place])].append(place)
    seen = {
        key: _Seen([*references[key], *(candidates[k] for k in pools[key])], len(references[key]), origin)
        for key, origin in _origins(candidates, pools, spread).items()
    }
    owners = owner_of(np.arange(0, spread.count, BLOCK), spread.ranks)
    for block, owner in enumerate(owners.tolist()):
        here = np.flatnonzero((spread.items // BLOCK == block) & ~exact.same)
        groups = defaultdict(list)
        for place in here.tolist():
            groups[_key(candidates[place])].append(place)
        visiting = spread.ranks.broadcast({key: seen[key].next(len(places)) for key, places in groups.items()}, owner)
        near = [seen[key].near(rows, tolerance_A) for key, rows in visiting.items()]
        flags = spread.ranks.any(np.concatenate([np.zeros((0, 2), dtype=np.bool_), *near]))
        parts = np.split(flags, np.cumsum(list(map(len, near))))
        for (key, places), found in zip(groups.items(), parts, strict=False):
            same[places] = seen[key].keep(visiting[key], found[:, 0], tolerance_A)
            of_known[places] = found[:, 1]
    return Duplicates(same, of_known)


def fingerprints(frames: Sequence[Frame], origin: Frame | None = None) -> Float32Array:
    """(n, D') rows whose Euclidean distance is the root-mean-square difference of sorted distances, Å.

    Periodic structures take the shortest image of every pair; the lengths of lattice translations are compared beside it.

    Args:
        frames: structures of one composition and periodicity.
        origin: one more of them, whose row is the origin: single precision is then enough for differences of a hundredth of
            an angstrom; None: the first one.
    """
    zero = _distance_rows([origin or frames[0]])
    chunks = [
        (_distance_rows(frames[start : start + CHUNK_FRAMES]) - zero).astype(np.float32)
        for start in range(0, len(frames), CHUNK_FRAMES)
    ]
    rows: Float32Array = np.concatenate([np.zeros((0, zero.shape[1]), dtype=np.float32), *chunks])
    return rows


def _distance_rows(frames: Sequence[Frame]) -> FloatArray:
    """(n, D') sorted distances within each pair of elements, and lattice lengths, each over the root of their number, Å."""
    order = np.argsort(frames[0].numbers, kind="stable")
    i, j = np.triu_indices(len(frames[0]), k=1)
    numbers = frames[0].numbers[order]
    positions = np.stack([frame.positions[np.argsort(frame.numbers, kind="stable")] for frame in frames])
    cells, pbc = np.stack([frame.cell for frame in frames]), frames[0].pbc
    distances = _shortest(positions[:, i] - positions[:, j], cells, pbc)
    rows = [
        np.sort(distances[:, segment], axis=1) / np.sqrt(max(len(i), 1))
        for segment in _segments(numbers[i], numbers[j])
    ]
    return np.concatenate([*rows, _lattice_lengths(cells, pbc)], axis=1)


class _Seen:
    """The structures of one composition on this rank: known ones, candidates found to be new, and candidates still to come.

    Args:
        frames: known ones, then candidates in their order.
        known: how many are known.
        origin: see :func:`fingerprints`, the same on every rank.
    """

    def __init__(self, frames: Sequence[Frame], known: int, origin: Frame) -> None:
        self._rows = fingerprints(frames, origin)
        self._known = self._kept = self._next = known

    def next(self, count: int) -> Float32Array:
        """The rows of the next ``count`` candidates."""
        self._next += count
        return self._rows[self._next - count : self._next].copy()

    def near(self, rows: Float32Array, tolerance_A: float) -> BoolArray:
        """(n, 2) which rows have a known or kept one, and which a known one, within the tolerance."""
        within = _squared(rows, self._rows[: self._kept]) < tolerance_A**2
        return np.stack([within.any(axis=1), within[:, : self._known].any(axis=1)], axis=1)

    def keep(self, rows: Float32Array, near: BoolArray, tolerance_A: float) -> BoolArray:
        """Which rows repeat earlier ones, among them those of this block; the others are kept, over those already seen."""
        near = near.copy()
        inside = _squared(rows, rows) < tolerance_A**2
        for k in range(len(rows)):
            if not near[k]:
                near[k + 1 :] |= inside[k, k + 1 :]
        new = rows[~near]
        self._rows[self._kept : self._kept + len(new)] = new
        self._kept += len(new)
        return near


def _repeated(candidates: Sequence[Frame], known: Sequence[Frame], spread: Spread) -> Duplicates:
    """Which candidates are exactly a known structure or an earlier candidate."""
    names = ([frame.identity for frame in candidates], [frame.identity for frame in known], spread.items)
    whole = [""] * spread.count
    labelled: set[str] = set()
    for candidate_names, known_names, items in spread.ranks.gather(names):
        labelled.update(known_names)
        for item, name in zip(items.tolist(), candidate_names, strict=True):
            whole[item] = name
    same, of_known = np.zeros(spread.count, dtype=np.bool_), np.zeros(spread.count, dtype=np.bool_)
    seen = set(labelled)
    for item, name in enumerate(whole):
        same[item], of_known[item] = name in seen, name in labelled
        seen.add(name)
    return Duplicates(same[spread.items], of_known[spread.items])


def _origins(candidates: Sequence[Frame], pools: Mapping[Key, Sequence[int]], spread: Spread) -> dict[Key, Frame]:
    """The first candidate of every composition that any rank has."""
    own = {key: (int(spread.items[places[0]]), candidates[places[0]]) for key, places in pools.items()}
    first: dict[Key, tuple[int, Frame]] = {}
    for part in spread.ranks.gather(own):
        for key, (item, frame) in part.items():
            if key not in first or item < first[key][0]:
                first[key] = (item, frame)
    return {key: frame for key, (_, frame) in first.items()}


def _key(frame: Frame) -> Key:
    return np.sort(frame.numbers).tobytes(), frame.pbc.tobytes()


def _segments(first: IntArray, second: IntArray) -> list[IntArray]:
    """Indices of the pairs of each pair of elements."""
    code = first * 1000 + second
    return [np.flatnonzero(code == value) for value in np.unique(code)]


def _shortest(vectors: FloatArray, cells: FloatArray, pbc: BoolArray) -> FloatArray:
    """(n, D) length of the shortest image of (n, D, 3) vectors, Å."""
    if not pbc.any():
        return np.asarray(np.linalg.norm(vectors, axis=2))
    full = np.where(pbc[:, None], cells, 0.0) + np.diag(~pbc).astype(np.float64)
    fractions = vectors @ np.linalg.inv(full)
    fractions -= np.where(pbc, np.round(fractions), 0.0)
    wrapped = fractions @ full
    shortest = np.linalg.norm(wrapped, axis=2)
    metric = full @ full.transpose(0, 2, 1)
    if np.allclose(metric, metric * np.eye(3), atol=1e-9):
        return np.asarray(shortest)
    for image in IMAGES[(IMAGES[:, ~pbc] == 0).all(axis=1)]:
        shortest = np.minimum(shortest, np.linalg.norm(wrapped + (image @ full)[:, None, :], axis=2))
    return np.asarray(shortest)


def _lattice_lengths(cells: FloatArray, pbc: BoolArray) -> FloatArray:
    """(n, 13) lengths of short lattice translations over √13, zero along directions that are not periodic, Å."""
    periodic = np.where(pbc[:, None], cells, 0.0)
    return np.asarray(np.linalg.norm(HALF_IMAGES @ periodic, axis=2) / np.sqrt(len(HALF_IMAGES)))


def _squared(a: Float32Array, b: Float32Array) -> Float32Array:
    """(len(a), len(b)) squared distances."""
    squared: Float32Array = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None, :] - 2.0 * (a @ b.T)
    return squared
