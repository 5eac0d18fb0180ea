"""Adam on the published loss: minibatches reshuffled by a seeded generator, best checkpoint kept.

Several ranks draw the same minibatches, compute a part of each, and make the same optimiser step with the gradients of all.
Units: eV, Å.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.potentials.geometry import swept
from pipeline.potentials.gmnn import GMNN
from pipeline.potentials.sweeps import Sweeps
from pipeline.settings.training import LearningRates, TrainingSettings
from pipeline.training.dataset import LabelSet, Minibatch
from pipeline.training.distributed import SumGradients, nothing_to_add
from pipeline.training.loss import loss_gradient

logger = logging.getLogger(__name__)

EVALUATION_BATCH = 32
Row = dict[str, float]
State = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long and how fast: epochs, factor on all learning rates, and a wall-clock deadline (seconds since the epoch)."""

    epochs: int
    rate: float
    deadline: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a training went. The potential holds the best checkpoint.

    Attributes:
        finite: False when the loss became NaN or infinite, twice.
        epochs: epochs made.
        history: one row per validation: epoch, loss (per atom), and with validation labels energy_mae (eV/atom),
            force_mae (eV/Å), score.
    """

    finite: bool
    epochs: int
    history: tuple[Row, ...]


def parameter_groups(potential: GMNN, rates: LearningRates, factor: float) -> list[dict[str, object]]:
    """Adam's parameter groups with the published rates times ``factor``."""
    groups = [
        ([potential.radial.table], rates.species),
        (list(potential.layers.parameters()), rates.network),
        ([potential.scale], rates.scale),
        ([potential.shift], rates.shift),
    ]
    return [{"params": parameters, "lr": rate * factor, "initial": rate * factor} for parameters, rate in groups]


class Trainer:
    """Trains one potential in place.

    Args:
        potential: where to start from.
        train: what is fitted.
        validation: what picks the best epoch; None keeps the last.
        settings: loss, rates, batch.
        seed: of the shuffling.
        report: called with a row of facts after every epoch.
        sum_gradients: adds up the gradients of the ranks that share ``train``.
    """

    def __init__(
        self,
        potential: GMNN,
        train: LabelSet,
        validation: LabelSet | None,
        *,
        settings: TrainingSettings,
        seed: int,
        report: Callable[[Row], None],
        sum_gradients: SumGradients = nothing_to_add,
    ) -> None:
        self._potential, self._train, self._validation = potential, train, validation
        self._settings, self._seed, self._report = settings, seed, report
        self._sum_gradients, self._ranks, self._sweeps = sum_gradients, train.ranks, Sweeps(potential)
        if self._ranks.size > 1:  # nodes may round differently
            own = {name: tensor.cpu() for name, tensor in potential.state_dict().items()}
            potential.load_state_dict(self._ranks.broadcast(own))
        self._history: list[Row] = []
        self._best: State = _copy(potential.state_dict())
        self._best_score = math.inf
        self._epochs = 0

    def run(self, schedule: Schedule) -> Outcome:
        """Train; a loss that is not finite restarts once from the best checkpoint at half the rates."""
        finite = False
        for rate in (schedule.rate, 0.5 * schedule.rate):
            finite = self._descend(Schedule(epochs=schedule.epochs, rate=rate, deadline=schedule.deadline))
            self._potential.load_state_dict(self._best)
            if finite:
                break
            logger.warning("training loss became NaN or infinite at rate factor %g", rate)
        return Outcome(finite=finite, epochs=self._epochs, history=tuple(self._history))

    def _descend(self, schedule: Schedule) -> bool:
        """One descent over all epochs; False as soon as the loss is not finite."""
        self._potential.requires_grad_(True)
        groups = parameter_groups(self._potential, self._settings.learning_rates, schedule.rate)
        optimiser = torch.optim.Adam(groups, fused=True)
        generator = np.random.default_rng(self._seed)
        steps = schedule.epochs * math.ceil(len(self._train) / self._settings.batch)
        done, stale = 0, 0
        for epoch in range(1, schedule.epochs + 1):
            value, done = self._epoch(optimiser, generator, done, steps)
            self._epochs += 1
            if not math.isfinite(value):
                return False
            # one clock decides for all: ranks that disagree would wait for each other for ever
            late = schedule.deadline is not None and self._ranks.broadcast(time.time() > schedule.deadline)
            if epoch % self._settings.validate_every == 0 or epoch == schedule.epochs or late:
                score = self._validate(epoch, value)
                if not math.isfinite(score):
                    return False
                stale = 0 if score == self._best_score else stale + self._settings.validate_every
            self._report({"epoch": epoch, "epochs": schedule.epochs, "loss": value, **self._latest()})
            if late or 0 < self._settings.patience <= stale:
                break
        return True

    def _epoch(
        self, optimiser: torch.optim.Adam, generator: np.random.Generator, done: int, steps: int
    ) -> tuple[float, int]:
        """One pass over the training set: mean loss per atom, and optimiser steps made so far."""
        order = generator.permutation(len(self._train))
        # the loss is added up where it is computed, and read once: the processor may run ahead of a GPU
        total = torch.zeros((), dtype=torch.float64, device=self._train.device)
        for chosen in np.array_split(order, math.ceil(len(order) / self._settings.batch)):
            for group in optimiser.param_groups:
                group["lr"] = group["initial"] * (1.0 - done / steps)
            optimiser.zero_grad()
            minibatch, own = self._train.minibatch(chosen), torch.zeros_like(total)
            if minibatch is not None:
                own = loss_gradient(self._sweeps, minibatch, self._settings.loss, virial=self._train.has_virials)
            total += self._sum_gradients(self._potential.parameters(), own)
            optimiser.step()
            done += 1
        return float(total) / self._train.n_atoms, done

    def _validate(self, epoch: int, value: float) -> float:
        """Score the weights and keep them when they are the best so far; without validation labels the newest are.

        Weights that are of no use have NaN and are not kept.
        """
        if not self._usable():
            return math.nan
        row: Row = {"epoch": float(epoch), "loss": value}
        score = min(self._best_score, 0.0)
        if self._validation is not None:
            row["energy_mae"], row["force_mae"], score = mean_absolute_errors(self._potential, self._validation)
            row["score"] = score
        if math.isfinite(score):
            self._history.append(row)
            if score <= self._best_score:
                self._best_score, self._best = score, _copy(self._potential.state_dict())
        return score

    def _usable(self) -> bool:
        """Whether the weights, and what they predict for some labels, are numbers; the same on all ranks.

        The loss of an epoch does not tell: it is that of the weights before each step.
        """
        parameters = [p.detach().to(torch.float64).abs().sum() for p in self._potential.parameters()]
        found = torch.stack(parameters).sum()
        some = self._train.minibatch(np.arange(min(self._settings.batch, len(self._train))))
        if some is not None:
            found = found + _errors(self._sweeps, some).sum()
        return math.isfinite(float(self._ranks.sum(found.cpu().numpy())))

    def _latest(self) -> Row:
        """The newest validation errors, for the report."""
        row = self._history[-1] if self._history else {}
        return {name: row[name] for name in ("energy_mae", "force_mae") if name in row}


def mean_absolute_errors(potential: GMNN, labels: LabelSet) -> tuple[float, float, float]:
    """(energy MAE in eV/atom, force MAE in eV/Å, published score MAE_E + MAE_F with the energy MAE in eV)."""
    sweeps, errors = Sweeps(potential), torch.zeros(3, dtype=torch.float64, device=labels.device)
    together = EVALUATION_BATCH * labels.ranks.size
    for first in range(0, len(labels), together):
        minibatch = labels.minibatch(np.arange(first, min(first + together, len(labels))))
        if minibatch is None:
            continue
        errors += _errors(sweeps, minibatch)
    energy, per_atom, force_sum = labels.ranks.sum(errors.cpu().numpy()).tolist()
    force_mae = force_sum / (3 * labels.n_atoms)
    return per_atom / len(labels), force_mae, energy / len(labels) + force_mae


def _errors(sweeps: Sweeps, minibatch: Minibatch) -> Tensor:
    """(3,) float64 sums of absolute errors: of energies in eV, of energies per atom in eV, of force components in eV/Å."""
    found, _ = swept(sweeps, minibatch.geometry, virial=False)
    error = (found.energies - minibatch.targets.energies).abs()
    force = (found.forces - minibatch.targets.forces).abs().sum()
    return torch.stack([error.sum(), (error / minibatch.geometry.n_atoms).sum(), force]).detach()


def _copy(state: State) -> State:
    return {name: tensor.detach().clone() for name, tensor in state.items()}
