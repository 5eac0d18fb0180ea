"""Candidates, labels, an untrained model and the task that selects among them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ase.build import molecule

from pipeline.frames import Frame
from pipeline.potentials import Model, save
from pipeline.potentials.gmnn import GMNN, FeatureSpec
from pipeline.records import (
    Candidate,
    FrameRows,
    Label,
    ModelRef,
    SelectResult,
    SelectTask,
    Split,
    StopReason,
)
from pipeline.settings.potential import GMNNSettings
from pipeline.settings.selection import SelectionSettings
from pipeline.shards import read_candidates, write_candidates, write_labels
from pipeline.uncertainty.estimator import Estimator

SIZE = 9


def ethanol(seed: int, std_A: float = 0.1) -> Frame:
    atoms = molecule("CH3CH2OH")
    atoms.positions += np.random.default_rng(seed).normal(scale=std_A, size=(SIZE, 3))
    return Frame.from_atoms(atoms, system="m")


def candidate(frame: Frame, step: int, reason: StopReason = StopReason.RUNNING) -> Candidate:
    return Candidate(
        frame=frame,
        walker="w",
        step=step,
        temperature_K=300.0,
        pressure_MPa=0.0,
        tau=0.25,
        model_version=1,
        reason=reason,
        total_uncertainty=0.0,
        atomic_uncertainty=np.zeros(SIZE, dtype=np.float32),
    )


def train_model(frames: Sequence[Frame]) -> Model:
    """An untrained network with a posterior of its own features on ``frames``."""
    settings = GMNNSettings(channels=2, hidden=(16,), gaussians=5)
    network = GMNN(settings, (1, 6, 8), FeatureSpec(), torch.Generator().manual_seed(1))
    blank = Estimator.fit("committee", torch.eye(network.feature_dimension), torch.eye(1), sigma=1.0)
    features = Model([network], blank, 1).structure_features(frames)
    return Model([network], Estimator.fit("posterior", features, features, sigma=0.01), 2)


def label_of(frame: Frame) -> Label:
    return Label(frame=frame, energy=0.0, forces=np.zeros((SIZE, 3)), stress=None, split=Split.TRAIN, round=0)


def task_in(
    directory: Path, model: Model, labelled: list[Frame], pool: list[Candidate], **settings: object
) -> SelectTask:
    wanted = SelectionSettings.model_validate({"max_force_eV_per_A": 1e6, **settings})
    return SelectTask(
        unlearned=(),
        sigma=0.01,
        task="select-1",
        round=1,
        model=ModelRef(version=2, file=save(model, directory / "model.pt")),
        settings=wanted,
        candidates=(
            write_candidates(directory / "a.h5", pool[::2]),
            write_candidates(directory / "b.h5", pool[1::2]),
        ),
        labels=(write_labels(directory / "labels.h5", [label_of(frame) for frame in labelled]),),
        pool=None,
        waiting=0,
        in_flight=(),
        count=4,
        keep=4,
        output=str(directory / "scratch"),
        seed=7,
        threads=1,
    )


def in_flight(directory: Path, frames: Sequence[Frame]) -> tuple[FrameRows, ...]:
    """Frames that an earlier selection picked, among others."""
    rows = [candidate(ethanol(9000), 0), *(candidate(frame, k) for k, frame in enumerate(frames))]
    file = write_candidates(directory / "earlier.h5", rows)
    return (FrameRows(file=file, rows=tuple(range(1, len(rows)))),)


def picks_of(result: SelectResult) -> list[Candidate]:
    assert result.picks is not None
    return read_candidates(result.picks)


def identities(picks: Sequence[Candidate]) -> list[str]:
    return [pick.frame.identity for pick in picks]
