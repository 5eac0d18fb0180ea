"""The select task: what walkers propose, looked at with the newest model, becomes a batch to label.

Several ranks share the candidates: each reads, screens, compares and scores a part, and keeps the features of it. What is
computed in batches is computed in the same ones however many ranks there are.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from pipeline.durable import written_into
from pipeline.errors import DiskFullError, PipelineError
from pipeline.frames import BoolArray, FloatArray, Frame, IntArray
from pipeline.node import ANYWHERE, Node
from pipeline.potentials import Model, load
from pipeline.ranks import ALONE, Ranks, device_of, gpus
from pipeline.records import Candidate, Remark, SelectResult, SelectTask, Status, Stopwatch
from pipeline.selection.dedupe import duplicates
from pipeline.selection.methods import pick
from pipeline.selection.pool import read_pool
from pipeline.selection.rows import Features, Rows
from pipeline.selection.spread import BLOCK, Spread
from pipeline.shards import listed, read_labels, write_candidates
from pipeline.together import run_together

NEEDS_KNOWN = ("maxdist", "lcmd")
"""Methods that measure distances from the labelled structures."""
SINGLE_ABOVE_BYTES = 2**32
"""Features of all candidates that would take more in double precision are kept in single precision."""
ATOM_BYTES = 2**18
"""Of GPU memory for an atom whose energy, forces and features are computed, ample."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Candidates with the newest model's uncertainties, and the largest force it predicts on an atom of each, eV/Å."""

    candidates: list[Candidate]
    largest_force: FloatArray


def run_select(task: SelectTask, node: Node = ANYWHERE) -> SelectResult:
    """Pick at most ``task.count`` candidates; says how many were dropped for which reason.

    The result depends on the task and the files it names alone. A file that is missing, damaged or cannot be written, or a rank
    that died, is a FAILED result that says so.

    Raises:
        DiskFullError: there is no space for the picks.
    """
    watch = Stopwatch()
    remarks: list[Remark] = []
    try:
        if task.ranks > 1:
            return run_together(task, SelectResult, node)
        torch.set_num_threads(task.threads)
        return replace(select(task, node, ALONE, remarks.append), remarks=tuple(remarks))
    except DiskFullError:
        raise
    except PipelineError as error:
        return SelectResult(
            task=task.task,
            status=Status.FAILED,
            reason=str(error),
            picks=None,
            count=0,
            dropped={},
            timing=watch.stop(),
            remarks=tuple(remarks),
        )


def select(task: SelectTask, node: Node, ranks: Ranks, tell: Callable[[Remark], None]) -> SelectResult:
    """:func:`run_select` by these ranks. All of them get the result, the first writes the picks.

    Raises:
        PipelineError: a file is missing, damaged or cannot be written.
    """
    watch = Stopwatch()
    dropped: Counter[str] = Counter()
    model = load(node.model_file(task.model.file, tell), task.model.file.sha256).to(device_of(node.device, ranks))
    picks = _picks(task, model, dropped, ranks)
    output, file = Path(task.output), None
    if ranks.first:
        with written_into(output):
            file = write_candidates(output / "picks.h5", picks)
    return SelectResult(
        task=task.task,
        status=Status.DONE,
        reason="",
        picks=ranks.broadcast(file),
        count=len(picks),
        dropped={reason: count for reason, count in sorted(dropped.items()) if count},
        timing=watch.stop(),
    )


def _picks(task: SelectTask, model: Model, dropped: Counter[str], ranks: Ranks) -> list[Candidate]:
    """The picked candidates in order of value, on every rank."""
    known = _known(task, ranks)
    pool, spread = read_pool(task.candidates, task.settings.max_candidates, ranks, dropped)
    same = duplicates(
        [candidate.frame for candidate in pool],
        list(itertools.chain.from_iterable(known)),
        tolerance_A=task.settings.duplicate_A,
        spread=spread,
    )
    fresh = np.flatnonzero(~same)
    together = _together(model.device, max((len(candidate.frame) for candidate in pool), default=1), ranks)
    scored = [rescore(model, [pool[k] for k in block]) for block in _blocks(fresh, spread, together)]
    newest = dict(zip(fresh.tolist(), itertools.chain.from_iterable(part.candidates for part in scored), strict=True))
    largest = np.concatenate([np.zeros(0), *(part.largest_force for part in scored)])
    good = np.isfinite(largest)
    gentle = good & (largest <= task.settings.max_force_eV_per_A)
    counts = ranks.sum(np.array([same.sum(), (~good).sum(), (good & ~gentle).sum()], dtype=np.float64))
    dropped.update(dict(zip(("duplicate", "not_finite", "force"), map(int, counts), strict=True)))
    kept = spread.kept(fresh[gentle])
    if kept.count == 0:
        return []
    double = kept.count * model.first.feature_dimension * 8 <= SINGLE_ABOVE_BYTES
    wanted = known if task.settings.kind in NEEDS_KNOWN else []
    origin = None if double else _origin(model, wanted, ranks)
    places = fresh[gentle]
    groups = ([newest[k].frame for k in block] for block in _blocks(places, spread, together))
    features = _features(model, groups, len(kept.items), double, BLOCK * together, origin)
    sound = _finite(features)
    lost = int(ranks.sum(np.array([(~sound).sum()], dtype=np.float64))[0])
    dropped["not_finite"] += lost
    if lost:
        features, places, kept = features[sound], places[sound], kept.kept(np.flatnonzero(sound))
    if kept.count == 0:
        return []
    reference = _features(model, wanted, sum(map(len, wanted)), double, BLOCK * together, origin)
    reference = reference[_finite(reference)]
    device = str(model.device)
    chosen = pick(task.settings, features, reference, kept, count=task.count, seed=task.seed, device=device)
    here = dict(zip(kept.items.tolist(), places.tolist(), strict=True))
    found = [(item, newest[here[item]]) for item in chosen if item in here]
    picked = dict(itertools.chain.from_iterable(ranks.gather(found)))
    return [picked[item] for item in chosen]


def _known(task: SelectTask, ranks: Ranks) -> list[list[Frame]]:
    """Structures that need no label, shard by shard: consecutive ones on each rank."""
    shards = listed(task.labels)
    mine = ranks.mine(np.arange(len(shards)))
    known = [[label.frame for label in read_labels(shards[k])] for k in mine]
    return [*known, list(task.in_flight)] if ranks.rank == ranks.size - 1 else known


def _together(device: torch.device, largest: int, ranks: Ranks) -> int:
    """Blocks of structures of at most ``largest`` atoms that are computed at a time: a GPU is kept busy by many.

    What the rank with least memory can; ranks that share a GPU divide what is free on it.
    """
    own, blocks = gpus(str(device), ranks), 1
    if device.type == "cuda":
        free = int(torch.cuda.mem_get_info(device)[0]) // own.count(own[ranks.rank])
        blocks = free // (2 * ATOM_BYTES * largest * BLOCK)
    return max(1, min(ranks.gather(blocks)))


def _blocks(places: IntArray, spread: Spread, together: int) -> list[IntArray]:
    """Places on this rank, those of ``together`` consecutive blocks together."""
    edges = np.flatnonzero(np.diff(spread.items[places] // (BLOCK * together))) + 1
    return np.split(places, edges) if len(places) else []


def _origin(model: Model, known: Sequence[Sequence[Frame]], ranks: Ranks) -> FloatArray | None:
    """(P,) what distances are measured from when rows are kept in single precision: one of the structures that are known.

    What all rows have in common leaves distances alone, but takes the digits they are computed with. None: nothing is known.
    """
    first = next((group[:1] for group in known if group), [])
    own = model.kernel_features(first)[0] if first else None
    finite = [row for row in ranks.gather(own) if row is not None and np.isfinite(row).all()]
    return finite[0] if finite else None


def _features(
    model: Model, groups: Iterable[Sequence[Frame]], count: int, double: bool, batch: int, origin: FloatArray | None
) -> Features:
    """(n, P) kernel features of ``count`` structures as seen from ``origin``, group by group and in batches."""
    shape = (count, model.first.feature_dimension)
    features: Features = np.empty(shape, dtype=np.float64) if double else np.empty(shape, dtype=np.float32)
    done = 0
    for group in groups:
        if group:
            found = model.kernel_features(group, batch_size=batch)
            features[done : done + len(group)] = found if origin is None else found - origin
            done += len(group)
    return features


def _finite(features: Features) -> BoolArray:
    """(n,) where |x|² is a number that methods can compare."""
    finite: BoolArray = torch.isfinite(Rows(features).squares()).numpy()
    return finite


def rescore(model: Model, candidates: Sequence[Candidate]) -> Scored:
    """Candidates with the uncertainties a model gives them; an infinite force where it has no finite answer."""
    if not candidates:
        return Scored([], np.zeros(0))
    frames = [candidate.frame for candidate in candidates]
    result = model.evaluate(frames, batch_size=len(frames))
    assert result.total_uncertainty is not None
    assert result.atomic_uncertainty is not None
    ends = np.cumsum([len(candidate.frame) for candidate in candidates])[:-1]
    uncertainties = np.split(result.atomic_uncertainty.astype(np.float32), ends)
    largest = np.array([np.linalg.norm(part, axis=1).max() for part in np.split(result.forces, ends)], dtype=np.float64)
    finite = np.isfinite(result.energies) & np.isfinite(result.total_uncertainty)
    scored = [
        replace(candidate, total_uncertainty=float(total), atomic_uncertainty=atomic)
        for candidate, total, atomic in zip(candidates, result.total_uncertainty, uncertainties, strict=True)
    ]
    return Scored(scored, np.where(finite, largest, np.inf))
