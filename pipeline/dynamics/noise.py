"""Random numbers that are a pure function of who asks for which step: Philox-4x32-10 and Box-Muller in plain tensor operations.

A counter-based generator (Salmon, Moraes, Dror and Shaw 2011, SC '11, "Parallel random numbers: as easy as 1, 2, 3") needs no
state: a checkpoint holds the seed and the age of a walker and nothing else, and a walker draws the same numbers in any batch,
on any device, whatever steps are drawn together.

Shapes: B walkers, A atoms, T steps. 32-bit words are kept in int64.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.frames import IntArray

SeedArray = npt.NDArray[np.uint64]
Words = tuple[Tensor, Tensor, Tensor, Tensor]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 0xFFFFFFFF
_ATOMS, _CELL = 0, 1
"""Streams: last word of the counter."""

BLOCK_STEPS = 32
"""Steps drawn together where the batch is small: the number of operations is what costs then."""
BLOCK_DRAWS = 2**20
"""Atoms times steps drawn together at most: 8 MB for each word."""


def philox(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Four 32-bit words of Philox-4x32-10 for each counter (four words) and key (two words); shapes broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _product(c0, _MULTIPLIERS[0])
        high1, low1 = _product(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def _product(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """High and low word of a product of 32-bit words; by halves of the factor, so that nothing passes 2⁴⁹."""
    low = word * (factor & 0xFFFF)
    upper = (word * (factor >> 16)).add_(low >> 16)
    return upper >> 16, ((upper & 0xFFFF) << 16).bitwise_or_(low & 0xFFFF)


def normals(words: Words) -> Tensor:
    """(…, 3) float64 standard normal numbers of four words each (…): Box and Muller's transform."""
    radius = [torch.sqrt(-2.0 * torch.log((word + 0.5) * 2.0**-32)) for word in (words[0], words[2])]
    angle = [word * (2.0 * math.pi * 2.0**-32) for word in (words[1], words[3])]
    three = (radius[0] * torch.cos(angle[0]), radius[0] * torch.sin(angle[0]), radius[1] * torch.cos(angle[1]))
    return torch.stack(three, dim=-1)


class Noise:
    """Standard normal numbers of the thermostat and barostat of a batch of walkers.

    Args:
        seeds: (B,) of the walkers, 0 <= seed < 2⁶⁴.
        sizes: (B,) int64 atoms of each.
        ages: (B,) int64 steps each has made before the first that is asked for.
        cell: also numbers for the cell.
        device: where they are drawn.
    """

    def __init__(
        self,
        seeds: Sequence[int] | SeedArray,
        sizes: IntArray,
        ages: Tensor,
        *,
        cell: bool,
        device: torch.device | str = "cpu",
    ) -> None:
        walkers = len(sizes)
        who = np.repeat(np.arange(walkers), sizes)
        index = np.arange(len(who)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        stream = np.full(len(who), _ATOMS)
        if cell:
            who = np.concatenate([who, np.repeat(np.arange(walkers), 3)])
            index = np.concatenate([index, np.tile(np.arange(3), walkers)])
            stream = np.concatenate([stream, np.full(3 * walkers, _CELL)])
        keys = np.asarray(seeds, dtype=np.uint64)[who]
        words = (keys & np.uint64(_WORD), keys >> np.uint64(32))
        self._key = [torch.from_numpy(word.astype(np.int64)).to(device) for word in words]
        self._index, self._stream = torch.from_numpy(index).to(device), torch.from_numpy(stream).to(device)
        self._ages = ages.index_select(0, torch.from_numpy(who).to(device))
        self._atoms, self._walkers, self._cell = int(sizes.sum()), walkers, cell
        self._first = self._end = 0
        self._block: Tensor | None = None

    def at(self, step: int) -> tuple[Tensor, Tensor | None]:
        """(A, 3) numbers of the atoms and (B, 3, 3) of the cells for one step.

        Args:
            step: steps made since the ages that the object was made with.
        """
        if self._block is None or not self._first <= step < self._end:
            count = max(1, min(BLOCK_STEPS, BLOCK_DRAWS // max(1, self._atoms)))
            self._block, self._first, self._end = self._draw(step, count), step, step + count
        row = self._block[step - self._first]
        return row[: self._atoms], row[self._atoms :].view(self._walkers, 3, 3) if self._cell else None

    def _draw(self, step: int, count: int) -> Tensor:
        """(T, A + 3 B, 3) numbers of ``count`` steps."""
        ages = self._ages + torch.arange(step, step + count, device=self._ages.device).unsqueeze(1)
        counter = (ages & _WORD, ages >> 32, self._index.expand_as(ages), self._stream.expand_as(ages))
        return normals(philox(counter, (self._key[0], self._key[1])))
