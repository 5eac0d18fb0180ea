"""How CP2K prints numbers and tables, and how they are read: each line as a whole, or not at all."""

import re

import numpy as np

from pipeline.frames import FloatArray
from pipeline.records import Cause
from pipeline.references.base import CalculationFailed
from pipeline.references.cp2k_geometry import Geometry

NUMBER = r"[-+]?\d*\.\d+(?:[ED]?[-+]\d+)?"


def bad_output(problem: str) -> CalculationFailed:
    """The refusal of an output."""
    return CalculationFailed(Cause.BAD_OUTPUT, f"The output of CP2K gives no label: {problem}.")


def only(found: list[str], what: str) -> str:
    """The one text that was found.

    Raises:
        CalculationFailed: BAD_OUTPUT: there are none or several.
    """
    if len(found) != 1:
        raise bad_output(f"{what}: found {len(found)} times")
    return found[0]


def only_match(pattern: re.Pattern[str], text: str, what: str) -> re.Match[str]:
    """The one place that matches.

    Raises:
        CalculationFailed: BAD_OUTPUT: there are none or several.
    """
    matches = list(pattern.finditer(text))
    if len(matches) != 1:
        raise bad_output(f"{what}: found {len(matches)} times")
    return matches[0]


def real(text: str) -> float:
    """A number; Fortran leaves out the letter before an exponent of three digits."""
    return float(re.sub(r"(?<=\d)[ED]?([-+]\d+)$", r"E\1", text))


def reals(text: str) -> FloatArray:
    """Numbers between blanks."""
    return np.array([real(word) for word in text.split()])


def read_rows(table: str, pattern: re.Pattern[str], geometry: Geometry, what: str) -> tuple[list[str], FloatArray]:
    """A table with one row per atom: number, symbol, reals.

    Args:
        table: its rows.
        pattern: of one row; its groups are the number, the symbol (or nothing), and the reals.
        geometry: how many atoms there are.
        what: the table holds, for the message.

    Returns:
        (N) symbols and (N, reals per row) numbers.

    Raises:
        CalculationFailed: BAD_OUTPUT: another number of rows, or a row that cannot be read.
    """
    rows = table.splitlines()
    if len(rows) != len(geometry.symbols):
        raise bad_output(f"it has {what} of {len(rows)} atoms instead of {len(geometry.symbols)}")
    symbols, numbers = [], []
    for number, row in enumerate(rows, start=1):
        match = pattern.fullmatch(row)
        if match is None or match[1] != str(number):
            raise bad_output(f"row {number} of its {what} cannot be read: {row.strip()!r}")
        symbols.append(match[2])
        numbers.append([real(text) for text in match.groups()[2:]])
    return symbols, np.array(numbers)


def require_same_structure(
    symbols: list[str], positions: FloatArray, geometry: Geometry, *, tolerance_A: float
) -> None:
    """Elements and positions as they were asked for; a molecule may have been moved as a whole.

    Raises:
        CalculationFailed: BAD_OUTPUT: they are others.
    """
    if tuple(symbols) != geometry.symbols:
        raise bad_output("it is of other elements than were asked for")
    shift = positions[0] - geometry.positions[0] if geometry.periodic == "NONE" else np.zeros(3)
    if np.abs(positions - shift - geometry.positions).max() > tolerance_A:
        raise bad_output("it is of other positions than were asked for")
