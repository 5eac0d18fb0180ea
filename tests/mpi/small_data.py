"""Labels, candidates, models and tasks of a size that several ranks manage within seconds."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from ase.build import bulk, molecule
from ase.calculators.emt import EMT

from pipeline.frames import Frame
from pipeline.potentials import Model, save
from pipeline.potentials.gmnn import GMNN, FeatureSpec
from pipeline.records import Candidate, FileRef, FrameRows, Label, ModelRef, SelectTask, Split, StopReason, TrainTask
from pipeline.settings.launch import LaunchSettings
from pipeline.settings.potential import GMNNSettings
from pipeline.settings.selection import SelectionSettings
from pipeline.settings.training import TrainingSettings
from pipeline.settings.uncertainty import FeatureUncertaintySettings
from pipeline.settings.walkers import WalkerSettings
from pipeline.shards import write_candidates, write_labels
from pipeline.training.energy_scale import composition_offsets, energy_unit
from pipeline.uncertainty.estimator import Estimator

POTENTIAL = GMNNSettings(cutoff_A=4.0, gaussians=5, channels=3, hidden=(24, 24))
KNOWN_EV_PER_A = 0.05
"""A model of :func:`organic_model` is more certain than this of about one candidate in five of :func:`pool`."""
SPLITS = (Split.TRAIN, Split.TRAIN, Split.VALIDATION, Split.TRAIN, Split.CALIBRATION)


def copper(count: int, seed: int = 0) -> list[Label]:
    """Rattled copper of 4 and 8 atoms labelled by EMT, with stress: all for training."""
    labels = []
    for k in range(count):
        atoms = bulk("Cu", cubic=True) * ((1, 1, 2) if k % 3 == 0 else (1, 1, 1))
        atoms.rattle(0.1, seed=1000 * seed + k)
        atoms.calc = EMT()
        label = Label(
            frame=Frame.from_atoms(atoms, system="cu"),
            energy=float(atoms.get_potential_energy()),
            forces=atoms.get_forces(),
            stress=atoms.get_stress(),
            split=Split.TRAIN,
            round=0,
        )
        labels.append(label)
    return labels


def split_labels(count: int) -> list[Label]:
    """Some for validation, some for calibration."""
    return [replace(label, split=SPLITS[k % 5]) for k, label in enumerate(copper(count))]


def potential(labels: Sequence[Label], dtype: torch.dtype = torch.float32, seed: int = 0) -> GMNN:
    """Untrained, with the energy scale of the labels."""
    drawn = GMNN(POTENTIAL, (29,), FeatureSpec(), torch.Generator().manual_seed(seed)).to(dtype)
    drawn.offsets, drawn.unit_energy = drawn.offsets.double(), drawn.unit_energy.double()
    offsets = torch.from_numpy(composition_offsets(labels, drawn.elements))
    drawn.set_energy_scale(offsets_eV=offsets, unit_eV=energy_unit(labels))
    return drawn


def train_task(directory: Path, labels: Sequence[Label], launch: LaunchSettings, **changes: object) -> TrainTask:
    """A training in a directory of its own."""
    directory.mkdir()
    fields: dict = {
        "task": "train-1",
        "version": 1,
        "parent": None,
        "labels": (write_labels(directory / "labels.h5", labels),),
        "fresh": (),
        "potential": POTENTIAL,
        "uncertainty": FeatureUncertaintySettings(),
        "settings": TrainingSettings(epochs=20, batch=4),
        "output": str(directory / "model.pt"),
        "progress": str(directory / "progress.json"),
        "seed": 11,
        "threads": 1,
        "walkers": WalkerSettings(),
        "launch": launch,
    }
    return TrainTask(**(fields | changes))


def organic(name: str, seed: int, std_A: float = 0.2) -> Frame:
    """A rattled molecule."""
    atoms = molecule(name)
    atoms.positions += np.random.default_rng(seed).normal(scale=std_A, size=atoms.positions.shape)
    return Frame.from_atoms(atoms, system=name)


def candidate(frame: Frame, step: int, reason: StopReason = StopReason.RUNNING) -> Candidate:
    """As a walker proposes it."""
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
        atomic_uncertainty=np.zeros(len(frame), dtype=np.float32),
    )


def pool(count: int) -> list[Candidate]:
    """Two molecules; every seventh candidate repeats an earlier one, some are broken, at some a walker stopped."""
    candidates: list[Candidate] = []
    for k in range(count):
        frame = organic("CH3CH2OH" if k % 3 else "H2O", k)
        if k % 7 == 6:
            earlier = candidates[k // 2].frame
            frame = replace(earlier, positions=earlier.positions + 1e-4 * np.sin(np.arange(len(earlier)))[:, None])
        if k % 41 == 40:
            frame = replace(frame, positions=np.full_like(frame.positions, np.nan))
        stopped = StopReason.UNCERTAIN if k % 5 == 0 else StopReason.RUNNING
        candidates.append(candidate(frame, k, stopped))
    return candidates


def labelled(count: int) -> list[Label]:
    """Labels of the same molecules."""
    frames = [organic("CH3CH2OH" if k % 2 else "H2O", 10_000 + k) for k in range(count)]
    return [
        Label(frame=f, energy=0.0, forces=np.zeros((len(f), 3)), stress=None, split=Split.TRAIN, round=0)
        for f in frames
    ]


def organic_model(frames: Sequence[Frame]) -> Model:
    """An untrained network with a posterior of its own features."""
    network = GMNN(
        GMNNSettings(channels=2, hidden=(16,), gaussians=5),
        (1, 6, 8),
        FeatureSpec(),
        torch.Generator().manual_seed(1),
    )
    blank = Estimator.fit("committee", torch.eye(network.feature_dimension), torch.eye(1), sigma=1.0)
    features = Model([network], blank, 1).structure_features(frames)
    return Model([network], Estimator.fit("posterior", features, features, sigma=0.01), 2)


def select_task(
    directory: Path, candidates: Sequence[Candidate], launch: LaunchSettings, *, shards: int = 5, **settings: object
) -> SelectTask:
    """A selection in a directory of its own, from new shards of different sizes."""
    directory.mkdir()
    known = labelled(9)
    model = organic_model([label.frame for label in known])
    edges = np.linspace(0, 1, shards + 1) ** 2 * len(candidates)
    files: list[FileRef] = [
        write_candidates(directory / f"c{k}.h5", candidates[int(a) : int(b)])
        for k, (a, b) in enumerate(itertools.pairwise(edges))
    ]
    return SelectTask(
        unlearned=(),
        sigma=0.01,
        task="select-1",
        round=1,
        model=ModelRef(version=2, file=save(model, directory / "model.pt")),
        settings=SelectionSettings.model_validate({"max_force_eV_per_A": 1e3, **settings}),
        candidates=tuple(files),
        labels=(write_labels(directory / "l0.h5", known[:5]), write_labels(directory / "l1.h5", known[5:])),
        pool=None,
        waiting=0,
        in_flight=(FrameRows(file=write_candidates(directory / "earlier.h5", candidates[:2]), rows=(1,)),)
        if len(candidates) > 1
        else (),
        count=25,
        keep=25,
        output=str(directory / "output"),
        seed=7,
        threads=1,
        launch=launch,
    )


def later_select_task(directory: Path, candidates: Sequence[Candidate], launch: LaunchSettings) -> SelectTask:
    """A selection among some that were kept and others that are new, with systems' shares; a part of both is known."""
    sound = [one for one in candidates if np.isfinite(one.frame.positions).all()]
    task = select_task(directory, sound[120:], launch, kind="maxdist", max_candidates=90)
    kept = FrameRows(file=write_candidates(directory / "kept.h5", sound[:120][::-1]), rows=tuple(range(119, 0, -1)))
    return replace(
        task, pool=kept, waiting=40, keep=60, known_eV_per_A=KNOWN_EV_PER_A, shares={"H2O": 0.7, "CH3CH2OH": 0.3}
    )
