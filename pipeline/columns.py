"""HDF5 groups that hold many frames and ragged arrays as flat columns.

Shapes: B items, A rows of all items together.
"""

import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from pipeline.errors import StoreError
from pipeline.frames import Frame

Array = npt.NDArray[Any]

Columns = Mapping[str, Sequence[Any]]

FORMAT = "farwalk-shard"
SCHEMA = 2


def file_image(kind: str, fill: Callable[[h5py.Group], None]) -> bytes:
    """The bytes of an HDF5 file marked with format, schema and what it holds.

    Made in memory: HDF5 itself says nothing clear about a disk that is full, and may fail once more when it closes the file.

    Args:
        kind: what it holds.
        fill: puts the content into it.
    """
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        file.attrs.update(format=FORMAT, schema=SCHEMA, kind=kind)
        fill(file)
    return image.getvalue()


def open_file(path: Path, kind: str) -> h5py.File:
    """An existing file, read-only.

    Raises:
        StoreError: not HDF5, or of another format, schema or kind.
    """
    try:
        # shards never change, and shared file systems may refuse locks
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise StoreError(f"{path}: not a readable HDF5 file ({error}).", "Restore it from a copy.") from error
    found = (file.attrs.get("format"), file.attrs.get("schema"), file.attrs.get("kind"))
    if found != (FORMAT, SCHEMA, kind):
        file.close()
        raise StoreError(
            f"{path}: holds {found}, expected {(FORMAT, SCHEMA, kind)}.",
            "Read it with the farwalk version that wrote it.",
        )
    return file


def put_ragged(
    group: h5py.Group, name: str, arrays: Sequence[Array], shape: tuple[int, ...], dtype: npt.DTypeLike
) -> None:
    """Store arrays of shape (n_i, *shape) as one array and the B + 1 offsets of its parts."""
    lengths = [len(array) for array in arrays]
    joined = np.concatenate([np.zeros((0, *shape)), *arrays]).astype(dtype)
    group.create_dataset(name, data=joined)
    group.create_dataset(f"{name}_offsets", data=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def get_ragged(group: h5py.Group, name: str) -> list[Array]:
    """What :func:`put_ragged` stored, as copies."""
    joined, offsets = group[name][()], group[f"{name}_offsets"][()]
    return [joined[a:b].copy() for a, b in itertools.pairwise(offsets)]


def put_texts(group: h5py.Group, name: str, texts: Sequence[str]) -> None:
    """Store strings as UTF-8."""
    group.create_dataset(name, data=list(texts), dtype=h5py.string_dtype("utf-8"), shape=(len(texts),))


def get_texts(group: h5py.Group, name: str) -> list[str]:
    """What :func:`put_texts` stored."""
    return [text.decode("utf-8") for text in group[name][()]]


def put_jsons(group: h5py.Group, name: str, values: Sequence[dict[str, Any]]) -> None:
    """Store plain dicts as JSON texts."""
    put_texts(group, name, [json.dumps(value, sort_keys=True) for value in values])


def get_jsons(group: h5py.Group, name: str) -> list[dict[str, Any]]:
    """What :func:`put_jsons` stored."""
    return [json.loads(text) for text in get_texts(group, name)]


def put_numbers(
    group: h5py.Group, name: str, values: Sequence[Any], dtype: npt.DTypeLike, shape: tuple[int, ...] = ()
) -> None:
    """Store B numbers, or B arrays of one shape."""
    group.create_dataset(name, data=np.array(values, dtype=dtype).reshape(len(values), *shape))


def get_numbers(group: h5py.Group, name: str) -> list[Any]:
    """What :func:`put_numbers` stored, as plain Python numbers or arrays."""
    values: Array = group[name][()]
    return list(values) if values.ndim > 1 else list(values.tolist())


def rows_of(columns: Columns) -> Iterator[dict[str, Any]]:
    """One dict per item from one sequence per name."""
    return (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))


def put_frames(file: h5py.Group, frames: Sequence[Frame]) -> None:
    """Store frames in the group ``frames``."""
    group = file.create_group("frames")
    put_ragged(group, "numbers", [frame.numbers for frame in frames], (), np.int64)
    put_ragged(group, "positions", [frame.positions for frame in frames], (3,), np.float64)
    put_numbers(group, "cell", [frame.cell for frame in frames], np.float64, (3, 3))
    put_numbers(group, "pbc", [frame.pbc for frame in frames], np.bool_, (3,))
    put_texts(group, "system", [frame.system for frame in frames])


def get_frames(file: h5py.Group) -> list[Frame]:
    """What :func:`put_frames` stored, bit for bit."""
    group = file["frames"]
    columns = (
        get_ragged(group, "numbers"),
        get_ragged(group, "positions"),
        list(group["cell"][()]),
        list(group["pbc"][()]),
        get_texts(group, "system"),
    )
    return [
        Frame(numbers=numbers, positions=positions, cell=cell, pbc=pbc, system=system)
        for numbers, positions, cell, pbc, system in zip(*columns, strict=True)
    ]
