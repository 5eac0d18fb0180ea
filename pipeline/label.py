"""The label task: one structure, one reference calculation, one directory."""

import hashlib
import json
import logging
import socket
import tempfile
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.durable import FREE_SPACE, NO_ROOM, not_written, write_text_durably, written_into
from pipeline.errors import PipelineError
from pipeline.records import LabelResult, LabelTask, Remark, Status, Stopwatch, Timing
from pipeline.references import Calculation, Properties, ready_reference

logger = logging.getLogger(__name__)

RESULT = "result.json"
FAILURE = "failure.txt"
NET_FORCE_EV_PER_A = 0.01
"""Above this the forces do not sum to zero: a sign of a loose reference (or of an external field)."""


def run_label(task: LabelTask) -> LabelResult:
    """Label one structure, or hand back what its directory already holds.

    A failure is a result with a reason; the directory then keeps the whole story in ``failure.txt``. A finished calculation
    that the directory does not take is handed back all the same, with a remark.

    Raises:
        DiskFullError: the reference cannot run for want of space: no fault of the structure.
    """
    directory = Path(task.scratch)
    if (finished := read_result(task)) is not None:
        return finished
    with written_into(directory):
        # a program that outlived a lost worker may still write into the directory of its own try
        working = Path(tempfile.mkdtemp(prefix="try-", dir=directory))
    watch = Stopwatch()
    try:
        labeler, digest = ready_reference(task.reference)
        # bad structures give 0/0 inside calculators: the check below says so in words
        with np.errstate(all="ignore"):
            properties = labeler.label(task.frame, Calculation(directory=working))
    except Exception as error:  # noqa: BLE001  # the task boundary: a reference may raise anything
        _refuse_full_disk(error, directory)
        return _failed(task, watch.stop(), _reason(error), traceback.format_exc())
    if problem := check_label(properties, len(task.frame), task.limits.max_force_eV_per_A):
        return _failed(task, watch.stop(), problem, _story(properties))
    result = LabelResult(
        task=task.task,
        status=Status.DONE,
        reason="",
        energy=properties.energy,
        forces=properties.forces,
        stress=properties.stress,
        reference=digest,
        timing=watch.stop(),
    )
    try:
        write_result(task, result)
    except OSError as error:  # the calculation is dearer than its copy on this disk
        return replace(result, remarks=(_not_kept(directory, error),))
    return result


def check_label(properties: Properties, n_atoms: int, max_force_eV_per_A: float) -> str:
    """What is wrong with a label; empty when nothing is.

    A net force is only logged: some references have an external field.
    """
    forces = properties.forces
    if forces.shape != (n_atoms, 3):
        return f"the reference gave forces of shape {forces.shape} for {n_atoms} atoms"
    numbers = [np.array([properties.energy]), forces.ravel()]
    if properties.stress is not None:
        numbers.append(properties.stress)
    if not np.isfinite(np.concatenate(numbers)).all():
        return "the reference gave NaN or infinity"
    largest = float(np.linalg.norm(forces, axis=1).max())
    if largest > max_force_eV_per_A:
        return f"a force of {largest:.1f} eV/Å exceeds labels.max_force_eV_per_A ({max_force_eV_per_A:g})"
    net = float(np.linalg.norm(forces.sum(axis=0)))
    if net > NET_FORCE_EV_PER_A:
        logger.warning("the reference's forces sum to %.3g eV/Å instead of 0", net)
    return ""


def write_result(task: LabelTask, result: LabelResult) -> None:
    """Keep a result in the task's directory, whole or not at all. Python's float text is exact."""
    assert result.forces is not None
    payload = {
        "frame": task.frame.identity,
        "reference": result.reference,
        "energy": result.energy,
        "forces": result.forces.tolist(),
        "stress": None if result.stress is None else result.stress.tolist(),
        "timing": [result.timing.started, result.timing.ended, result.timing.cpu_s, result.timing.host],
    }
    text = json.dumps({"sha256": _digest(payload), "payload": payload})
    write_text_durably(Path(task.scratch) / RESULT, text)


def read_result(task: LabelTask) -> LabelResult | None:
    """The finished result in the task's directory; None where there is none, it is torn, or it answers another question."""
    path = Path(task.scratch) / RESULT
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        payload = stored["payload"]
        if stored["sha256"] != _digest(payload) or payload["frame"] != task.frame.identity:
            return None
    except (ValueError, KeyError, TypeError):  # torn or foreign: the calculation is made again
        return None
    if payload["reference"] != ready_reference(task.reference)[1]:
        return None
    started, ended, cpu_s, host = payload["timing"]
    return LabelResult(
        task=task.task,
        status=Status.DONE,
        reason="",
        energy=payload["energy"],
        forces=np.array(payload["forces"], dtype=np.float64).reshape(-1, 3),
        stress=None if payload["stress"] is None else np.array(payload["stress"], dtype=np.float64),
        reference=payload["reference"],
        timing=Timing(started=started, ended=ended, cpu_s=cpu_s, host=host),
    )


def _digest(payload: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, PipelineError) else f"the reference raised {type(error).__name__}: {error}"


def _story(properties: Properties) -> str:
    return f"energy {properties.energy} eV\nforces eV/Å\n{properties.forces}\nstress eV/Å³\n{properties.stress}\n"


def _refuse_full_disk(error: BaseException, directory: Path) -> None:
    """Raise when a reference failed because the disk takes no more: other structures would fail as well.

    Raises:
        DiskFullError: so it was.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in NO_ROOM:
            raise not_written(directory, cause) from error
        cause = cause.__cause__ or cause.__context__


def _not_kept(directory: Path, error: OSError) -> Remark:
    where = f"{socket.gethostname()}: {directory.parent}"
    text = f"{where}: finished labels cannot be kept there until they are recorded: {error.strerror or error}"
    logger.warning("%s", text)
    return Remark(text=text, remedy=FREE_SPACE)


def _failed(task: LabelTask, timing: Timing, reason: str, story: str) -> LabelResult:
    try:
        write_text_durably(Path(task.scratch) / FAILURE, f"task {task.task}\n{reason}\n\n{story}")
    except OSError as error:  # a reference that starts a program says that its disk is full in many ways
        _refuse_full_disk(error, Path(task.scratch))
        raise
    return LabelResult(
        task=task.task,
        status=Status.FAILED,
        reason=f"{reason} (see {Path(task.scratch) / FAILURE})",
        energy=None,
        forces=None,
        stress=None,
        reference="",
        timing=timing,
    )
