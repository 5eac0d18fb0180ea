"""In how many parts a batch is evaluated, so that what the backward pass needs fits into memory.

What one evaluation takes is measured on a few walkers and grows with the number of neighbour entries. Walkers do not see each
other, so a batch may be evaluated in parts: the result is the same up to rounding, and to the bit where the number of parts is
the same. That is a power of two, so that it rarely depends on what else there is in memory.

Shapes: B walkers, A atoms, M neighbours.
"""

import gc
import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.batching import Batch
from pipeline.frames import IntArray

PEAK = 4.0
"""Memory in use at most over what is saved for the backward pass, where only that can be measured: gradients and temporaries
come on top (GM-NN of the published size: 1.6 to 3.2 times)."""
SHARE = {"cpu": 0.4, "cuda": 0.8}
"""Of the free memory that one walk may take: other tasks use a node's main memory at the same time."""
UNMEASURED = 20_000
"""Neighbour entries, A times M, that fit anywhere: about 200 MB."""
SAMPLE = 2
"""Walkers that are measured."""
TABLES = 20
"""Tables (A, M) of float64 that rows and stop checks of the whole batch take besides, whatever the parts: bond vectors,
distances, sums of radii, keys of pairs."""
REMEMBERED = 64
"""Measurements that are kept on a node."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Share:
    """Consecutive walkers of a batch, and their atoms."""

    walkers: slice
    atoms: slice

    def of(self, batch: Batch, sizes: IntArray) -> Batch:
        """The batch of these walkers alone; the batch itself where these are all."""
        if self.walkers.start == 0 and self.walkers.stop == len(sizes):
            return batch
        atoms, walkers = self.atoms, self.walkers
        return replace(
            batch,
            numbers=batch.numbers[atoms],
            positions=batch.positions[atoms],
            cells=batch.cells[walkers],
            pbc=batch.pbc[walkers],
            system=batch.system[atoms] - walkers.start,
            n_atoms=batch.n_atoms[walkers],
            neighbors=batch.neighbors[atoms] - atoms.start,
            offsets=batch.offsets[atoms],
            shifts=batch.shifts[atoms],
            padding=batch.padding[atoms],
            largest=int(sizes[walkers].max()),
        )


def shares(sizes: IntArray, parts: int) -> list[Share]:
    """At most ``parts`` shares of walkers of ``sizes`` (B,) atoms, the largest as small as consecutive walkers allow.

    It holds less than total / parts plus the largest walker. With ``parts`` >= B every walker is on its own.
    """
    count = len(sizes)
    if parts >= count:
        bounds = list(range(count + 1))
    elif parts == 1:
        bounds = [0, count]
    else:
        bounds = _bounds(np.cumsum(sizes), parts, int(sizes.max()))
    first = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    return [Share(slice(a, b), slice(first[a], first[b])) for a, b in pairwise(bounds)]


def _bounds(ends: IntArray, parts: int, largest: int) -> list[int]:
    """Where shares begin and end: filled one after another to the least limit with which ``parts`` are enough."""
    total = int(ends[-1])
    low = max(-(-total // parts), largest)
    high = -(-total // parts) + largest
    while low < high:
        middle = (low + high) // 2
        if len(_filled(ends, middle)) - 1 <= parts:
            high = middle
        else:
            low = middle + 1
    return _filled(ends, low)


def _filled(ends: IntArray, limit: int) -> list[int]:
    """Where shares begin and end that are filled up to ``limit`` atoms; no walker is larger."""
    bounds, done = [0], 0
    while bounds[-1] < len(ends):
        bounds.append(int(np.searchsorted(ends, done + limit, side="right")))
        done = int(ends[bounds[-1] - 1])
    return bounds


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory did not suffice: PyTorch says so, or a library beneath it that asks for its own (cuBLAS, cuSOLVER)."""
    return isinstance(error, torch.OutOfMemoryError) or "_STATUS_ALLOC_FAILED" in str(error)


def _let_go() -> None:
    """Give back what a failed evaluation held."""
    gc.collect()
    torch.cuda.empty_cache()


def peak_bytes(run: Callable[[], object], known: Iterable[Tensor], device: torch.device) -> float:
    """Bytes in use at most while ``run`` goes on, without what is there before: counted on a GPU, estimated elsewhere.

    Args:
        run: evaluates something on ``device``, with a backward pass.
        known: tensors that are there before, such as the weights.
        device: where.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return float(torch.cuda.max_memory_allocated(device) - before)
    return PEAK * saved_bytes(run, known)


def saved_bytes(run: Callable[[], object], known: Iterable[Tensor]) -> int:
    """Bytes that automatic differentiation saves while ``run`` goes on: every storage once, those of ``known`` not at all."""
    seen = {tensor.untyped_storage()._cdata for tensor in known}
    kept: list[torch.UntypedStorage] = []  # a storage that is gone would lend its address to another one

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            kept.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in kept)


def free_bytes(device: torch.device) -> float:
    """Memory that is free on a device, for the CPU also under the limits of this process's control groups."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return float(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    free_there = float("inf")
    with suppress(OSError):
        rows = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free_there = 1024.0 * int(rows["MemAvailable"].split()[0])
    return min([free_there, *_left_in_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def _left_in_groups(membership: Path, root: Path) -> Iterable[float]:
    """What each control group above this process leaves of its limit, bytes (both versions of the interface)."""
    names = {"": ("memory.max", "memory.current"), "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes")}
    with suppress(OSError):
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in names:
                continue
            group = root / controllers / path.lstrip("/")
            for place in (group, *group.parents):
                with suppress(OSError, ValueError):  # no limit is the word max; the root has no file
                    limit, used = (int((place / name).read_text()) for name in names[controllers])
                    yield float(limit - used + _reclaimable(place / "memory.stat"))
                if place == root:
                    break


def _reclaimable(statistics: Path) -> int:
    """Bytes of files in memory that the kernel gives up when asked."""
    rows = dict(line.split() for line in statistics.read_text().splitlines())
    return int(rows.get("total_inactive_file", rows.get("inactive_file", 0)))


class Capacity:
    """Decides in how many parts batches are evaluated on one device with one model.

    Args:
        device: where.
        model: digest of the model's file.
        cache: directory on the node where measurements are kept; None: nowhere.
        parts: evaluate in at least so many parts, where there are as many walkers.

    Attributes:
        parts: of the batch that was planned last; at most one for each walker is made.
    """

    def __init__(self, device: torch.device, model: str, cache: Path | None = None, *, parts: int = 1) -> None:
        self._device, self._model, self._file = device, model, None if cache is None else cache / "walk-memory.json"
        self._least = self.parts = parts
        self._per_entry = 0.0
        self._allowed = 0.0

    def plan(self, batch: Batch, sizes: IntArray, measure: Callable[[Share], float]) -> None:
        """Choose the number of parts for a batch.

        Args:
            batch: walkers.
            sizes: (B,) atoms of each.
            measure: bytes that the evaluation of a share takes at most.
        """
        self.parts = self._least
        entries = batch.neighbors.numel()
        if entries <= UNMEASURED or self._device.type not in SHARE:
            return
        if not self._per_entry:
            self._allowed = SHARE[self._device.type] * free_bytes(self._device)
            self._per_entry = self._known(batch, sizes, measure)
        left = self._allowed - TABLES * torch.float64.itemsize * entries
        wanted = self._per_entry * entries / max(left, 1.0)
        while self.parts < min(wanted, len(sizes)):
            self.parts *= 2

    def _known(self, batch: Batch, sizes: IntArray, measure: Callable[[Share], float]) -> float:
        """Bytes for each neighbour entry, as measured here or before."""
        where = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu"
        key = f"{where}|{self._model}|{_composition(batch)}"
        per_entry = self._remembered().get(key)
        if per_entry is None:
            sample, taken = self._measured(sizes, measure)
            per_entry = taken / (sample.atoms.stop * batch.neighbors.shape[1])
            self._remember(key, per_entry)
        return per_entry

    def _measured(self, sizes: IntArray, measure: Callable[[Share], float]) -> tuple[Share, float]:
        """A few walkers, or one where the memory of a GPU does not suffice for more, and bytes that their evaluation takes."""
        for walkers in range(min(SAMPLE, len(sizes)), 1, -1):
            sample = Share(slice(0, walkers), slice(0, int(sizes[:walkers].sum())))
            try:
                return sample, measure(sample)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            _let_go()
        alone = shares(sizes, len(sizes))[0]
        return alone, measure(alone)

    def evaluate(self, sizes: IntArray, one: Callable[[Share], Result]) -> list[Result]:
        """What ``one`` says of each share; in twice as many where the memory of a GPU does not suffice.

        Raises:
            RuntimeError: a single walker does not fit (:func:`is_out_of_memory`).
        """
        while self.parts < len(sizes):
            try:
                return [one(share) for share in shares(sizes, self.parts)]
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            _let_go()
            self._least = self.parts = 2 * self.parts
        return [one(share) for share in shares(sizes, len(sizes))]

    def _remembered(self) -> dict[str, float]:
        if self._file is None:
            return {}
        try:
            known: dict[str, float] = json.loads(self._file.read_text())
        except (OSError, ValueError):  # none yet, or not ours to mend
            return {}
        return known

    def _remember(self, key: str, per_entry: float) -> None:
        if self._file is None:
            return
        known = self._remembered() | {key: per_entry}
        newest = dict(list(known.items())[-REMEMBERED:])
        temporary = self._file.with_name(f".{self._file.name}.{os.getpid()}.tmp")
        with suppress(OSError):  # a full disk costs another measurement, not the walk
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.write_text(json.dumps(newest))
            temporary.replace(self._file)


def _composition(batch: Batch) -> str:
    """Elements and their shares of all atoms, in per cent."""
    counts = torch.bincount(batch.numbers).cpu().numpy()
    shares_of = {int(z): round(100.0 * counts[z] / counts.sum()) for z in np.nonzero(counts)[0]}
    return ",".join(f"{z}:{share}" for z, share in shares_of.items())
