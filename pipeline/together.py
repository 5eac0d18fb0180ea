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
from pipeline.records import Cause, Remark, SelectResult, SelectTask, Stopwatch, TrainResult, TrainTask
from pipeline.references.base import Calculation, CalculationFailed
from pipeline.references.program import Ended, killing_signal, run_program

PROGRAM = "pipeline.mpi"
"""The module that each rank runs."""
LONGEST_S = 30 * 86400.0
"""Where nothing is known of the end of the job."""
TRIES = 2
"""A rank may be killed by what has nothing to do with it."""
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
        TaskError: one of them died; where a signal killed it, the second time.
        PipelineError: what a rank says is wrong.
    """
    if importlib.util.find_spec("mpi4py") is None:
        raise SiteError(
            "site.train_ranks needs mpi4py, which the workers do not have.",
            "Run pip install 'farwalk[mpi]' in their environment, or set site.train_ranks to 1.",
        )
    watch = Stopwatch()
    place = Path(task.output).parent if isinstance(task, TrainTask) else Path(task.output)
    remarks: list[Remark] = []
    for _ in range(TRIES):
        with written_into(place):
            # its own for each try: the ranks of a worker that was lost may still be ending
            directory = Path(tempfile.mkdtemp(prefix="ranks-", dir=place))
            seal(directory / "task", (task, node))
        ended = _ended(task, node, directory)
        answer: Any = unseal(directory / "result") if (directory / "result").is_file() else ended
        if isinstance(answer, result):
            shutil.rmtree(directory)
            timing = replace(watch.stop(), cpu_s=answer.timing.cpu_s)
            return replace(answer, timing=timing, remarks=(*remarks, *answer.remarks))
        if isinstance(answer, PipelineError):
            raise answer
        assert isinstance(ended, Ended)
        words = f"One of {task.ranks} ranks of {task.task} died: {_last_words(ended.output)}"
        remarks.append(Remark(text=words, remedy=f"See {directory}."))
        if not killing_signal(ended):  # it found an error of its own, and would again
            break
    raise TaskError(remarks[-1].text, remarks[-1].remedy)


def _ended(task: TrainTask | SelectTask, node: Node, directory: Path) -> Ended | PipelineError:
    """Run the ranks to their end; how they ended, or what kept them from it."""
    calculation = Calculation(
        directory=directory,
        launch=task.launch.model_copy(update={"container": "", "nodes": 1}),  # these are of the references
        host=node.name,
        ranks=task.ranks,
        threads=max(1, task.threads // task.ranks),
        time_s=LONGEST_S if node.ends is None else max(1.0, node.ends - time.time()),
    )
    # -m mpi4py: an exception on one rank ends all of them
    command = ["-P", "-m", "mpi4py", "-m", PROGRAM, str(directory / "task"), str(directory / "result")]
    try:
        return run_program(sys.executable, command, calculation, output="ranks.out")
    except CalculationFailed as error:
        reason = f"{task.ranks} ranks of {task.task}: {error.reason}"
        return SiteError(reason, _REMEDIES.get(error.cause, error.remedy))


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


def _last_words(output: str) -> str:
    """The last line with something in it of what ranks and launcher wrote, other than ruling."""
    lines = (line.strip() for line in reversed(output.splitlines()))
    return next((line for line in lines if line.strip("-=* ")), "they said nothing.")[:300]
