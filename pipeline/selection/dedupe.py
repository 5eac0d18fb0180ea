"""Structures that are the same: equal up to rotation, translation, and permutation of equal atoms.

Shapes: n structures, N atoms, D pairs. Two structures of one composition are the same when the root-mean-square difference of
their interatomic distances, sorted within each pair of elements, is below a tolerance. Mirror images have equal distances
(and equal energies) and count as the same.
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.frames import BoolArray, FloatArray, Frame, IntArray

Float32Array = npt.NDArray[np.float32]
Key = tuple[bytes, bytes]

CHUNK_FRAMES = 64
BLOCK = 512
IMAGES = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
HALF_IMAGES = IMAGES[14:]
"""One of each pair of opposite lattice translations."""


def duplicates(candidates: Sequence[Frame], known: Sequence[Frame], *, tolerance_A: float) -> BoolArray:
    """Which candidates are the same as a known structure or an earlier candidate that is none itself.

    Args:
        candidates: (n,) structures in order of preference.
        known: structures that need not be seen again.
        tolerance_A: root-mean-square difference of sorted distances below which two structures are the same, Å; with 0 only
            exactly equal ones are.

    Returns:
        (n,) True for duplicates.
    """
    same = np.zeros(len(candidates), dtype=np.bool_)
    seen = {frame.identity for frame in known}
    for k, frame in enumerate(candidates):
        same[k] = frame.identity in seen
        seen.add(frame.identity)
    if tolerance_A == 0:
        return same
    references, pools = defaultdict(list), defaultdict(list)
    for frame in known:
        references[_key(frame)].append(frame)
    for index in np.flatnonzero(~same).tolist():
        pools[_key(candidates[index])].append(index)
    for key, members in pools.items():
        rows = fingerprints([*references[key], *(candidates[k] for k in members)])
        same[members] = _greedy(rows, len(references[key]), tolerance_A)
    return same


def fingerprints(frames: Sequence[Frame]) -> Float32Array:
    """(n, D') rows whose Euclidean distance is the root-mean-square difference of sorted distances, Å.

    Periodic structures take the shortest image of every pair; the lengths of lattice translations are compared beside it.

    Args:
        frames: structures of one composition and periodicity.
    """
    order = np.argsort(frames[0].numbers, kind="stable")
    i, j = np.triu_indices(len(frames[0]), k=1)
    numbers = frames[0].numbers[order]
    segments = _segments(numbers[i], numbers[j])
    chunks = []
    for start in range(0, len(frames), CHUNK_FRAMES):
        chunk = frames[start : start + CHUNK_FRAMES]
        positions = np.stack([frame.positions[np.argsort(frame.numbers, kind="stable")] for frame in chunk])
        cells, pbc = np.stack([frame.cell for frame in chunk]), frames[0].pbc
        distances = _shortest(positions[:, i] - positions[:, j], cells, pbc)
        rows = [np.sort(distances[:, segment], axis=1) / np.sqrt(max(len(i), 1)) for segment in segments]
        chunks.append(np.concatenate([*rows, _lattice_lengths(cells, pbc)], axis=1))
    together = np.concatenate(chunks)
    # centred: single precision is then enough for differences of a hundredth of an angstrom
    centred: Float32Array = (together - together.mean(axis=0)).astype(np.float32)
    return centred


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


def _greedy(rows: Float32Array, known: int, tolerance_A: float) -> BoolArray:
    """Which rows after the first ``known`` lie within the tolerance of a known one or of an earlier one that is kept."""
    pool = rows[known:]
    same = np.zeros(len(pool), dtype=np.bool_)
    kept = [rows[:known]]
    for start in range(0, len(pool), BLOCK):
        block = pool[start : start + BLOCK]
        near = np.zeros(len(block), dtype=np.bool_)
        for others in kept:
            near |= (_squared(block, others) < tolerance_A**2).any(axis=1)
        inside = _squared(block, block) < tolerance_A**2
        for k in range(len(block)):
            if not near[k]:
                near[k + 1 :] |= inside[k, k + 1 :]
        kept.append(block[~near])
        same[start : start + BLOCK] = near
    return same


def _squared(a: Float32Array, b: Float32Array) -> Float32Array:
    """(len(a), len(b)) squared distances."""
    squared: Float32Array = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None, :] - 2.0 * (a @ b.T)
    return squared
