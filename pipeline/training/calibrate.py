"""From trained members to a calibrated model: fit the estimator on the training set, its factors on the calibration labels.

Shapes: n structures, A atoms, P features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.batching import make_batch
from pipeline.potentials.base import Potential
from pipeline.potentials.model import Model
from pipeline.ranks import ALONE, Ranks
from pipeline.records import Label
from pipeline.settings.uncertainty import CommitteeUncertaintySettings, UncertaintySettings
from pipeline.training.scoring import checks, residuals
from pipeline.uncertainty.calibration import Calibration, Window
from pipeline.uncertainty.estimator import Estimator

FEATURE_BATCH = 64
"""Structures whose features are computed at a time."""
NOTHING_LATER = Window()
"""The window of a first model."""


def calibrated_model(
    members: Sequence[Potential],
    train: Sequence[Label],
    calibration: Sequence[Label],
    settings: UncertaintySettings,
    version: int,
    *,
    window: Window = NOTHING_LATER,
    ranks: Ranks = ALONE,
) -> Model:
    """The model with its conformal factors.

    Args:
        members: trained; the model is made where they are.
        train: what they were trained on.
        calibration: never trained on, nor used to pick an epoch; without any the factors are 1.
        settings: kind, σ, α.
        version: of the model.
        window: scores of the labels that came last, by the models that selected them.
        ranks: who shares the work; all of them get the model.
    """
    structures, atoms = features(members[0], train, ranks)
    references = (
        {} if isinstance(settings, CommitteeUncertaintySettings) else {"max_references": settings.max_references}
    )
    fitted = (
        Estimator.fit(settings.kind, structures, atoms, sigma=settings.sigma, **references) if ranks.first else None
    )
    if ranks.size > 1:  # what travels between ranks is on no device
        fitted = ranks.broadcast(fitted.cpu() if fitted is not None else None)
    assert fitted is not None
    estimator = fitted
    model = Model(members, estimator, version).to(next(members[0].parameters()).device)
    if calibration:
        total, atomic = checks(residuals(model, calibration, ranks=ranks), calibration)
        factors = Calibration.fit(alpha=settings.alpha, total=total.points(), atomic=atomic.points(), window=window)
    else:
        factors = Calibration.none(settings.alpha, window)
    estimator.calibrate(factors)
    return model


def features(potential: Potential, labels: Sequence[Label], ranks: Ranks = ALONE) -> tuple[Tensor, Tensor]:
    """((n, P) structure features, (A, P) atom features) of labels on the device of the potential, without a graph.

    They are empty on all ranks but the first.
    """
    own: list[tuple[Tensor, Tensor]] = []
    device = next(potential.parameters()).device
    frames = [label.frame for label in labels[ranks.blocks(len(labels), FEATURE_BATCH)]]
    with torch.no_grad():
        for first in range(0, len(frames), FEATURE_BATCH):
            batch = make_batch(frames[first : first + FEATURE_BATCH], potential.cutoff_A, device)
            phi = potential(batch, features=True).features
            structures = batch.sum_atoms(phi) / batch.n_atoms.unsqueeze(1)
            own.append((structures.cpu(), phi.cpu()) if ranks.size > 1 else (structures, phi))
    parts = [part for parts in ranks.collect(own) for part in parts]
    if not parts:
        return torch.empty(0), torch.empty(0)
    structures, atoms = (torch.cat(column).to(device) for column in zip(*parts, strict=True))
    return structures, atoms
