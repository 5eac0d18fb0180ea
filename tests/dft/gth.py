"""GTH pseudopotentials of CP2K as text that pw.x reads, so that both codes compute with the very same ones.

CP2K lists, for an element: electrons per shell; the local part (radius, how many coefficients, these); the number of angular
momenta; and for each of them a radius, how many projectors and the upper triangle of their matrix. pw.x reads the same numbers
in ABINIT's layout (pspcod 10, a file named ``*.gth``), which has another head, and rows of spin-orbit coefficients (zeros
here) after every angular momentum but the first.
"""

from collections.abc import Iterator
from pathlib import Path

from ase.data import atomic_numbers

DATA = Path("/usr/share/cp2k/GTH_POTENTIALS")
PBE_OF_ABINIT = 11
"""ABINIT's number of the functional."""


def write_gth(element: str, name: str, directory: Path) -> Path:
    """Write ``El.gth`` for pw.x; ``name`` as in CP2K, e.g. ``GTH-PBE-q4``."""
    numbers = _entry(element, name)
    electrons = next(numbers)
    radius, *coefficients = next(numbers)
    local = [radius, *coefficients]
    channels = [_channel(numbers) for _ in range(int(next(numbers)[0]))]
    # pw.x wants one angular momentum at least
    channels = channels or [(0.2, [])]
    lines = [
        f"{element} {name}",
        f"{atomic_numbers[element]} {sum(map(int, electrons))} 0",
        f"10 {PBE_OF_ABINIT} {len(channels) - 1} {len(channels)} 2001 0",
        _row([local[0], int(local[1]), *local[2:]]),
        str(len(channels)),
    ]
    for momentum, (radius, triangle) in enumerate(channels):
        lines.append(_row([radius, len(triangle), *(triangle[0] if triangle else [])]))
        lines += [_row(row) for row in triangle[1:]]
        if momentum:
            lines += [_row([0.0] * len(row)) for row in triangle]
    path = directory / f"{element}.gth"
    path.write_text("\n".join(lines) + "\n")
    return path


def _entry(element: str, name: str) -> Iterator[list[float]]:
    """The lines of numbers of one pseudopotential."""
    rows = [line.split() for line in DATA.read_text().splitlines() if line.strip() and not line.startswith("#")]
    start = next(index for index, row in enumerate(rows) if row[0] == element and name in row[1:])
    for row in rows[start + 1 :]:
        if row[0][0].isalpha():
            return
        yield [float(number) for number in row]


def _channel(numbers: Iterator[list[float]]) -> tuple[float, list[list[float]]]:
    """Radius of one angular momentum, and the upper triangle of its matrix."""
    radius, count, *first = next(numbers)
    return radius, [first, *(next(numbers) for _ in range(int(count) - 1))] if count else []


def _row(numbers: list[float]) -> str:
    return " ".join(repr(number) for number in numbers)
