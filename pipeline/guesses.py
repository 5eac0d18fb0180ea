"""Restart files of labels, from which the reference may start with a structure that is nearly the same.

``guesses/<identity>/`` holds them, ``guesses/<identity>.json`` the frame they belong to. They save time and decide nothing:
what is missing or damaged here is left out.
"""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.geometry import find_mic

from pipeline.durable import write_text_durably
from pipeline.frames import Frame

logger = logging.getLogger(__name__)

KEPT = 64
"""So many of the newest stay, of each system."""
SAME_CELL = 0.05
"""Cells that differ by more than this share are too different for one to help the other."""


@dataclass(frozen=True, slots=True)
class _Guess:
    directory: Path
    frame: Frame
    age: float


class Guesses:
    """The restart files of a campaign.

    Args:
        root: their directory; it need not exist.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[str, list[_Guess]] = {}
        if root.is_dir():
            self._read()

    def keep(self, frame: Frame, files: Path, scratch: Path, time: float) -> None:
        """Take over the restart files of a label; does nothing where they are not to be had.

        Args:
            frame: what was labelled.
            files: directory with them, on the disk of the campaign.
            scratch: the directory of the task, which holds them.
            time: seconds since the epoch.
        """
        directory = self._root / frame.identity
        if scratch.resolve() not in files.resolve().parents or not files.is_dir():
            return
        try:
            self._root.mkdir(exist_ok=True)
            self._remove(directory)
            files.rename(directory)
            write_text_durably(_beside(directory), _text(frame, time))
        except OSError as error:
            logger.warning("%s: restart files are not kept: %s", directory, error.strerror or error)
            return
        several = self._known.setdefault(frame.system, [])
        several[:] = [*(guess for guess in several if guess.directory != directory), _Guess(directory, frame, time)]
        self._prune(several)

    def nearest(self, frame: Frame) -> str:
        """Directory with the restart files of the nearest structure of the same system; empty where there is none."""
        found = [(distance_A(guess.frame, frame), guess) for guess in self._known.get(frame.system, ())]
        near = [(distance, guess) for distance, guess in found if distance is not None and guess.directory.is_dir()]
        if not near:
            return ""
        return str(min(near, key=lambda pair: (pair[0], -pair[1].age))[1].directory)

    def _read(self) -> None:
        for path in sorted(self._root.glob("*.json")):
            try:
                guess = _Guess(path.with_suffix(""), *_frame_of(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, KeyError, TypeError) as error:
                logger.warning("%s: left out: %s", path, error)
                continue
            self._known.setdefault(guess.frame.system, []).append(guess)
        for several in self._known.values():
            several.sort(key=lambda guess: guess.age)
        named = {guess.directory for several in self._known.values() for guess in several}
        for path in self._root.iterdir():  # a killed driver may have moved files and not named their frame
            if path.is_dir() and path not in named:
                self._remove(path)

    def _prune(self, several: list[_Guess]) -> None:
        for guess in several[:-KEPT]:
            self._remove(guess.directory)
        del several[:-KEPT]

    def _remove(self, directory: Path) -> None:
        _beside(directory).unlink(missing_ok=True)
        if directory.is_dir() and not directory.is_symlink():
            shutil.rmtree(directory, ignore_errors=True)


def distance_A(one: Frame, other: Frame) -> float | None:
    """Root mean square displacement between two structures, nearest images, Å; None where they are not comparable.

    They are where they have the same atoms in the same order, the same periodicity and nearly the same cell.
    """
    if not (np.array_equal(one.numbers, other.numbers) and np.array_equal(one.pbc, other.pbc)):
        return None
    if np.linalg.norm(one.cell - other.cell) > SAME_CELL * np.linalg.norm(other.cell):
        return None
    moves, _ = find_mic(one.positions - other.positions, other.cell, other.pbc)
    return float(np.sqrt(np.square(moves).sum(axis=1).mean()))


def _beside(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.json")


def _text(frame: Frame, time: float) -> str:
    plain = {name: getattr(frame, name).tolist() for name in ("numbers", "positions", "cell", "pbc")}
    return json.dumps({"time": time, "system": frame.system, **plain})


def _frame_of(text: str) -> tuple[Frame, float]:
    plain = json.loads(text)
    frame = Frame(
        numbers=np.array(plain["numbers"], dtype=np.int64),
        positions=np.array(plain["positions"], dtype=np.float64).reshape(-1, 3),
        cell=np.array(plain["cell"], dtype=np.float64).reshape(3, 3),
        pbc=np.array(plain["pbc"], dtype=np.bool_),
        system=plain["system"],
    )
    if len(frame.positions) != len(frame.numbers):
        raise ValueError("numbers and positions differ in length")
    return frame, float(plain["time"])
