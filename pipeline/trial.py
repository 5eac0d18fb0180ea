"""A campaign in small, for real, wherever the site runs it: a few labels, a short training, 100 biased MD steps."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np

from pipeline.errors import PipelineError, TaskError
from pipeline.estimate import Costs
from pipeline.faults import REMEDIES
from pipeline.frames import Frame
from pipeline.initial import rattled_for, start_volumes
from pipeline.plan import conditions_of
from pipeline.records import (
    Cause,
    FileRef,
    Label,
    LabelResult,
    LabelTask,
    Limits,
    ModelRef,
    Result,
    Split,
    Status,
    Task,
    Timing,
    TrainResult,
    TrainTask,
    WalkResult,
    WalkTask,
)
from pipeline.seeds import Stream, generator, seed_for
from pipeline.settings.campaign import CampaignSettings
from pipeline.settings.dft import ElectronicSettings
from pipeline.settings.labels import Reference
from pipeline.shards import write_labels
from pipeline.steps import Notice, Steps
from pipeline.structures import Systems

LABELS = 6
EPOCHS = 10
FULL_STEPS = 4
"""Full optimiser steps per trial epoch."""
STEPS = 100
SPLITS = (Split.TRAIN, Split.TRAIN, Split.VALIDATION, Split.CALIBRATION)
"""What labels that take no time are used for, in turn."""
SHORT_S = 20.0
"""A training or walk below this is made twice: the first one in a new process also loads and warms up, seconds."""
POLL_S = 0.5
"""How often notices are asked for while a task runs, seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A campaign to try.

    Attributes:
        settings: the campaign.
        frames: start structures.
        steps: carry tasks out.
        directory: existing, empty, on a disk all workers see; its files may be thrown away afterwards.
        tell: is told what begins.
        notice: is told what happened to the machine meanwhile.
    """

    settings: CampaignSettings
    frames: Systems
    steps: Steps
    directory: Path
    tell: Callable[[str], None]
    notice: Callable[[Notice], None]

    def run(self) -> Costs:
        """Label, train and walk in small, one after another.

        Raises:
            TaskError: one of the three failed; says where and why.
            SiteError: the machine could not carry it out.
            LostWorkerError: the same, more than once.
        """
        labels, label_s, label_core_s, handling_s = self._label()
        model, structure_epoch_s = self._train(labels)
        walker_step_s, walker_steps = self._walk(labels, model)
        return Costs(
            label_s=label_s,
            label_core_s=label_core_s,
            handling_s=handling_s,
            structure_epoch_s=structure_epoch_s,
            walker_step_s=walker_step_s,
            walker_steps=walker_steps,
        )

    def _label(self) -> tuple[list[Label], float, float, float]:
        """Label a few rattled start structures: the labels, seconds and core seconds of one, and seconds between two."""
        starts = [group[0] for group in self.frames.values()]
        rng = generator(seed_for(self.settings.seed, Stream.START, 0, 0))
        splits = trial_splits(self.settings.labels.reference, len(starts))
        frames = [rattled_for(self.settings, starts[item % len(starts)], rng) for item in range(len(splits))]
        self.tell(f"labelling {len(frames)} structures")
        tasks = [self._label_task(item, frame) for item, frame in enumerate(frames)]
        futures = [self.steps.submit(task) for task in tasks]
        results = []
        for task, result in zip(tasks, self._results("label", futures), strict=True):
            assert isinstance(result, LabelResult)
            if result.status is not Status.DONE:
                raise failed_label(task, result)
            results.append(result)
        labels = [
            Label(frame=frame, energy=energy, forces=forces, stress=result.stress, split=split, round=0)
            for frame, split, result in zip(frames, splits, results, strict=True)
            if (energy := result.energy) is not None and (forces := result.forces) is not None
        ]
        label_s, handling_s = label_costs([result.timing for result in results])
        return labels, label_s, float(np.median([result.core_s for result in results])), handling_s

    def _label_task(self, item: int, frame: Frame) -> LabelTask:
        return LabelTask(
            task=f"check-label-{item}",
            round=0,
            item=item,
            frame=frame,
            reference=self.settings.labels.reference,
            scratch=str(self.directory / f"label-{item}"),
            threads=self.settings.site.label_threads,
            limits=Limits.of(self.settings.labels),
            recovery=self.settings.labels.recovery,
            launch=self.settings.site.label_launch,
        )

    def _train(self, labels: list[Label]) -> tuple[ModelRef, float]:
        """Train a throw-away model for a few epochs: the model, and seconds per structure and epoch."""
        settings = self.settings
        # copies fill optimiser steps as the labels of a whole campaign would: labels may be dear, their copies are not
        trained = sum(label.split is Split.TRAIN for label in labels)
        copies = max(1, math.ceil(FULL_STEPS * settings.training.batch / trained))
        self.tell(f"training {EPOCHS} epochs")
        task = TrainTask(
            task="check-train",
            version=1,
            parent=None,
            labels=(write_labels(self.directory / "labels.h5", labels * copies),),
            fresh=(),
            potential=settings.potential,
            uncertainty=settings.uncertainty,
            settings=settings.training.model_copy(update={"epochs": EPOCHS, "patience": 0, "max_s": None}),
            output=str(self.directory / "model.pt"),
            progress=str(self.directory / "progress.json"),
            seed=seed_for(settings.seed, Stream.TRAIN, 0, 0),
            threads=settings.site.train_threads,
            walkers=settings.walkers,
            ranks=settings.site.train_ranks,
            launch=settings.site.launch,
        )
        result, seconds = self._measured("train", task)
        assert isinstance(result, TrainResult)
        if result.status is not Status.DONE or result.file is None:
            raise TaskError(
                f"the trial training failed on {result.timing.host}: {result.reason}",
                "Check potential and training.",
            )
        file = FileRef(path=task.output, sha256=result.file.sha256)
        return ModelRef(version=1, file=file), seconds / (max(result.epochs, 1) * trained * copies)

    def _walk(self, labels: list[Label], model: ModelRef) -> tuple[float, int]:
        """Make 100 biased MD steps with one batch of walkers: seconds per step of the batch, walker steps made."""
        settings = self.settings
        slots = settings.walkers.batch
        self.tell(f"walking {STEPS} steps with {slots} walkers")
        result, seconds = self._measured(
            "walk",
            WalkTask(
                task="check-walk",
                round=0,
                item=0,
                leg=0,
                model=model,
                settings=settings.walkers,
                temperatures_K=tuple(temperature for temperature, _ in conditions_of(0, settings)),
                pressures_MPa=tuple(pressure for _, pressure in conditions_of(0, settings)),
                variables=settings.hill_variables,
                volumes_A3=start_volumes([frame for group in self.frames.values() for frame in group]),
                starts=write_labels(self.directory / "starts.h5", labels),
                resume=None,
                steps=STEPS,
                enough=0,
                born=(0,) * slots,
                seconds=settings.site.walk_task_s,
                output=str(self.directory / "walk"),
                seed=seed_for(settings.seed, Stream.WALK, 0, 0),
                threads=settings.site.walk_threads,
            ),
        )
        assert isinstance(result, WalkResult)
        if result.status is not Status.DONE or result.walker_steps == 0:
            raise TaskError(
                f"the trial walk failed on {result.timing.host}: {result.reason or 'no step was made'}",
                "Check walkers.timestep_fs and the structures.",
            )
        return seconds * slots / result.walker_steps, result.walker_steps

    def _measured(self, kind: str, task: Task) -> tuple[Result, float]:
        """Result of a task, and the seconds it takes a worker that is warm."""
        result = self._results(kind, [self.steps.submit(task)])[0]
        seconds = result.timing.wall_s
        if result.status is Status.DONE and seconds < SHORT_S:
            result = self._results(kind, [self.steps.submit(task)])[0]
            seconds = min(seconds, result.timing.wall_s)
        return result, seconds

    def _results(self, kind: str, futures: Sequence[Future[Result]]) -> list[Result]:
        """Results of some tasks; what happens to the machine meanwhile is told.

        Raises:
            PipelineError: of the first that raised one.
        """
        late = True
        while late:
            late = bool(wait(futures, timeout=POLL_S).not_done)
            for notice in self.steps.notices():
                self.notice(notice)
        try:
            results = [future.result() for future in futures]
        except PipelineError as error:
            raise type(error)(f"the trial {kind}: {error.message}", error.remedy) from error
        for result in results:
            for remark in result.remarks:
                self.notice(Notice(text=f"{result.task}: {remark.text}", remedy=remark.remedy))
        return results


def trial_splits(reference: Reference, systems: int) -> tuple[Split, ...]:
    """What each label of a trial is used for; they take the systems in turn.

    Of a program that takes its time as few as can be: one of each system to train on, which knows all elements then, one to
    validate and one to calibrate with.
    """
    if isinstance(reference, ElectronicSettings):
        return (*[Split.TRAIN] * systems, Split.VALIDATION, Split.CALIBRATION)
    return tuple(SPLITS[(item // systems) % len(SPLITS)] for item in range(max(LABELS, len(SPLITS) * systems)))


def failed_label(task: LabelTask, result: LabelResult) -> TaskError:
    """Why a trial must end that could not label one of its structures."""
    cause = result.cause or Cause.UNKNOWN
    tries = f" after {len(result.tries)} tries" if len(result.tries) > 1 else ""
    return TaskError(
        f"labels.reference: the reference could not label a rattled start structure of {task.frame.system} "
        f"on {result.timing.host}{tries} ({cause.value}): {result.reason}",
        REMEDIES[cause],
    )


def label_costs(timings: Sequence[Timing]) -> tuple[float, float]:
    """Median seconds per label, and between two labels of one worker.

    The first label of a worker counts only where none made a second one: it may load things. Without second ones nothing is
    known of the time between, and it is taken to be 0.
    """
    ordered = sorted(timings, key=lambda timing: (timing.host, timing.started))
    workers = [list(group) for _, group in groupby(ordered, key=lambda timing: timing.host)]
    later = [timing for worker in workers for timing in worker[1:]]
    between = [after.started - before.ended for worker in workers for before, after in pairwise(worker)]
    seconds = float(np.median([timing.wall_s for timing in later or ordered]))
    return seconds, max(float(np.median(between)), 0.0) if between else 0.0
