"""How wrong a model is on labels, and whether its uncertainty said so.

Shapes: n structures, A atoms. Units: eV/atom, eV/Å.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.frames import FloatArray
from pipeline.potentials.evaluation import Evaluation, join
from pipeline.potentials.model import Model
from pipeline.ranks import ALONE, Ranks
from pipeline.records import Label, Scores

BLOCK = 64
"""Structures evaluated at a time."""


@dataclass(frozen=True, slots=True)
class Residuals:
    """Errors on labels.

    Attributes:
        energy: (n,) signed energy errors per atom, eV/atom.
        force: (A, 3) signed force errors, eV/Å.
        evaluation: what the model said.
    """

    energy: FloatArray
    force: FloatArray
    evaluation: Evaluation

    @property
    def force_norm(self) -> FloatArray:
        """(A,) norms of the force error vectors, eV/Å."""
        norms: FloatArray = np.linalg.norm(self.force, axis=1)
        return norms


def residuals(model: Model, labels: Sequence[Label], *, uncertainty: bool = True, ranks: Ranks = ALONE) -> Residuals:
    """Evaluate a model on labels, at least one; each rank computes a part and knows the whole."""
    own = [label.frame for label in labels[ranks.blocks(len(labels), BLOCK)]]
    part = model.evaluate(own, uncertainty=uncertainty, batch_size=BLOCK) if own else None
    parts = [one for one in ranks.gather(part) if one is not None]
    evaluation = join(parts, [len(one.energies) for one in parts])
    sizes = np.array([len(label.frame) for label in labels])
    energies = np.array([label.energy for label in labels])
    forces = np.concatenate([label.forces for label in labels])
    return Residuals((evaluation.energies - energies) / sizes, evaluation.forces - forces, evaluation)


def score(model: Model, labels: Sequence[Label], *, coverage: bool = True, ranks: Ranks = ALONE) -> Scores | None:
    """Errors and coverage on labels; None without labels.

    Args:
        model: calibrated.
        labels: for ``coverage`` none of those that trained or calibrated the model.
        coverage: how often the calibrated uncertainties bounded the errors; off for labels that were trained on.
        ranks: who shares the work.
    """
    if not labels:
        return None
    found = residuals(model, labels, uncertainty=coverage, ranks=ranks)
    total = atomic = None
    if coverage:
        said = found.evaluation
        assert said.total_uncertainty is not None
        assert said.atomic_uncertainty is not None
        total = float(np.mean(np.abs(found.energy) <= said.total_uncertainty))
        atomic = float(np.mean(found.force_norm <= said.atomic_uncertainty))
    return Scores(
        count=len(labels),
        energy_rmse=float(np.sqrt(np.mean(found.energy**2))),
        energy_mae=float(np.mean(np.abs(found.energy))),
        force_rmse=float(np.sqrt(np.mean(found.force**2))),
        force_mae=float(np.mean(np.abs(found.force))),
        coverage_total=total,
        coverage_atomic=atomic,
    )
