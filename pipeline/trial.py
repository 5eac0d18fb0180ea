"""A campaign in small, for real: a few labels, a short training, 100 biased MD steps; their costs give an estimate."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import TaskError
from pipeline.initial import rattled
from pipeline.label import run_label
from pipeline.records import FileRef, Label, LabelTask, ModelRef, Split, Status, TrainTask, WalkTask
from pipeline.seeds import Stream, generator, seed_for
from pipeline.settings.campaign import CampaignSettings
from pipeline.shards import write_labels
from pipeline.structures import Systems
from pipeline.train import run_train
from pipeline.walk import run_walk

LABELS = 6
EPOCHS = 10
FULL_STEPS = 4
"""Full optimiser steps per trial epoch."""
STEPS = 100
SPLITS = (Split.TRAIN, Split.TRAIN, Split.VALIDATION, Split.CALIBRATION)
"""What the trial's labels are used for, in turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Measured costs of one piece of each kind of work.

    Attributes:
        label_s: seconds per reference calculation (median; the first one, which may load things, left out).
        structure_epoch_s: seconds of training per structure and epoch.
        walker_step_s: seconds per MD step of a whole batch of ``walkers.batch`` walkers.
        walker_steps: MD steps the trial made, over all walkers.
    """

    label_s: float
    structure_epoch_s: float
    walker_step_s: float
    walker_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Expected seconds of a whole campaign by kind of work, at most this many rounds."""

    rounds: int
    label_s: float
    train_s: float
    walk_s: float

    @property
    def total_s(self) -> float:
        """Seconds of wall time when nothing overlaps."""
        return self.label_s + self.train_s + self.walk_s


def try_labels(settings: CampaignSettings, frames: Systems, directory: Path) -> tuple[list[Label], float]:
    """Label a few rattled start structures of every system.

    Args:
        settings: the campaign.
        frames: start structures.
        directory: existing directory for scratch.

    Returns:
        The labels and the median seconds per label.

    Raises:
        TaskError: a label failed, with the reference's reason.
    """
    starts = [group[0] for group in frames.values()]
    rng = generator(seed_for(settings.seed, Stream.START, 0, 0))
    labels: list[Label] = []
    seconds: list[float] = []
    for item in range(max(LABELS, len(SPLITS) * len(starts))):
        frame = rattled(starts[item % len(starts)], std_A=settings.labels.initial_rattle_A, rng=rng)
        task = LabelTask(
            task=f"check-label-{item}",
            round=0,
            item=item,
            frame=frame,
            reference=settings.labels.reference,
            scratch=str(directory / f"label-{item}"),
            threads=settings.site.label_threads,
            max_force_eV_per_A=settings.labels.max_force_eV_per_A,
        )
        result = run_label(task)
        if result.status is not Status.DONE or result.energy is None or result.forces is None:
            raise TaskError(
                f"labels.reference: the reference could not label a rattled start structure of {frame.system}: "
                f"{result.reason}",
                "Check the reference's settings and the start structure.",
            )
        seconds.append(result.timing.wall_s)
        split = SPLITS[(item // len(starts)) % len(SPLITS)]
        labels.append(
            Label(frame=frame, energy=result.energy, forces=result.forces, stress=result.stress, split=split, round=0)
        )
    return labels, float(np.median(seconds[1:]))


def try_training(settings: CampaignSettings, labels: list[Label], directory: Path) -> tuple[ModelRef, float]:
    """Train a throw-away model for a few epochs.

    Returns:
        The model, and seconds per structure and epoch.

    Raises:
        TaskError: the training failed.
    """
    # copies fill optimiser steps as the labels of a whole campaign would: labels may be dear, their copies are not
    trained = sum(label.split is Split.TRAIN for label in labels)
    copies = max(1, math.ceil(FULL_STEPS * settings.training.batch / trained))
    training = settings.training.model_copy(update={"epochs": EPOCHS, "patience": 0, "max_s": None})
    result = run_train(
        TrainTask(
            task="check-train",
            version=1,
            parent=None,
            labels=(write_labels(directory / "labels.h5", labels * copies),),
            fresh=(),
            potential=settings.potential,
            uncertainty=settings.uncertainty,
            settings=training,
            output=str(directory / "model.pt"),
            progress=str(directory / "progress.json"),
            seed=seed_for(settings.seed, Stream.TRAIN, 0, 0),
            threads=settings.site.train_threads,
        )
    )
    if result.status is not Status.DONE or result.file is None:
        raise TaskError(f"the trial training failed: {result.reason}", "Check potential and training.")
    file = FileRef(path=str(directory / "model.pt"), sha256=result.file.sha256)
    return ModelRef(version=1, file=file), result.timing.wall_s / (max(result.epochs, 1) * trained * copies)


def try_walk(settings: CampaignSettings, frames: Systems, model: ModelRef) -> tuple[float, int]:
    """Make 100 biased MD steps with one batch of walkers.

    Returns:
        Seconds per step of the whole batch, and the walker steps made.

    Raises:
        TaskError: the walk failed.
    """
    slots = min(settings.walkers.batch, settings.walkers.count)
    temperatures = settings.walkers.temperatures_K
    result = run_walk(
        WalkTask(
            task="check-walk",
            round=0,
            item=0,
            model=model,
            settings=settings.walkers,
            temperatures_K=tuple(temperatures[slot % len(temperatures)] for slot in range(slots)),
            starts=tuple(frame for group in frames.values() for frame in group),
            resume=(None,) * slots,
            steps=STEPS,
            enough=0,
            seed=seed_for(settings.seed, Stream.WALK, 0, 0),
            threads=settings.site.walk_threads,
        )
    )
    if result.status is not Status.DONE or result.walker_steps == 0:
        raise TaskError(f"the trial walk failed: {result.reason}", "Check walkers.timestep_fs and the structures.")
    return result.timing.wall_s * slots / result.walker_steps, result.walker_steps


def estimate(settings: CampaignSettings, costs: Costs) -> Estimate:
    """Wall time of the campaign from measured costs, on the slots of the site.

    Every round walks its full segments and trains its full epochs; a campaign that stops early takes less.
    """
    site = settings.site
    asked = max(settings.labels.budget - settings.labels.initial, 0)
    rounds = min(math.ceil(asked / settings.selection.batch), settings.stop.max_rounds)
    share = 1.0 - settings.labels.splits.validation - settings.labels.splits.calibration
    sizes = [settings.labels.initial + done * settings.selection.batch for done in range(rounds + 1)]
    warm = settings.training.warm_epochs if settings.training.start == "warm" else settings.training.epochs
    epochs = [settings.training.epochs, *[warm] * rounds]
    waves = math.ceil(settings.walkers.count / settings.walkers.batch / site.walk_slots)
    return Estimate(
        rounds=rounds,
        label_s=sizes[-1] * costs.label_s / site.label_slots,
        train_s=costs.structure_epoch_s * sum(n * share * e for n, e in zip(sizes, epochs, strict=True)),
        walk_s=rounds * waves * settings.walkers.segment_steps * costs.walker_step_s,
    )


def run_trial(
    settings: CampaignSettings, frames: Systems, directory: Path, tell: Callable[[str], None]
) -> tuple[Costs, Estimate]:
    """Label, train and walk in small, one after another in this process.

    Args:
        settings: the campaign.
        frames: start structures.
        directory: existing directory for files that may be thrown away.
        tell: is told what begins.

    Raises:
        TaskError: one of the three failed.
    """
    tell("labelling")
    labels, label_s = try_labels(settings, frames, directory)
    tell("training")
    model, structure_epoch_s = try_training(settings, labels, directory)
    tell("walking")
    walker_step_s, walker_steps = try_walk(settings, frames, model)
    costs = Costs(
        label_s=label_s, structure_epoch_s=structure_epoch_s, walker_step_s=walker_step_s, walker_steps=walker_steps
    )
    return costs, estimate(settings, costs)
