"""A sequence that grows at its end and never changes: a longer one shares the storage of the shorter."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar, overload

T = TypeVar("T")


class Rows(Sequence[T]):
    """Like a tuple, but ``plus`` takes constant time on average instead of a copy of everything.

    Args:
        items: what it holds, in order.
    """

    __slots__ = ("_count", "_items")

    def __init__(self, items: Iterable[T] = ()) -> None:
        self._items = list(items)
        self._count = len(self._items)

    def plus(self, item: T) -> "Rows[T]":
        """These rows and one more. Whoever grows the same rows a second time pays for a copy."""
        longer: Rows[T] = Rows()
        longer._items = self._items if len(self._items) == self._count else self._items[: self._count]
        longer._items.append(item)
        longer._count = self._count + 1
        return longer

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        if isinstance(index, slice):
            return tuple(self._items[k] for k in range(self._count)[index])
        return self._items[range(self._count)[index]]

    def __iter__(self) -> Iterator[T]:
        for index in range(self._count):
            yield self._items[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rows) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # compared by content, like a list

    def __repr__(self) -> str:
        return f"Rows({list(self)!r})"
