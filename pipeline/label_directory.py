"""What a label task keeps in its directory on the campaign's disk, so that any other worker can go on with it.

===============  ==========================================================
``result.json``  the finished label
``tries.json``   the failed tries so far
``try-1``, …     files of the tries
``failure.txt``  the story of a label that failed for good
===============  ==========================================================
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.durable import write_text_durably
from pipeline.frames import FloatArray
from pipeline.records import Cause, LabelResult, LabelTask, Measure, Status, Timing, Try

RESULT = "result.json"
TRIES = "tries.json"
FAILURE = "failure.txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tries:
    """What was done for a label so far.

    Attributes:
        failed: tries, in their order.
        cut_core_s: core seconds of tries that the end of their job cut short, which count as no failure.
        cut: directory of the latest of these, where the next try can go on from it; empty: none.
    """

    failed: tuple[Try, ...] = ()
    cut_core_s: float = 0.0
    cut: str = ""

    @property
    def core_s(self) -> float:
        """Core seconds held by all tries."""
        return self.cut_core_s + sum(one.core_s for one in self.failed)


def write_result(task: LabelTask, result: LabelResult) -> None:
    """Keep a result in the task's directory, whole or not at all. Python's float text is exact."""
    assert result.forces is not None
    payload = {
        "frame": task.frame.identity,
        "reference": result.reference,
        "energy": result.energy,
        "forces": result.forces.tolist(),
        "stress": _listed(result.stress),
        "charges": _listed(result.charges),
        "magnetic_moments": _listed(result.magnetic_moments),
        "program": result.program,
        "tries": [asdict(one) for one in result.tries],
        "measures": list(result.measures),
        "core_s": result.core_s,
        "guess": Path(result.guess).name,
        "timing": [result.timing.started, result.timing.ended, result.timing.cpu_s, result.timing.host],
    }
    _write(task, RESULT, payload)


def read_result(task: LabelTask, reference: str) -> LabelResult | None:
    """The finished result in the task's directory; None where there is none, it is torn, or it answers another question.

    Args:
        task: whose.
        reference: digest of the reference.
    """
    try:
        payload = _read(task, RESULT)
        if payload is None or payload["frame"] != task.frame.identity or payload["reference"] != reference:
            return None
        started, ended, cpu_s, host = payload["timing"]
        return LabelResult(
            task=task.task,
            status=Status.DONE,
            reason="",
            energy=payload["energy"],
            forces=np.array(payload["forces"], dtype=np.float64).reshape(-1, 3),
            stress=_array(payload["stress"]),
            reference=payload["reference"],
            timing=Timing(started=started, ended=ended, cpu_s=cpu_s, host=host),
            charges=_array(payload["charges"]),
            magnetic_moments=_array(payload["magnetic_moments"]),
            program=payload["program"],
            tries=tuple(_try(plain) for plain in payload["tries"]),
            measures=tuple(Measure(name) for name in payload["measures"]),
            core_s=payload["core_s"],
            guess=str(Path(task.scratch) / payload["guess"]) if payload["guess"] else "",
        )
    except (ValueError, KeyError, TypeError):  # of an earlier version: the calculation is made again
        return None


def write_tries(task: LabelTask, reference: str, tries: Tries) -> None:
    """Keep what was done so far."""
    _write(task, TRIES, {"question": _question(task, reference), **asdict(tries)})


def read_tries(task: LabelTask, reference: str) -> Tries:
    """What was done so far for the same structure, with the same settings."""
    try:
        payload = _read(task, TRIES)
        if payload is None or payload["question"] != _question(task, reference):
            return Tries()
        failed = tuple(_try(plain) for plain in payload["failed"])
        return Tries(failed=failed, cut_core_s=float(payload["cut_core_s"]), cut=str(payload["cut"]))
    except (ValueError, KeyError, TypeError):  # of an earlier version
        return Tries()


def new_directory(task: LabelTask, number: int) -> Path:
    """A name for the files of a try: a program that outlived a lost worker may still write into that of its own try."""
    path, again = Path(task.scratch) / f"try-{number}", 0
    while path.exists():
        again += 1
        path = path.with_name(f"try-{number}.{again}")
    return path


def _question(task: LabelTask, reference: str) -> str:
    """Digest of all that decides how a label fares: when a person changes any of it, tries begin anew."""
    settings = [
        task.reference.model_dump(mode="json"),
        task.recovery.model_dump(mode="json"),
        task.launch.model_dump(mode="json"),
    ]
    limits = [task.limits.max_force_eV_per_A, task.limits.max_net_force_eV_per_A]  # the energy window moves by itself
    return _digest([task.frame.identity, reference, limits, *settings])


def _try(plain: dict[str, Any]) -> Try:
    measures = tuple(Measure(name) for name in plain["measures"])
    return Try(**{**plain, "cause": Cause(plain["cause"]), "measures": measures})


def _write(task: LabelTask, name: str, payload: dict[str, Any]) -> None:
    text = json.dumps({"sha256": _digest(payload), "payload": payload})
    write_text_durably(Path(task.scratch) / name, text)


def _read(task: LabelTask, name: str) -> dict[str, Any] | None:
    """What :func:`_write` wrote; None where there is none, or it is torn."""
    path = Path(task.scratch) / name
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        payload: dict[str, Any] = stored["payload"]
        return payload if stored["sha256"] == _digest(payload) else None
    except (ValueError, KeyError, TypeError):
        return None


def _digest(payload: object) -> str:
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()


def _listed(array: FloatArray | None) -> list[float] | None:
    return None if array is None else array.tolist()


def _array(numbers: list[float] | None) -> FloatArray | None:
    return None if numbers is None else np.array(numbers, dtype=np.float64)
