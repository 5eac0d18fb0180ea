"""The select task: what walkers propose, looked at with the newest model, becomes a batch to label."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from pipeline.durable import written_into
from pipeline.errors import DiskFullError, PipelineError
from pipeline.frames import FloatArray, Frame
from pipeline.node import ANYWHERE, Node
from pipeline.potentials import Model, load
from pipeline.records import Candidate, Remark, SelectResult, SelectTask, Status, Stopwatch
from pipeline.selection.dedupe import duplicates
from pipeline.selection.methods import pick
from pipeline.selection.screening import thinned, unphysical
from pipeline.shards import read_candidates, read_labels, write_candidates

NEEDS_KNOWN = ("maxdist", "lcmd")
"""Methods that measure distances from the labelled structures."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Candidates with the newest model's uncertainties, and the largest force it predicts on an atom of each, eV/Å."""

    candidates: list[Candidate]
    largest_force: FloatArray


def run_select(task: SelectTask, node: Node = ANYWHERE) -> SelectResult:
    """Pick at most ``task.count`` candidates; says how many were dropped for which reason.

    The result depends on the task and the files it names alone. A file that is missing, damaged or cannot be written is a
    FAILED result that names it.

    Raises:
        DiskFullError: there is no space for the picks.
    """
    watch = Stopwatch()
    remarks: list[Remark] = []
    torch.set_num_threads(task.threads)
    dropped: Counter[str] = Counter()
    output = Path(task.output)
    try:
        picks = _picks(task, load(node.model_file(task.model.file, remarks.append), task.model.file.sha256), dropped)
        with written_into(output):
            file = write_candidates(output / "picks.h5", picks)
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
    return SelectResult(
        task=task.task,
        status=Status.DONE,
        reason="",
        picks=file,
        count=len(picks),
        dropped={reason: count for reason, count in sorted(dropped.items()) if count},
        timing=watch.stop(),
        remarks=tuple(remarks),
    )


def _picks(task: SelectTask, model: Model, dropped: Counter[str]) -> list[Candidate]:
    known = [*(label.frame for label in read_labels(task.labels)), *task.in_flight]
    pool = read_candidates(task.candidates)
    pool = _screened(task, pool, known, dropped)
    scored = rescore(model, pool)
    good = np.isfinite(scored.largest_force)
    dropped["not_finite"] += int((~good).sum())
    gentle = scored.largest_force <= task.settings.max_force_eV_per_A
    dropped["force"] += int((good & ~gentle).sum())
    pool = [scored.candidates[k] for k in np.flatnonzero(good & gentle)]
    if not pool:
        return []
    features = model.kernel_features([candidate.frame for candidate in pool])
    labelled = known if task.settings.kind in NEEDS_KNOWN else known[:0]
    reference = model.kernel_features(labelled) if labelled else features[:0]
    chosen = pick(task.settings, features, reference, count=task.count, seed=task.seed)
    return [pool[k] for k in chosen]


def _screened(
    task: SelectTask, pool: list[Candidate], known: Sequence[Frame], dropped: Counter[str]
) -> list[Candidate]:
    """The candidates without those that are unphysical, too many, or known."""
    reasons = [unphysical(candidate.frame) for candidate in pool]
    dropped.update(reason for reason in reasons if reason)
    sound = [candidate for candidate, reason in zip(pool, reasons, strict=True) if not reason]
    few = thinned(sound, task.settings.max_candidates)
    dropped["thinned"] += len(sound) - len(few)
    same = duplicates([candidate.frame for candidate in few], known, tolerance_A=task.settings.duplicate_A)
    dropped["duplicate"] += int(same.sum())
    return [candidate for candidate, again in zip(few, same, strict=True) if not again]


def rescore(model: Model, candidates: Sequence[Candidate]) -> Scored:
    """Candidates with the uncertainties a model gives them; an infinite force where it has no finite answer."""
    if not candidates:
        return Scored([], np.zeros(0))
    result = model.evaluate([candidate.frame for candidate in candidates])
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
