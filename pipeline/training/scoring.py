"""How wrong a model is on labels, and whether its uncertainty said so.

Shapes: n structures, A atoms. Units: eV/atom, eV/Å.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.frames import FloatArray
from pipeline.potentials.evaluation import Evaluation
from pipeline.potentials.model import Model
from pipeline.records import Label, Scores


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


def residuals(model: Model, labels: Sequence[Label], *, uncertainty: bool = True) -> Residuals:
    """Evaluate a model on labels."""
    evaluation = model.evaluate([label.frame for label in labels], uncertainty=uncertainty)
    sizes = np.array([len(label.frame) for label in labels])
    energies = np.array([label.energy for label in labels])
    forces = np.concatenate([label.forces for label in labels])
    return Residuals((evaluation.energies - energies) / sizes, evaluation.forces - forces, evaluation)


def score(model: Model, labels: Sequence[Label], *, coverage: bool = True) -> Scores | None:
    """Errors and coverage on labels; None without labels.

    Args:
        model: calibrated.
        labels: for ``coverage`` none of those that trained or calibrated the model.
        coverage: how often the calibrated uncertainties bounded the errors; off for labels that were trained on.
    """
    if not labels:
        return None
    found = residuals(model, labels, uncertainty=coverage)
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
