"""The gate: a new model replaces the running one only when it is not worse.

Both models are asked the same two things: the validation labels, on which neither was trained, and short walks from the same
structures with the same velocities. What chance explains does not count against the new one.

Shapes: n structures, A atoms. Units: eV/atom, eV/Å.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.frames import FloatArray
from pipeline.potentials.model import Model
from pipeline.ranks import ALONE, Ranks
from pipeline.records import GateReport, Label, Scores, Split, TrainTask
from pipeline.seeds import Stream, seed_for
from pipeline.settings.training import GateSettings
from pipeline.training.scoring import Residuals, errors_of, residuals
from pipeline.training.short_walks import newest_starts, unsound_walks

NOISE = 2.0
"""A difference counts from so many standard errors on.

One structure that went wrong alone, however far, makes a difference of one. Of two models that are equally good the second is
called worse, by the errors of one kind, in 12 % (2 structures), 7 % (3), 5 % (5) and 3 % (10 and more) of drawn cases, in which
the error of a model on a structure is log-normal with a width of 0.5 that both share and of 0.3 that they do not. Of 137 models
of seven campaigns of alanine dipeptide three are refused, whose energy and force errors are both 22 to 49 % larger; one
standard error of squared errors refuses six more, five of them with smaller force errors.
"""
FEW_FACTOR = {"energy": 10.0, "force": 2.0}
"""With few structures, errors are worse from so many times the parent's on, and so many times the floor."""
MORE_WALKS = 2
"""A model that loses fewer walks more than its parent is not refused: one may be chance, unless it is the only one."""
MORE_SHARE = 0.25
"""Nor is one that loses up to this share of the walks more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measure:
    """What makes one kind of error worse.

    Attributes:
        floor: an RMSE up to this is never worse: nothing that is computed with the model notices it, and a parent that is
            nearly exact would refuse everything.
        fewest: validation structures from which differences are compared with their noise; of fewer only what is many times
            as wrong. An energy is one number, and a refusal for chance costs a training from scratch; forces are many numbers.
    """

    name: Literal["energy", "force"]
    unit: str
    floor: float
    fewest: int


_ENERGY = _Measure(name="energy", unit="eV/atom", floor=0.001, fewest=8)
_FORCE = _Measure(name="force", unit="eV/Å", floor=0.005, fewest=2)


def gate(
    parent: Model, model: Model, labels: Sequence[Label], task: TrainTask, settings: GateSettings, ranks: Ranks = ALONE
) -> GateReport:
    """Whether ``model`` may replace ``parent``. All ranks get the report.

    Args:
        parent: the running model.
        model: the new one; on the same device.
        labels: all of the task, oldest first; those with elements the parent does not know are left out.
        task: gives the seed, and what walkers have in common.
        settings: of the gate.
        ranks: who shares the work: all of them score, the first one walks.
    """
    known = set(parent.elements)
    labels = [label for label in labels if known.issuperset(label.frame.numbers.tolist())]
    validation = [label for label in labels if label.split is Split.VALIDATION]
    scores: tuple[Scores, Scores] | tuple[None, None] = (None, None)
    reasons: list[str] = []
    finite = True
    if validation:
        # the new model's epoch was picked on these labels, some of which its parent never met: slightly in its favour
        old, new = (residuals(one, validation, uncertainty=False, ranks=ranks) for one in (parent, model))
        scores = errors_of(old), errors_of(new)
        finite = bool(np.isfinite(new.energy).all() and np.isfinite(new.force).all())
        reasons = _worse(old, new, validation, settings.tolerance) if finite else [_not_finite(new, validation)]
    walks, unsound = _walked(parent, model, labels, task, settings, ranks) if finite else (0, (0, 0))
    if lost_more(walks, *unsound):
        reasons.append(
            f"{unsound[1]} of {walks} short walks ended with atoms too close or alone, forces beyond the limit, or no numbers; "
            f"{unsound[0]} with the running model"
        )
    return GateReport(
        passed=not reasons,
        reason="; ".join(reasons),
        parent=scores[0],
        model=scores[1],
        walks=walks,
        parent_unsound=unsound[0],
        model_unsound=unsound[1],
    )


def is_worse(old: FloatArray, new: FloatArray) -> bool:
    """Whether errors are larger beyond noise, paired by structure.

    Args:
        old, new: (n,) unsigned errors of two models on the same structures, at least two. Their squares would weigh single
            structures so much that it takes several times as many of them to see the same difference.
    """
    difference = new - old
    return bool(difference.mean() > NOISE * difference.std(ddof=1) / np.sqrt(len(difference)))


def lost_more(walks: int, parent_unsound: int, model_unsound: int) -> bool:
    """Whether a model lost more walks than its parent, beyond chance; a sound one loses none."""
    more = model_unsound - parent_unsound
    return more >= min(MORE_WALKS, walks) and more > MORE_SHARE * walks


def _worse(old: Residuals, new: Residuals, labels: Sequence[Label], tolerance: float) -> list[str]:
    """In which errors the new model is worse, with numbers."""
    count, atoms = len(labels), [len(label.frame) for label in labels]
    reasons = []
    for measure, pair, rows in (
        (_ENERGY, (old.energy, new.energy), [1] * count),
        (_FORCE, (old.force, new.force), atoms),
    ):
        before, after = (_rms(values) for values in pair)
        if after <= max((1 + tolerance) * before, measure.floor):
            continue
        was, now = (_by_structure(values, rows) for values in pair)
        if is_worse(was, now) if count >= measure.fewest else _is_far(was, now, measure):
            on = "1 validation label" if count == 1 else f"{count} validation labels"
            reasons.append(
                f"{measure.name} RMSE {after:.3g} {measure.unit} on {on}, {before:.3g} with the running model: "
                f"more than {100 * tolerance:g} % larger, and beyond noise"
            )
    return reasons


def _is_far(old: FloatArray, new: FloatArray, measure: _Measure) -> bool:
    """Whether (n,) errors on few structures are many times as large on more than half of them."""
    middle = (len(old) - 1) // 2
    before, after = (float(np.sort(errors)[middle]) for errors in (old, new))
    return after > FEW_FACTOR[measure.name] * max(before, measure.floor)


def _not_finite(found: Residuals, labels: Sequence[Label]) -> str:
    """That a model gives no numbers, and on how many labels."""
    forces = _by_structure(found.force, [len(label.frame) for label in labels])
    count = int((~np.isfinite(found.energy + forces)).sum())
    return f"energies or forces of {count} of {len(labels)} validation labels are no finite numbers"


def _walked(
    parent: Model, model: Model, labels: Sequence[Label], task: TrainTask, settings: GateSettings, ranks: Ranks
) -> tuple[int, tuple[int, int]]:
    """Walks made with each model, and how many of the parent's and of the new model's ended in what cannot be."""
    starts = newest_starts([label for label in labels if label.split is not Split.CALIBRATION], settings.walkers)
    unsound = (0, 0)
    if ranks.first and starts:
        # the seed of the task itself draws weights; a second attempt is asked for the same walks
        seed = seed_for(task.seed, Stream.WALK, 0, 0)
        old, new = (
            unsound_walks(one, starts, settings=task.walkers, steps=settings.steps, seed=seed)
            for one in (parent, model)
        )
        unsound = (old, new)
    return len(starts), ranks.broadcast(unsound)


def _by_structure(errors: FloatArray, rows: Sequence[int]) -> FloatArray:
    """(n,) root mean squares of the errors of each structure, which has so many rows."""
    return np.array([_rms(part) for part in np.split(errors, np.cumsum(rows)[:-1])])


def _rms(values: FloatArray) -> float:
    return float(np.sqrt(np.mean(values**2)))
