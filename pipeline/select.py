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
from pipeline.ranks import ALONE, Ranks, device_of
from pipeline.records import Candidate, Remark, SelectResult, SelectTask, Status, Stopwatch
from pipeline.selection.dedupe import duplicates
from pipeline.selection.kernel_rows import comparable, is_double, kernel_rows, origin
from pipeline.selection.known import read_known
from pipeline.selection.ordering import Method, most_uncertain
from pipeline.selection.pending import CONDITIONED, given
from pipeline.selection.pool import read_pool
from pipeline.selection.rows import Features
from pipeline.selection.scores import Scored, blocks_together, in_blocks, rescore
from pipeline.selection.spread import BLOCK, Spread
from pipeline.shards import write_candidates
from pipeline.together import run_together

NEEDS_KNOWN = ("maxdist", "lcmd")
"""Methods that measure distances from the labelled structures."""


@dataclass(frozen=True, slots=True)
class Survivors:
    """Candidates of this rank that may be labelled.

    Attributes:
        candidates: n of them, with the newest model's uncertainties.
        bounds: (n,) the largest calibrated bound on an atom's force error of each, eV/Å.
        items: (n,) which of all that were compared, ascending: what batches are made by.
        spread: which of all survivors.
        together: blocks that are computed at a time.
    """

    candidates: list[Candidate]
    bounds: FloatArray
    items: IntArray
    spread: Spread
    together: int

    def kept(self, places: IntArray) -> "Survivors":
        """Some of them."""
        candidates = [self.candidates[k] for k in places]
        return replace(
            self,
            candidates=candidates,
            bounds=self.bounds[places],
            items=self.items[places],
            spread=self.spread.kept(places),
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """What is kept, in order, how many of it are picked, and how many that were waiting need no label any more."""

    rows: list[Candidate]
    count: int
    saved: int


def run_select(task: SelectTask, node: Node = ANYWHERE) -> SelectResult:
    """Pick at most ``task.count`` candidates, keep others for later; says how many were dropped for which reason.

    Of all rows that are read, each is kept or counted under one reason.

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
            kept=0,
            saved=0,
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
    choice = _choice(task, model, dropped, ranks)
    output, file = Path(task.output), None
    if ranks.first:
        with written_into(output):
            file = write_candidates(output / "picks.h5", choice.rows)
    return SelectResult(
        task=task.task,
        status=Status.DONE,
        reason="",
        picks=ranks.broadcast(file),
        count=choice.count,
        kept=len(choice.rows),
        saved=choice.saved,
        dropped={reason: count for reason, count in sorted(dropped.items()) if count},
        timing=watch.stop(),
    )


def _choice(task: SelectTask, model: Model, dropped: Counter[str], ranks: Ranks) -> Choice:
    """What is kept, on every rank."""
    known = read_known((*task.labels, *task.unlearned), task.in_flight, ranks)
    found, saved = _survivors(task, model, list(itertools.chain.from_iterable(known)), dropped, ranks)
    features, reference, sound = _rows(task, model, found, known, ranks)
    lost = found.spread.count
    found = found.kept(np.flatnonzero(sound))
    dropped["not_finite"] += lost - found.spread.count
    if found.spread.count == 0:
        return Choice([], 0, saved)
    if task.settings.kind in CONDITIONED:
        (waiting,) = _comparable(model, [itertools.chain(*read_known(task.unlearned, task.in_flight, ALONE))])
        pending = kernel_rows(model, [waiting], len(waiting), True, BLOCK, None)
        features = given(features, pending[comparable(pending)], task.sigma)
    device = str(model.device)
    method = Method(settings=task.settings, count=min(task.count, task.keep), seed=task.seed, device=device)
    if task.shares:
        systems = [candidate.frame.system for candidate in found.candidates]
        picks = method.shared_picks(
            features, reference, found.spread, systems=systems, shares=task.shares, labelled=task.labelled
        )
    else:
        picks = method.picks(features, reference, found.spread)
    order = [*picks, *most_uncertain(found.bounds, found.spread, picks, task.keep - len(picks))]
    dropped["surplus"] += found.spread.count - len(order)
    return Choice(_told(order, found, ranks), len(picks), saved)


def _survivors(
    task: SelectTask, model: Model, known: Sequence[Frame], dropped: Counter[str], ranks: Ranks
) -> tuple[Survivors, int]:
    """Candidates that may be labelled, and how many that were waiting need no label any more."""
    read, spread = read_pool(task.pool, task.candidates, task.settings.max_candidates, ranks, dropped)
    frames = [candidate.frame for candidate in read]
    alike = duplicates(frames, known, tolerance_A=task.settings.duplicate_A, spread=spread)
    fresh = np.flatnonzero(~alike.same)
    items = spread.items[fresh]
    together = blocks_together(model.device, max(map(len, frames), default=1), ranks)
    scored = Scored.joined([rescore(model, [read[k] for k in fresh[block]]) for block in in_blocks(items, together)])
    good = np.isfinite(scored.largest_force)
    gentle = good & (scored.largest_force <= task.settings.max_force_eV_per_A)
    certain = gentle & scored.known_below(task.known_eV_per_A)
    needless = alike.of_known.copy()
    needless[fresh[certain]] = True
    saved = needless & (spread.items < task.waiting)
    numbers = [alike.same.sum(), (~good).sum(), (good & ~gentle).sum(), certain.sum(), saved.sum()]
    *counts, waiting = map(int, ranks.sum(np.array(numbers, dtype=np.float64)))
    dropped.update(dict(zip(("duplicate", "not_finite", "force", "known"), counts, strict=True)))
    every = Survivors(scored.candidates, scored.bounds, items, spread.kept(fresh), together)
    return every.kept(np.flatnonzero(gentle & ~certain)), waiting


def _rows(
    task: SelectTask, model: Model, found: Survivors, known: Sequence[Sequence[Frame]], ranks: Ranks
) -> tuple[Features, Features, BoolArray]:
    """What methods compare: rows of candidates and of known structures, both without those that are not finite, and which
    candidates have finite ones."""
    wanted = _comparable(model, known) if task.settings.kind in NEEDS_KNOWN and found.spread.count else []
    double = is_double(model, found.spread.count)
    zero = None if double else origin(model, wanted, ranks)
    batch = BLOCK * found.together
    groups = ([found.candidates[k].frame for k in block] for block in in_blocks(found.items, found.together))
    features = kernel_rows(model, groups, len(found.candidates), double, batch, zero)
    reference = kernel_rows(model, wanted, sum(map(len, wanted)), double, batch, zero)
    sound = comparable(features)
    return features if sound.all() else features[sound], reference[comparable(reference)], sound


def _comparable(model: Model, groups: Sequence[Iterable[Frame]]) -> list[list[Frame]]:
    """Structures whose elements the model knows: of others it has no features, and no candidate is like them."""
    elements = set(model.elements)
    return [[frame for frame in group if elements.issuperset(frame.numbers.tolist())] for group in groups]


def _told(order: Sequence[int], found: Survivors, ranks: Ranks) -> list[Candidate]:
    """Survivors in an order, on every rank."""
    here = {item: place for place, item in enumerate(found.spread.items.tolist())}
    own = [(item, found.candidates[here[item]]) for item in order if item in here]
    every = dict(itertools.chain.from_iterable(ranks.gather(own)))
    return [every[item] for item in order]
