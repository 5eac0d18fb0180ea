"""The train task: from labels (and the running model) to the next calibrated model file."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from pipeline.durable import written_into
from pipeline.errors import DiskFullError, PipelineError
from pipeline.node import ANYWHERE, Node
from pipeline.potentials import Model, load, save
from pipeline.potentials.gmnn import GMNN, FeatureSpec
from pipeline.ranks import ALONE, Ranks, device_of
from pipeline.records import Label, Remark, Scores, Split, Status, Stopwatch, TrainResult, TrainTask
from pipeline.settings.uncertainty import UncertaintySettings
from pipeline.shards import read_labels
from pipeline.together import run_together
from pipeline.training.alarms import coverage_alarms
from pipeline.training.calibrate import NOTHING_LATER, calibrated_model
from pipeline.training.dataset import LabelSet
from pipeline.training.distributed import gradient_sum
from pipeline.training.energy_scale import composition_offsets, energy_unit
from pipeline.training.gate import gate
from pipeline.training.progress import Progress
from pipeline.training.scoring import score, score_later
from pipeline.training.trainer import Outcome, Row, Schedule, Trainer
from pipeline.uncertainty.calibration import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class _Splits:
    """Labels by what they are used for."""

    train: list[Label]
    validation: list[Label]
    calibration: list[Label]


def run_train(task: TrainTask, node: Node = ANYWHERE) -> TrainResult:
    """Train, calibrate and write the next model; measure the parent on labels it has not seen, and both against each other.

    The model is written whether or not it passes the gate: who publishes it looks at the report.

    The result depends on the task alone (as long as ``max_s`` is not set), up to rounding also with several ranks. A loss that
    stays NaN or infinite, no label to train on, a file that is damaged or cannot be written, or a rank that died, is a FAILED
    result that says so.

    Raises:
        DiskFullError: there is no space for the model.
    """
    watch = Stopwatch()
    remarks: list[Remark] = []
    try:
        if task.ranks > 1:
            return run_together(task, TrainResult, node)
        torch.set_num_threads(task.threads)
        result = train(task, node, ALONE, remarks.append)
    except DiskFullError:
        raise
    except PipelineError as error:
        result = _failed(task, watch, str(error))
    return replace(result, remarks=tuple(remarks))


def train(task: TrainTask, node: Node, ranks: Ranks, tell: Callable[[Remark], None]) -> TrainResult:
    """:func:`run_train` by these ranks. All of them get the result, the first writes the files.

    Raises:
        PipelineError: a file is damaged or cannot be written.
    """
    watch = Stopwatch()
    device = device_of(node.device, ranks)
    labels = read_labels(task.labels)
    splits = _split(labels)
    if not splits.train:
        return _failed(
            task, watch, "No label to train on: all of them failed or are kept for validation and calibration."
        )
    output = Path(task.output)
    with written_into(output.parent):  # a disk that takes nothing should be known before the training, not after it
        pass
    parent = None
    if task.parent is not None:
        parent = load(node.model_file(task.parent.file, tell), task.parent.file.sha256).to(device)
    fresh, window = _later_scores(task, parent, labels, ranks)
    if parent is not None and ranks.first and task.attempt == 0:
        for alarm in coverage_alarms(parent.version, fresh):
            tell(alarm)
    elements = sorted({int(z) for label in labels for z in label.frame.numbers})
    members, outcomes = _train_members(task, parent, splits, elements, ranks, device)
    if not all(outcome.finite for outcome in outcomes):
        return _failed(task, watch, "The training loss became NaN or infinite, also at half the learning rates.", fresh)
    model = calibrated_model(
        members, splits.train, splits.calibration, task.uncertainty, task.version, window=window, ranks=ranks
    )
    scores = (
        score(model, splits.train, coverage=False, ranks=ranks),
        score(model, splits.validation, ranks=ranks),
    )
    report = None
    if parent is not None and task.settings.gate is not None:
        report = gate(parent, model, labels, task, task.settings.gate, ranks)
    file = None
    if ranks.first:
        with written_into(output.parent):
            file = save(model.to("cpu"), output, {"task": task.task})
    return TrainResult(
        task=task.task,
        status=Status.DONE,
        reason="",
        file=ranks.broadcast(file),
        fresh=fresh,
        train=scores[0],
        validation=scores[1],
        factors=model.estimator.calibration.factors,
        epochs=max(outcome.epochs for outcome in outcomes),
        history=outcomes[0].history,
        timing=watch.stop(),
        gate=report,
    )


def _split(labels: Sequence[Label]) -> _Splits:
    chosen = {split: [label for label in labels if label.split is split] for split in Split}
    return _Splits(
        train=chosen[Split.TRAIN], validation=chosen[Split.VALIDATION], calibration=chosen[Split.CALIBRATION]
    )


def _later_scores(
    task: TrainTask, parent: Model | None, labels: Sequence[Label], ranks: Ranks
) -> tuple[Scores | None, Window]:
    """The parent on labels that came after its calibration (None when it does not know their elements), before any model is
    trained on them; and the window of late scores with these, for the next model."""
    if parent is None:
        return None, NOTHING_LATER
    wanted = set(task.fresh)
    fresh = [label for label in labels if label.frame.identity in wanted]
    known = set(parent.elements)
    return score_later(parent, [label for label in fresh if known.issuperset(label.frame.numbers.tolist())], ranks)


def _train_members(
    task: TrainTask, parent: Model | None, splits: _Splits, elements: Sequence[int], ranks: Ranks, device: str
) -> tuple[list[GMNN], list[Outcome]]:
    """All members of the model on the device, one after another: different initial weights and different shuffling."""
    progress = Progress(task.progress if ranks.first else "", task.task)
    warm = _warm_parent(task, parent, elements)
    deadline = None if task.settings.max_s is None else time.time() + task.settings.max_s
    schedule = Schedule(
        epochs=task.settings.epochs if warm is None else task.settings.warm_epochs,
        rate=1.0 if warm is None else task.settings.warm_rate,
        deadline=deadline,
    )
    members: list[GMNN] = []
    outcomes: list[Outcome] = []
    sets: tuple[LabelSet, LabelSet | None] | None = None
    with gradient_sum(ranks, device) as sum_gradients:
        for index in range(task.potential.members):
            # a first attempt draws what trainings without a second one did
            entropy = [task.seed, index, task.attempt] if task.attempt else [task.seed, index]
            seeds = np.random.SeedSequence(entropy).generate_state(2, np.uint64)
            # drawn and laid out by the processor: the same weights whatever trains them
            member = _start(task, warm, elements, splits.train, index, int(seeds[0])).to(device)
            if sets is None:
                validation = (
                    LabelSet(splits.validation, member, ranks=ranks, device=device) if splits.validation else None
                )
                sets = (LabelSet(splits.train, member, ranks=ranks, device=device), validation)

            def report(row: Row, index: int = index) -> None:
                progress({**row, "member": index, "members": task.potential.members})

            trainer = Trainer(
                member,
                *sets,
                settings=task.settings,
                seed=int(seeds[1]),
                report=report,
                sum_gradients=sum_gradients,
            )
            outcomes.append(trainer.run(schedule))
            members.append(member)
    progress({"done": 1.0, "epochs": outcomes[0].epochs}, last=True)
    return members, outcomes


def _warm_parent(task: TrainTask, parent: Model | None, elements: Sequence[int]) -> Model | None:
    """The parent if its weights can be gone on with: same architecture, all elements known, warm start wanted.

    Never in a second attempt: the first one went wrong from there.
    """
    if parent is None or task.settings.start == "scratch" or not set(elements) <= set(parent.elements):
        return None
    if task.attempt > 0:
        return None
    first = parent.first
    same = (
        isinstance(first, GMNN) and first.settings == task.potential and len(parent.members) == task.potential.members
    )
    return parent if same else None


def _start(
    task: TrainTask, warm: Model | None, elements: Sequence[int], train: Sequence[Label], index: int, seed: int
) -> GMNN:
    """A potential to train: with the parent's weights, or drawn anew with its energy scale from the labels."""
    settings = task.uncertainty
    if warm is not None:
        old = warm.first
        assert isinstance(old, GMNN)
        # the sketch's projections stay those of the parent
        spec = _features(settings, old.feature_spec.seed)
        member = GMNN(task.potential, old.elements, spec)
        member.load_state_dict(warm.members[index].state_dict())
        return member
    spec = _features(settings, task.seed)
    generator = torch.Generator().manual_seed(seed % 2**63)
    member = GMNN(task.potential, elements, spec, generator)
    offsets = torch.from_numpy(composition_offsets(train, member.elements))
    member.set_energy_scale(offsets_eV=offsets, unit_eV=energy_unit(train))
    return member


def _features(settings: UncertaintySettings, seed: int) -> FeatureSpec:
    return FeatureSpec(
        kind=settings.features, dimension=settings.sketch_dimension, seed=seed, projection=settings.projection
    )


def _failed(task: TrainTask, watch: Stopwatch, reason: str, fresh: Scores | None = None) -> TrainResult:
    return TrainResult(
        task=task.task,
        status=Status.FAILED,
        reason=reason,
        file=None,
        fresh=fresh,
        train=None,
        validation=None,
        factors=(),
        epochs=0,
        history=(),
        timing=watch.stop(),
    )
