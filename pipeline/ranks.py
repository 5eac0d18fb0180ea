"""What the rest sees of MPI: who else works on a task, and the few things ranks tell each other.

Every rank runs the same code and takes the same decisions, because all of them decide by the same numbers. A process alone
is the one rank of :data:`ALONE`; mpi4py is imported only where there are several.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from pipeline.frames import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    from mpi4py.MPI import Comm

T = TypeVar("T")


class Ranks(ABC):
    """Processes that carry out one task together. All of them must call the same methods in the same order.

    Args:
        rank: which one this is.
        size: how many there are.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files."""
        return self.rank == 0

    @abstractmethod
    def gather(self, value: T) -> list[T]:
        """The values of all ranks in their order, on every rank."""

    @abstractmethod
    def collect(self, value: T) -> list[T]:
        """The values of all ranks in their order, on rank 0; nothing elsewhere. For what is too large for every rank."""

    @abstractmethod
    def broadcast(self, value: T, root: int = 0) -> T:
        """The value of rank ``root``, on every rank."""

    @abstractmethod
    def exchange(self, values: Sequence[T]) -> list[T]:
        """Give ``values[r]`` to rank r; what each rank gave this one, in the order of ranks."""

    def sum(self, values: FloatArray) -> FloatArray:
        """The sum of arrays of one shape, added in the order of ranks: the same bits on every rank."""
        total: FloatArray = np.add.reduce(self.gather(values))
        return total

    def any(self, flags: BoolArray) -> BoolArray:
        """Where at least one rank has True."""
        found: BoolArray = np.logical_or.reduce(self.gather(flags))
        return found

    def mine(self, items: IntArray) -> IntArray:
        """This rank's part of some items: consecutive ones, as many as the others have or one more or less."""
        part: IntArray = np.array_split(items, self.size)[self.rank]
        return part

    def blocks(self, count: int, length: int) -> slice:
        """This rank's part of ``count`` items, whole blocks of ``length``: what is computed in blocks is then the same
        to the last bit, however many ranks there are."""
        blocks = self.mine(np.arange(-(-count // length)))
        return slice(int(blocks[0]) * length, (int(blocks[-1]) + 1) * length) if len(blocks) else slice(0, 0)


class _Alone(Ranks):
    """One process."""

    def gather(self, value: T) -> list[T]:
        return [value]

    def collect(self, value: T) -> list[T]:
        return [value]

    def broadcast(self, value: T, root: int = 0) -> T:
        return value

    def exchange(self, values: Sequence[T]) -> list[T]:
        return list(values)


class MPIRanks(Ranks):
    """The ranks of an MPI communicator; what they tell each other travels as pickles.

    Args:
        communicator: of mpi4py.
    """

    def __init__(self, communicator: Comm) -> None:
        super().__init__(communicator.Get_rank(), communicator.Get_size())
        self._communicator = communicator

    def gather(self, value: T) -> list[T]:
        return list(self._communicator.allgather(value))

    def collect(self, value: T) -> list[T]:
        # one after another: a message may have 2 GB, and so may the sum of all in a collective operation
        if self.rank > 0:
            self._communicator.send(value, 0)
            return []
        return [value, *(self._communicator.recv(source=rank) for rank in range(1, self.size))]

    def broadcast(self, value: T, root: int = 0) -> T:
        got: T = self._communicator.bcast(value, root)
        return got

    def exchange(self, values: Sequence[T]) -> list[T]:
        return list(self._communicator.alltoall(list(values)))


ALONE = _Alone(0, 1)
"""A process that shares its task with no other."""


def device_of(wanted: str, ranks: Ranks) -> str:
    """What this rank computes on where workers compute on ``wanted``: ranks of one node take its GPUs in turn."""
    if ranks.size == 1 or wanted != "cuda":
        return wanted
    hosts = ranks.gather(socket.gethostname())
    return f"cuda:{hosts[: ranks.rank].count(hosts[ranks.rank]) % torch.cuda.device_count()}"


def gpus(device: str, ranks: Ranks) -> list[tuple[str, str] | None]:
    """The GPU of every rank, by its host and serial number; None for ranks that compute on a processor.

    Args:
        device: what this rank computes on.
        ranks: all of which ask.
    """
    own = None
    if device.startswith("cuda"):
        own = (socket.gethostname(), str(torch.cuda.get_device_properties(device).uuid))
    return ranks.gather(own)
