"""A campaign's labels or its model as one file for other programs. Reads only, also while the campaign runs."""

import shutil
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from pipeline.durable import verify, write_durably
from pipeline.errors import StoreError
from pipeline.records import Label
from pipeline.shards import write_labels
from pipeline.state import CampaignState
from pipeline.store import Store


class ExportFormat(StrEnum):
    """What can be exported: labels as extended XYZ or one HDF5 file, or the newest model."""

    EXTXYZ = "extxyz"
    HDF5 = "hdf5"
    MODEL = "model"


def export(directory: Path, what: ExportFormat, output: Path) -> int:
    """Write one file.

    Args:
        directory: campaign directory.
        what: which file.
        output: its path; its directory must exist.

    Returns:
        Number of labels written, or the version of the model.

    Raises:
        StoreError: no campaign, damaged files, or nothing to export yet.
    """
    store = Store.open(directory)
    state = store.state()
    if what is ExportFormat.MODEL:
        return _export_model(store, state, output)
    labels = store.labels(state)
    if not labels:
        raise StoreError(f"{directory}: there are no labels yet.", "Run the campaign first.")
    if what is ExportFormat.HDF5:
        write_labels(output, labels)
    else:
        write_durably(output, lambda temporary: write_extxyz(temporary, labels))
    return len(labels)


def write_extxyz(path: Path, labels: Sequence[Label]) -> None:
    """Extended XYZ with energy (eV), forces (eV/Å), stress (eV/Å³, ASE's sign), split, round and origin of each.

    Where labels have them also charges (e), magmoms (μB) and the program that made them.
    """
    write(path, [_with_results(label) for label in labels], format="extxyz")


def _with_results(label: Label) -> Atoms:
    atoms = label.frame.to_atoms()
    results = {"energy": label.energy, "forces": label.forces}
    if label.stress is not None:
        results["stress"] = label.stress
    if label.charges is not None:
        results["charges"] = label.charges
    if label.magnetic_moments is not None:
        results["magmoms"] = label.magnetic_moments
    atoms.calc = SinglePointCalculator(atoms, **results)
    plain = {key: value for key, value in label.origin.items() if isinstance(value, (str, int, float))}
    atoms.info = {"system": label.frame.system, "split": label.split.value, "round": label.round, **plain}
    if label.program:
        atoms.info["program"] = label.program
    return atoms


def _export_model(store: Store, state: CampaignState, output: Path) -> int:
    if not state.models:
        raise StoreError(f"{store.root}: there is no model yet.", "Run the campaign first.")
    newest = state.models[-1]
    source = verify(store.absolute(newest.file))
    write_durably(output, lambda temporary: _copy(source, temporary))
    return newest.version


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
