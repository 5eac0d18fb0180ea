"""From trained members to a calibrated model: fit the estimator on the training set, its factors on the calibration labels.

Shapes: n structures, A atoms, P features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.batching import make_batch
from pipeline.potentials.base import Potential
from pipeline.potentials.model import Model
from pipeline.records import Label
from pipeline.settings.uncertainty import CommitteeUncertaintySettings, UncertaintySettings
from pipeline.training.scoring import residuals
from pipeline.uncertainty.conformal import Factor, conformal_factor
from pipeline.uncertainty.estimator import Estimator

FEATURE_BATCH = 64


def calibrated_model(
    members: Sequence[Potential],
    train: Sequence[Label],
    calibration: Sequence[Label],
    settings: UncertaintySettings,
    version: int,
) -> tuple[Model, Factor, Factor]:
    """The model and its conformal factors (total, atom-based).

    Args:
        members: trained.
        train: what they were trained on.
        calibration: never trained on, nor used to pick an epoch; without any the factors are 1.
        settings: kind, σ, α.
        version: of the model.
    """
    structures, atoms = features(members[0], train)
    references = (
        {} if isinstance(settings, CommitteeUncertaintySettings) else {"max_references": settings.max_references}
    )
    estimator = Estimator.fit(settings.kind, structures, atoms, sigma=settings.sigma, **references)
    model = Model(members, estimator, version)
    if not calibration:
        nothing = Factor(value=1.0, count=0, exact=False)
        return model, nothing, nothing
    found = residuals(model, calibration)
    said = found.evaluation
    assert said.total_uncertainty is not None
    assert said.atomic_uncertainty is not None
    total = conformal_factor(abs(found.energy), said.total_uncertainty, settings.alpha)
    atomic = conformal_factor(found.force_norm, said.atomic_uncertainty, settings.alpha)
    estimator.calibrate(total, atomic)
    return model, total, atomic


def features(potential: Potential, labels: Sequence[Label]) -> tuple[Tensor, Tensor]:
    """((n, P) structure features, (A, P) atom features) of labels, without a graph."""
    structures, atoms = [], []
    frames = [label.frame for label in labels]
    with torch.no_grad():
        for first in range(0, len(frames), FEATURE_BATCH):
            batch = make_batch(frames[first : first + FEATURE_BATCH], potential.cutoff_A)
            phi = potential(batch, features=True).features
            atoms.append(phi)
            structures.append(batch.sum_atoms(phi) / batch.n_atoms.unsqueeze(1))
    return torch.cat(structures), torch.cat(atoms)
