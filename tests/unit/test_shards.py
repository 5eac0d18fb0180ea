"""What is written to a shard comes back bit for bit, or not at all."""

import subprocess
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.durable import sha256_of
from pipeline.errors import StoreError
from pipeline.frames import Frame
from pipeline.records import BiasState, Candidate, Checked, FileRef, Hills, Label, Split, StopReason, WalkerState
from pipeline.shards import (
    listed,
    read_candidates,
    read_energies,
    read_labels,
    read_walkers,
    write_candidates,
    write_labels,
    write_list,
    write_walkers,
)


def frame_of(atoms: int, seed: int, system: str = "µ-Cu") -> Frame:
    rng = np.random.default_rng(seed)
    return Frame(
        numbers=rng.integers(1, 90, atoms),
        positions=rng.normal(size=(atoms, 3)) * 1e3,
        cell=rng.normal(size=(3, 3)),
        pbc=np.array([True, False, bool(seed % 2)]),
        system=system,
    )


def labels() -> list[Label]:
    rng = np.random.default_rng(0)
    return [
        Label(
            frame=frame_of(atoms, atoms),
            energy=float(rng.normal()),
            forces=rng.normal(size=(atoms, 3)),
            stress=rng.normal(size=6) if atoms % 2 else None,
            split=split,
            round=atoms,
            origin={"walker": "r0001", "step": 3, "tau": 0.1} if atoms > 1 else {},
            cost_cpu_s=0.25,
            reference="abc",
            charges=rng.normal(size=atoms) if atoms > 1 else None,
            magnetic_moments=rng.normal(size=atoms) if atoms == 7 else None,
            program="CP2K 2023.1" if atoms > 1 else "",
        )
        for atoms, split in zip((1, 2, 7), Split, strict=True)
    ]


def walker(atoms: int, samples: int) -> WalkerState:
    rng = np.random.default_rng(atoms)
    arrays = [rng.normal(size=(atoms, 3)) for _ in range(5)]
    return WalkerState(
        walker=f"w{atoms}",
        frame=frame_of(atoms, 5),
        velocities=arrays[0],
        temperature_K=300.0,
        pressure_MPa=0.0,
        tau=0.25,
        seed=2**64 - 3,
        age=17,
        clock=400,
        bias=BiasState(
            force_squared=rng.normal(size=samples),
            gradient_squared=rng.normal(size=samples),
            stress_squared=rng.normal(size=2 * samples),
            strain_squared=rng.normal(size=2 * samples),
        ),
        forces=arrays[1],
        virial=rng.normal(size=(3, 3)),
        strain_rate=rng.normal(size=(3, 3)),
        model="ff00",
        anchor=arrays[2],
        anchor_cell=rng.normal(size=(3, 3)),
        start=arrays[3],
        start_cell=rng.normal(size=(3, 3)),
        hills=Hills(centers=rng.normal(size=(samples, 2)), heights=rng.random(samples)),
        good=Checked(arrays[4], rng.normal(size=(3, 3)), 15, 0.25, rng.random(atoms)) if samples else None,
    )


def same(a: object, b: object) -> bool:
    """Equality of records down to the bits of their arrays."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    fields = getattr(type(a), "__dataclass_fields__", None)
    if fields:
        return type(a) is type(b) and all(same(getattr(a, name), getattr(b, name)) for name in fields)
    return type(a) is type(b) and a == b


def test_labels_come_back_bit_for_bit(tmp_path: Path):
    written = labels()
    ref = write_labels(tmp_path / "a.h5", written)
    assert all(same(a, b) for a, b in zip(read_labels([ref, ref]), written + written, strict=True))


def test_labels_without_charges_moments_and_program_have_no_columns_for_them(tmp_path: Path):
    """As shards of earlier versions, which have none."""
    plain = [replace(label, charges=None, magnetic_moments=None, program="") for label in labels()]
    ref = write_labels(tmp_path / "a.h5", plain)
    with h5py.File(ref.path) as file:
        assert not {"charges", "has_charges", "magnetic_moments", "has_magnetic_moments", "program"} & set(file)
    assert all(same(a, b) for a, b in zip(read_labels(ref), plain, strict=True))


def test_compositions_and_energies_are_read_without_the_rest(tmp_path: Path):
    rows = list(read_energies(write_labels(tmp_path / "a.h5", labels())))
    assert [(numbers.tolist(), energy) for numbers, energy in rows] == [
        (label.frame.numbers.tolist(), label.energy) for label in labels()
    ]


def test_candidates_come_back_bit_for_bit(tmp_path: Path):
    written = [
        Candidate(
            frame=frame_of(atoms, atoms),
            walker="r0001-b000-s00-000",
            step=12,
            temperature_K=600.0,
            pressure_MPa=-250.0,
            tau=0.0,
            model_version=3,
            reason=StopReason.UNCERTAIN,
            total_uncertainty=0.1,
            atomic_uncertainty=np.linspace(0, 1, atoms, dtype=np.float32),
        )
        for atoms in (3, 1)
    ]
    ref = write_candidates(tmp_path / "c.h5", written)
    assert all(same(a, b) for a, b in zip(read_candidates(ref), written, strict=True))
    with h5py.File(ref.path, "r+") as file:  # as before cells could move
        del file["pressure_MPa"]
    old = FileRef(path=ref.path, sha256=sha256_of(Path(ref.path)))
    assert all(same(a, replace(b, pressure_MPa=0.0)) for a, b in zip(read_candidates(old), written, strict=True))


def test_walkers_come_back_bit_for_bit_with_empty_slots(tmp_path: Path):
    written = [None, walker(3, 0), None, walker(2, 100)]
    read = read_walkers(write_walkers(tmp_path / "w.h5", written))
    assert all(same(a, b) for a, b in zip(read, written, strict=True))


def test_empty_shards_are_allowed(tmp_path: Path):
    assert read_labels(write_labels(tmp_path / "a.h5", [])) == []
    assert read_candidates(write_candidates(tmp_path / "b.h5", [])) == []
    assert read_walkers(write_walkers(tmp_path / "c.h5", [None, None])) == [None, None]


def test_a_changed_missing_or_other_shard_is_refused(tmp_path: Path):
    ref = write_labels(tmp_path / "a.h5", labels())
    with pytest.raises(StoreError, match="holds"):
        read_candidates(ref)
    data = bytearray(Path(ref.path).read_bytes())
    data[len(data) // 2] ^= 1
    Path(ref.path).write_bytes(data)
    with pytest.raises(StoreError, match="content changed"):
        read_labels(ref)
    with pytest.raises(StoreError, match="missing"):
        read_labels(FileRef(path=str(tmp_path / "no.h5"), sha256=ref.sha256))


def test_no_temporary_file_stays_behind_when_writing_fails(tmp_path: Path):
    broken = Label(
        frame=frame_of(2, 1), energy=0.0, forces=np.zeros((2, 3)), stress=np.zeros(5), split=Split.TRAIN, round=0
    )
    with pytest.raises(ValueError, match="reshape"):
        write_labels(tmp_path / "a.h5", [broken])
    assert list(tmp_path.iterdir()) == []


def test_a_list_stands_for_its_shards_in_their_order(tmp_path: Path):
    shards = [write_labels(tmp_path / f"ü {name}.h5", labels()[k : k + 1]) for k, name in enumerate("abc")]
    several = write_list(tmp_path / "some.sha256", shards[:2])
    assert listed([several, shards[2]]) == shards
    read = read_labels((several, shards[2]))
    assert all(same(a, b) for a, b in zip(read, labels(), strict=True))
    subprocess.run(["sha256sum", "--check", several.path], check=True, capture_output=True, timeout=60)
    Path(several.path).write_text("")
    with pytest.raises(StoreError, match="content changed"):
        read_labels(several)
