"""How wrong a model is on labels, and whether its uncertainty said so.

Shapes: n structures, A atoms. Units: eV/atom, eV/Å.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from ase.data import chemical_symbols

from pipeline.frames import FloatArray
from pipeline.potentials.evaluation import Evaluation, join
from pipeline.potentials.model import Model
from pipeline.ranks import ALONE, Ranks
from pipeline.records import Label, Scores
from pipeline.training.checks import Checks, coverages
from pipeline.uncertainty.calibration import Window

BLOCK = 64
"""Structures evaluated at a time."""
_SYMBOLS = np.array(chemical_symbols)


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
    return _scores(found, model, checks(found, labels) if coverage else None)


def score_later(model: Model, labels: Sequence[Label], ranks: Ranks = ALONE) -> tuple[Scores | None, Window]:
    """Errors and coverage on labels that came after the model's calibration, and the window of scores with theirs added.

    The coverage is that of the model as it was: its factors come from the window without them.

    Args:
        model: calibrated before any of the labels was made; a model without calibration labels adds nothing to the window.
        labels: in the order they came.
        ranks: who shares the work.
    """
    calibration = model.estimator.calibration
    if not labels:
        return None, calibration.window
    found = residuals(model, labels, ranks=ranks)
    total, atomic = checks(found, labels)
    window = calibration.window
    if calibration.scales:
        window = window.then(total.points(calibration), atomic.points(calibration))
    return _scores(found, model, (total, atomic)), window


def checks(found: Residuals, labels: Sequence[Label]) -> tuple[Checks, Checks]:
    """Energies, then forces, beside their bounds: of residuals on these labels, with uncertainties."""
    said = found.evaluation
    assert said.total_uncertainty is not None
    assert said.atomic_uncertainty is not None
    order = np.arange(len(labels))
    total = Checks(
        quantity="total",
        errors=np.abs(found.energy),
        bounds=said.total_uncertainty,
        groups=np.array([label.frame.system for label in labels], dtype=np.str_),
        structures=order,
    )
    atomic = Checks(
        quantity="atomic",
        errors=found.force_norm,
        bounds=said.atomic_uncertainty,
        groups=_SYMBOLS[np.concatenate([label.frame.numbers for label in labels])],
        structures=np.repeat(order, [len(label.frame) for label in labels]),
    )
    return total, atomic


def errors_of(found: Residuals) -> Scores:
    """The errors alone."""
    return Scores(
        count=len(found.energy),
        energy_rmse=float(np.sqrt(np.mean(found.energy**2))),
        energy_mae=float(np.mean(np.abs(found.energy))),
        force_rmse=float(np.sqrt(np.mean(found.force**2))),
        force_mae=float(np.mean(np.abs(found.force))),
    )


def _scores(found: Residuals, model: Model, bounds: tuple[Checks, Checks] | None) -> Scores:
    errors = errors_of(found)
    if bounds is None:
        return errors
    total, atomic = bounds
    return replace(
        errors,
        coverage_total=float(np.mean(total.held)),
        coverage_atomic=float(np.mean(atomic.held)),
        groups=tuple(one for part in bounds for one in coverages(model.estimator.calibration, part)),
    )
