"""Items in an order, shared by ranks: which of them are here, and what all ranks must know of one."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.frames import IntArray
from pipeline.ranks import ALONE, Ranks

BLOCK = 64
"""Items that are dealt out together: what is computed block by block is the same however many ranks there are."""


@dataclass(frozen=True, slots=True)
class Best:
    """The item of largest value, that value, and the rank that holds it."""

    item: int
    value: float
    owner: int


class Spread:
    """Some of ``count`` items on each rank.

    Args:
        ranks: who shares them.
        items: (n,) numbers of those on this rank, ascending.
        count: of all ranks together.
    """

    def __init__(self, ranks: Ranks, items: IntArray, count: int) -> None:
        self.ranks, self.items, self.count = ranks, items, count

    @classmethod
    def alone(cls, count: int) -> "Spread":
        """All in one process."""
        return cls(ALONE, np.arange(count), count)

    @classmethod
    def dealt(cls, ranks: Ranks, count: int) -> "Spread":
        """Blocks dealt out in turn: early and late items, which may cost differently, everywhere."""
        items = np.arange(count)
        return cls(ranks, items[owner_of(items, ranks) == ranks.rank], count)

    def kept(self, keep: IntArray) -> "Spread":
        """The items that stay, numbered anew in the same order.

        Args:
            keep: (k,) where they stand among those of this rank.
        """
        whole = np.sort(np.concatenate(self.ranks.gather(self.items[keep])))
        return Spread(self.ranks, np.searchsorted(whole, self.items[keep]), len(whole))

    def place(self, item: int) -> int | None:
        """Where an item stands among those of this rank; None: it is elsewhere."""
        at = int(np.searchsorted(self.items, item))
        return at if at < len(self.items) and self.items[at] == item else None

    def best(self, values: Tensor) -> Best:
        """The item of largest value; on ties the lower one. There must be an item.

        Args:
            values: (n,) of the items of this rank.
        """
        if len(values) == 0:
            return self.best_of(-np.inf, 0)
        value, at = torch.max(values, dim=0)
        return self.best_of(float(value), int(at))

    def best_of(self, value: float, place: int) -> Best:
        """The same, where each rank knows the place and the value of the best of its own items.

        Args:
            value: the largest of this rank; −inf without items.
            place: where the first item of that value stands.
        """
        own = (value, -int(self.items[place]) if len(self.items) else -self.count, self.ranks.rank)
        most, item, owner = max(self.ranks.gather(own))
        return Best(-item, most, owner)

    def owner(self, item: int) -> int:
        """The rank that holds an item."""
        return next(rank for rank, here in enumerate(self.ranks.gather(self.place(item) is not None)) if here)


def owner_of(items: IntArray, ranks: Ranks) -> IntArray:
    """Which rank each item is dealt to."""
    owners: IntArray = items // BLOCK % ranks.size
    return owners
