"""Shards: immutable HDF5 files of labels, candidates and walkers.

A shard is written once under a temporary name, fsynced and renamed; reading checks its sha256.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from pipeline.columns import (
    Columns,
    file_image,
    get_frames,
    get_jsons,
    get_numbers,
    get_ragged,
    get_texts,
    open_file,
    put_frames,
    put_jsons,
    put_numbers,
    put_ragged,
    put_texts,
    rows_of,
)
from pipeline.durable import verify, write_bytes_durably, write_text_durably
from pipeline.frames import FloatArray, Frame, IntArray
from pipeline.records import BiasState, Candidate, Checked, FileRef, Hills, Label, Split, StopReason, WalkerState

LIST = ".sha256"
"""How the name of a list of shards ends."""


def write_list(path: str | Path, files: Sequence[FileRef]) -> FileRef:
    """Write a list that stands for several shards, as ``sha256sum`` writes it: tasks stay small whatever they read."""
    assert str(path).endswith(LIST)
    return write_text_durably(Path(path), "".join(f"{file.sha256}  {file.path}\n" for file in files))


def listed(files: FileRef | Sequence[FileRef]) -> list[FileRef]:
    """Shards, with those that lists stand for in their place.

    Raises:
        StoreError: a list is missing or changed.
    """
    shards: list[FileRef] = []
    for file in [files] if isinstance(files, FileRef) else files:
        if file.path.endswith(LIST):
            rows = (line.split("  ", 1) for line in verify(file).read_text(encoding="utf-8").splitlines())
            shards += [FileRef(path=path, sha256=sha256) for sha256, path in rows]
        else:
            shards.append(file)
    return shards


def write_labels(path: str | Path, labels: Sequence[Label]) -> FileRef:
    """Write labels to a new shard."""

    return _write(path, "labels", lambda file: _put_labels(file, labels))


def _put_labels(file: h5py.Group, labels: Sequence[Label]) -> None:
    """Store labels in an open HDF5 file: energies in eV, forces in eV/Å, stress (6,) Voigt in eV/Å³ (NaN: none)."""
    put_frames(file, [label.frame for label in labels])
    put_numbers(file, "energy", [label.energy for label in labels], np.float64)
    put_ragged(file, "forces", [label.forces for label in labels], (3,), np.float64)
    stress = [np.full(6, np.nan) if label.stress is None else label.stress for label in labels]
    put_numbers(file, "stress", stress, np.float64, (6,))
    put_numbers(file, "has_stress", [label.stress is not None for label in labels], np.bool_)
    put_texts(file, "identity", [label.frame.identity for label in labels])
    put_texts(file, "split", [label.split.value for label in labels])
    put_numbers(file, "round", [label.round for label in labels], np.int64)
    put_jsons(file, "origin", [label.origin for label in labels])
    put_numbers(file, "cost_cpu_s", [label.cost_cpu_s for label in labels], np.float64)
    put_texts(file, "reference", [label.reference for label in labels])
    _put_atomic(file, "charges", [label.charges for label in labels])
    _put_atomic(file, "magnetic_moments", [label.magnetic_moments for label in labels])
    if any(label.program for label in labels):
        put_texts(file, "program", [label.program for label in labels])


def _put_atomic(file: h5py.Group, name: str, columns: Sequence[FloatArray | None]) -> None:
    """Store one number per atom of each label that has them, and which ones have; nothing where none has."""
    if any(column is not None for column in columns):
        none = np.zeros(0)
        put_ragged(file, name, [none if column is None else column for column in columns], (), np.float64)
        put_numbers(file, f"has_{name}", [column is not None for column in columns], np.bool_)


def _get_atomic(file: h5py.Group, name: str, count: int) -> list[FloatArray | None]:
    """What :func:`_put_atomic` stored of so many labels."""
    if name not in file:
        return [None] * count
    present = zip(get_ragged(file, name), get_numbers(file, f"has_{name}"), strict=True)
    return [column if has else None for column, has in present]


def read_labels(files: FileRef | Sequence[FileRef]) -> list[Label]:
    """All labels of one or several shards or lists of shards, in order.

    Raises:
        StoreError: a shard is missing, changed or of another version.
    """
    return [label for file in listed(files) for label in _read_label_shard(file)]


def _read_label_shard(ref: FileRef) -> list[Label]:
    with open_file(verify(ref), "labels") as file:
        references = get_texts(file, "reference")
        stresses = zip(get_numbers(file, "stress"), get_numbers(file, "has_stress"), strict=True)
        columns: Columns = {
            "frame": get_frames(file),
            "energy": get_numbers(file, "energy"),
            "forces": get_ragged(file, "forces"),
            "stress": [stress if has else None for stress, has in stresses],
            "split": [Split(text) for text in get_texts(file, "split")],
            "round": get_numbers(file, "round"),
            "origin": get_jsons(file, "origin"),
            "cost_cpu_s": get_numbers(file, "cost_cpu_s"),
            "reference": references,
            "charges": _get_atomic(file, "charges", len(references)),
            "magnetic_moments": _get_atomic(file, "magnetic_moments", len(references)),
            "program": get_texts(file, "program") if "program" in file else [""] * len(references),
        }
    return [Label(**row) for row in rows_of(columns)]


def read_label_frames(ref: FileRef) -> list[Frame]:
    """The structure of each label of a shard, without the rest of it.

    Raises:
        StoreError: the shard is missing, changed or of another version.
    """
    with open_file(verify(ref), "labels") as file:
        return get_frames(file)


def read_energies(ref: FileRef) -> Iterator[tuple[IntArray, float]]:
    """Atomic numbers (N,) and energy, eV, of each label of a shard, without the rest of it.

    Raises:
        StoreError: the shard is missing, changed or of another version.
    """
    with open_file(verify(ref), "labels") as file:
        numbers, energies = get_ragged(file["frames"], "numbers"), get_numbers(file, "energy")
    return zip(numbers, energies, strict=True)


def write_candidates(path: str | Path, candidates: Sequence[Candidate]) -> FileRef:
    """Write candidates to a new shard."""

    def fill(file: h5py.Group) -> None:
        put_frames(file, [candidate.frame for candidate in candidates])
        put_texts(file, "walker", [candidate.walker for candidate in candidates])
        put_numbers(file, "step", [candidate.step for candidate in candidates], np.int64)
        put_numbers(file, "temperature_K", [candidate.temperature_K for candidate in candidates], np.float64)
        put_numbers(file, "pressure_MPa", [candidate.pressure_MPa for candidate in candidates], np.float64)
        put_numbers(file, "tau", [candidate.tau for candidate in candidates], np.float64)
        put_numbers(file, "model_version", [candidate.model_version for candidate in candidates], np.int64)
        put_texts(file, "reason", [candidate.reason.value for candidate in candidates])
        put_numbers(file, "total_uncertainty", [item.total_uncertainty for item in candidates], np.float64)
        put_ragged(file, "atomic_uncertainty", [item.atomic_uncertainty for item in candidates], (), np.float32)

    return _write(path, "candidates", fill)


def read_candidates(files: FileRef | Sequence[FileRef]) -> list[Candidate]:
    """All candidates of one or several shards or lists of shards, in order.

    Raises:
        StoreError: a shard is missing, changed or of another version.
    """
    return [candidate for file in listed(files) for candidate in _read_candidate_shard(file)]


def _read_candidate_shard(ref: FileRef) -> list[Candidate]:
    with open_file(verify(ref), "candidates") as file:
        temperatures = get_numbers(file, "temperature_K")
        columns: Columns = {
            "frame": get_frames(file),
            "walker": get_texts(file, "walker"),
            "step": get_numbers(file, "step"),
            "temperature_K": temperatures,
            # campaigns that are older than moving cells have none
            "pressure_MPa": get_numbers(file, "pressure_MPa") if "pressure_MPa" in file else [0.0] * len(temperatures),
            "tau": get_numbers(file, "tau"),
            "model_version": get_numbers(file, "model_version"),
            "reason": [StopReason(text) for text in get_texts(file, "reason")],
            "total_uncertainty": get_numbers(file, "total_uncertainty"),
            "atomic_uncertainty": get_ragged(file, "atomic_uncertainty"),
        }
    return [Candidate(**row) for row in rows_of(columns)]


_SCALARS = ("temperature_K", "pressure_MPa", "tau", "seed", "age", "clock")
_MATRICES = ("virial", "strain_rate", "anchor_cell", "start_cell")
_WINDOWS = ("force_squared", "gradient_squared", "stress_squared", "strain_squared")


def write_walkers(path: str | Path, walkers: Sequence[WalkerState | None]) -> FileRef:
    """Write one walker per slot to a new shard; None is a slot that starts fresh."""

    present = [walker for walker in walkers if walker is not None]

    def fill(file: h5py.Group) -> None:
        put_numbers(file, "occupied", [walker is not None for walker in walkers], np.bool_)
        put_frames(file, [walker.frame for walker in present])
        put_texts(file, "walker", [walker.walker for walker in present])
        put_texts(file, "model", [walker.model for walker in present])
        put_numbers(file, "temperature_K", [walker.temperature_K for walker in present], np.float64)
        put_numbers(file, "pressure_MPa", [walker.pressure_MPa for walker in present], np.float64)
        put_numbers(file, "tau", [walker.tau for walker in present], np.float64)
        put_numbers(file, "seed", [walker.seed for walker in present], np.uint64)
        put_numbers(file, "age", [walker.age for walker in present], np.int64)
        put_numbers(file, "clock", [walker.clock for walker in present], np.int64)
        put_ragged(file, "velocities", [walker.velocities for walker in present], (3,), np.float64)
        put_ragged(file, "forces", [walker.forces for walker in present], (3,), np.float64)
        put_ragged(file, "anchor", [walker.anchor for walker in present], (3,), np.float64)
        put_ragged(file, "start", [walker.start for walker in present], (3,), np.float64)
        for name in _MATRICES:
            put_numbers(file, name, [getattr(walker, name) for walker in present], np.float64, (3, 3))
        for name in _WINDOWS:
            put_ragged(file, name, [getattr(walker.bias, name) for walker in present], (), np.float64)
        width = present[0].hills.centers.shape[1] if present else 0
        put_ragged(file, "hill_centers", [walker.hills.centers for walker in present], (width,), np.float64)
        put_ragged(file, "hill_heights", [walker.hills.heights for walker in present], (), np.float64)
        _put_checked(file, [walker.good for walker in present])

    return _write(path, "walkers", fill)


def read_walkers(ref: FileRef) -> list[WalkerState | None]:
    """The walkers of a shard by slot, bit for bit.

    Raises:
        StoreError: the shard is missing, changed or of another version.
    """
    with open_file(verify(ref), "walkers") as file:
        windows = zip(*(get_ragged(file, name) for name in _WINDOWS), strict=True)
        hills = (get_ragged(file, "hill_centers"), get_ragged(file, "hill_heights"))
        columns: Columns = {
            "walker": get_texts(file, "walker"),
            "model": get_texts(file, "model"),
            "frame": get_frames(file),
            "bias": [BiasState(**dict(zip(_WINDOWS, several, strict=True))) for several in windows],
            "hills": [Hills(centers=c, heights=h) for c, h in zip(*hills, strict=True)],
            "good": _get_checked(file),
            **{name: get_numbers(file, name) for name in _SCALARS},
            **{name: get_numbers(file, name) for name in _MATRICES},
            **{name: get_ragged(file, name) for name in ("velocities", "forces", "anchor", "start")},
        }
        occupied = get_numbers(file, "occupied")
    rows = rows_of(columns)
    return [WalkerState(**next(rows)) if here else None for here in occupied]


def _put_checked(file: h5py.Group, checked: Sequence[Checked | None]) -> None:
    """Store where each walker stood at its last stop check: ages of -1 and no atoms where there was none."""
    none = Checked(np.zeros((0, 3)), np.zeros((3, 3)), -1, np.nan, np.zeros(0))
    rows = [one or none for one in checked]
    put_ragged(file, "good_positions", [row.positions for row in rows], (3,), np.float64)
    put_numbers(file, "good_cell", [row.cell for row in rows], np.float64, (3, 3))
    put_ragged(file, "good_atomic", [row.atomic for row in rows], (), np.float64)
    put_numbers(file, "good_total", [row.total for row in rows], np.float64)
    put_numbers(file, "good_age", [row.age for row in rows], np.int64)


def _get_checked(file: h5py.Group) -> list[Checked | None]:
    """What :func:`_put_checked` stored."""
    columns = (
        get_ragged(file, "good_positions"),
        get_numbers(file, "good_cell"),
        get_numbers(file, "good_age"),
        get_numbers(file, "good_total"),
        get_ragged(file, "good_atomic"),
    )
    rows = (Checked(*row) for row in zip(*columns, strict=True))
    return [row if row.age >= 0 else None for row in rows]


def _write(path: str | Path, kind: str, fill: Callable[[h5py.Group], None]) -> FileRef:
    return write_bytes_durably(Path(path), file_image(kind, fill))
