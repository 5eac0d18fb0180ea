"""Cost of training: seconds per epoch for 100 structures of alanine dipeptide, one thread, default and published potential.

python tests/benchmarks/train.py [--smoke] [--device cuda]; the last line is one JSON object. The structures are rattled copies
of the start structure labelled by the force field: the cost depends on sizes alone, not on what the labels are worth.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from ase.io import read
from provenance import provenance

from pipeline.frames import Frame
from pipeline.potentials.gmnn import GMNN, FeatureSpec
from pipeline.records import Label, Split
from pipeline.references import Calculation
from pipeline.references.openmm import OpenMMLabeler
from pipeline.settings.labels import OpenMMReference
from pipeline.settings.potential import GMNNSettings
from pipeline.settings.training import TrainingSettings
from pipeline.training.dataset import LabelSet
from pipeline.training.energy_scale import composition_offsets, energy_unit
from pipeline.training.trainer import Row, Schedule, Trainer

TEMPLATE = Path(__file__).parents[2] / "apps" / "templates" / "alanine-dipeptide"
POTENTIALS = {
    "default": GMNNSettings(),
    "published": GMNNSettings(channels=7, gaussians=9, hidden=(512, 512)),
}


def rattled_labels(count: int) -> list[Label]:
    """Rattled copies of the start structure, labelled."""
    start = read(TEMPLATE / "alanine-dipeptide.extxyz")
    labeler = OpenMMLabeler(OpenMMReference(topology=str(TEMPLATE / "alanine-dipeptide.pdb")))
    labels = []
    for seed in range(count):
        atoms = start.copy()
        atoms.rattle(0.05, seed=seed)
        frame = Frame.from_atoms(atoms, system="alanine-dipeptide")
        found = labeler.label(frame, Calculation(directory=Path()))
        label = Label(frame=frame, energy=found.energy, forces=found.forces, stress=None, split=Split.TRAIN, round=0)
        labels.append(label)
    return labels


def time_epochs(
    labels: list[Label], settings: GMNNSettings, batch: int, epochs: int, device: str = "cpu"
) -> dict[str, float]:
    """Set-up seconds, and median and least seconds and processor seconds per epoch after the first."""
    elements = sorted({int(z) for z in labels[0].frame.numbers})
    potential = GMNN(settings, elements, FeatureSpec(), torch.Generator().manual_seed(0))
    offsets = torch.from_numpy(composition_offsets(labels, elements))
    potential.set_energy_scale(offsets_eV=offsets, unit_eV=energy_unit(labels))
    started = time.perf_counter()
    train = LabelSet(labels, potential.to(device), device=device)
    setup = time.perf_counter() - started
    clocks: list[tuple[float, float]] = []

    def tick(_: Row) -> None:
        clocks.append((time.perf_counter(), time.process_time()))

    training = TrainingSettings(batch=batch, validate_every=10_000)
    Trainer(potential, train, None, settings=training, seed=0, report=tick).run(Schedule(epochs=epochs, rate=1.0))
    epochs_s = np.diff(np.array(clocks), axis=0) * 100 / len(labels)
    (wall, processor), (least, least_processor) = np.median(epochs_s, axis=0), epochs_s.min(axis=0)
    return {
        "setup_s": setup * 100 / len(labels),
        "epoch_s": float(wall),
        "epoch_cpu_s": float(processor),
        "least_s": float(least),
        "least_cpu_s": float(least_processor),
    }


def main() -> None:
    """Run, print a table, and end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small and quick, for CI")
    parser.add_argument("--device", default="cpu", help="what trains")
    chosen = parser.parse_args()
    smoke = chosen.smoke
    torch.set_num_threads(1)
    labels = rattled_labels(8 if smoke else 100)
    rows = {}
    print("seconds per epoch of 100 structures of 22 atoms, one thread")
    for name, settings in POTENTIALS.items():
        for batch in (4, 8, 32):
            row = time_epochs(labels, settings, batch, epochs=3 if smoke else 8, device=chosen.device)
            rows[f"{name}, batch {batch}"] = row
            processor = f"processor {row['epoch_cpu_s']:.3f} s, at least {row['least_cpu_s']:.3f} s"
            print(f"  {name:<10} batch {batch:>2}  {row['epoch_s']:7.3f} s  ({processor})")
    settings_used = {name: settings.model_dump(mode="json") for name, settings in POTENTIALS.items()}
    print(
        json.dumps(
            {
                "benchmark": "training",
                "smoke": smoke,
                "device": chosen.device,
                "rows": rows,
                "settings": settings_used,
                **provenance(),
            }
        )
    )


if __name__ == "__main__":
    main()
