"""A task carried out by several MPI ranks: started from the worker it came to, ended with it, its result read back."""

import hashlib
import importlib.util
import pickle
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pipeline.durable import write_bytes_durably, written_into
from pipeline.errors import PipelineError, SiteError, StoreError, TaskError
from pipeline.node import Node
from pipeline.records import Cause, SelectResult, SelectTask, Stopwatch, TrainResult, TrainTask
from pipeline.references.base import Calculation, CalculationFailed
from pipeline.references.program import run_program

PROGRAM = "pipeline.mpi"
"""The module that each rank runs."""
LONGEST_S = 30 * 86400.0
"""Where nothing is known of the end of the job."""
_OUTPUT = "ranks.out"
_REMEDIES = {
    Cause.OUT_OF_MEMORY: "Give the jobs of training and selection more memory, or lower site.train_ranks.",
    Cause.TIME_LIMIT: "The job of the worker ended: raise the walltime of its jobs.",
}
R = TypeVar("R", TrainResult, SelectResult)


def run_together(task: TrainTask | SelectTask, result: type[R], node: Node) -> R:
    """Have ``task.ranks`` ranks carry out a task; none of them is left, whatever happens.

    Args:
        task: what to do.
        result: what it answers with.
        node: this machine.

    Raises:
        SiteError: they do not start.
        TaskError: one of them died.
        PipelineError: what a rank says is wrong.
    """
    if importlib.util.find_spec("mpi4py") is None:
        raise SiteError(
            "site.train_ranks needs mpi4py, which the workers do not have.",
            "Run pip install 'farwalk[mpi]' in their environment, or set site.train_ranks to 1.",
        )
    watch = Stopwatch()
    place = Path(task.output).parent if isinstance(task, TrainTask) else Path(task.output)
    with written_into(place):
        # its own for each try: the ranks of a worker that was lost may still be ending
        directory = Path(tempfile.mkdtemp(prefix="ranks-", dir=place))
        seal(directory / "task", (task, node))
    reason = _started(task, node, directory)
    answer = unseal(directory / "result") if (directory / "result").is_file() else None
    if isinstance(answer, PipelineError):
        raise answer
    if not isinstance(answer, result):
        raise reason or TaskError(
            f"One of {task.ranks} ranks died: {_last_words(directory / _OUTPUT)}", f"See {directory}."
        )
    shutil.rmtree(directory)
    return replace(answer, timing=replace(watch.stop(), cpu_s=answer.timing.cpu_s))


def _started(task: TrainTask | SelectTask, node: Node, directory: Path) -> PipelineError | None:
    """Run the ranks to their end; what kept them from starting or ended them."""
    calculation = Calculation(
        directory=directory,
        launch=task.launch.model_copy(update={"container": "", "nodes": 1}),  # these are of the references
        ranks=task.ranks,
        threads=max(1, task.threads // task.ranks),
        time_s=LONGEST_S if node.ends is None else max(1.0, node.ends - time.time()),
    )
    # -m mpi4py: an exception on one rank ends all of them
    command = ["-P", "-m", "mpi4py", "-m", PROGRAM, str(directory / "task"), str(directory / "result")]
    try:
        run_program(sys.executable, command, calculation, output=_OUTPUT)
    except CalculationFailed as error:
        reason = f"{task.ranks} ranks of {task.task}: {error.reason}"
        return SiteError(reason, _REMEDIES.get(error.cause, error.remedy))
    return None


def seal(path: Path, value: Any) -> None:  # noqa: ANN401 # whatever can be pickled
    """Write a value to a file that only farwalk reads, together with the digest of its bytes."""
    data = pickle.dumps(value)
    write_bytes_durably(path, hashlib.sha256(data).hexdigest().encode() + b"\n" + data)


def unseal(path: Path) -> Any:  # noqa: ANN401 # what was written
    """What :func:`seal` wrote.

    Raises:
        StoreError: the file is damaged.
    """
    digest, _, data = path.read_bytes().partition(b"\n")
    if hashlib.sha256(data).hexdigest().encode() != digest:
        raise StoreError(f"{path}: damaged: its content does not fit its digest.", "Look after the disk.")
    return pickle.loads(data)


def _last_words(output: Path) -> str:
    """The last line with something in it of what ranks and launcher wrote, other than ruling."""
    lines = [line.strip() for line in output.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line.strip("-=* ")), "they said nothing.")[:300]
