"""What each rank runs: ``mpirun -n RANKS python -m mpi4py -m pipeline.mpi TASK RESULT``.

TASK is the file that :func:`pipeline.together.run_together` wrote. Rank 0 writes RESULT; so does a rank that finds something
wrong, before it ends all of them.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pipeline.errors import PipelineError, SiteError
from pipeline.node import Node
from pipeline.ranks import MPIRanks, Ranks
from pipeline.records import Remark, SelectResult, SelectTask, TrainResult, TrainTask
from pipeline.select import select
from pipeline.together import seal, unseal
from pipeline.train import train


def main(task_file: Path, result_file: Path) -> None:
    """Carry out this rank's part.

    Raises:
        PipelineError: something is wrong; the result file says so too.
    """
    from mpi4py import MPI  # its import starts MPI, which only a rank may do

    ranks = MPIRanks(MPI.COMM_WORLD)
    try:
        task, node = unseal(task_file)
        if ranks.size != task.ranks:
            raise SiteError(
                f"Each of {task.ranks} processes that site.launch.mpi started sees {ranks.size} ranks: mpi4py uses another MPI "
                "than the launcher.",
                "Start them with mpi4py's own MPI, or set MPI4PY_MPIABI or LD_LIBRARY_PATH in site.launch.environment.",
            )
        result = carry_out(task, node, ranks)
    except PipelineError as error:
        seal(result_file, error)
        raise
    if ranks.first:
        seal(result_file, result)


def carry_out(task: TrainTask | SelectTask, node: Node, ranks: Ranks) -> TrainResult | SelectResult:
    """A task on these ranks; the processor time is that of all of them.

    Raises:
        PipelineError: it cannot be done.
    """
    torch.set_num_threads(max(1, task.threads // ranks.size))
    remarks: list[Remark] = []
    if isinstance(task, TrainTask):
        result: TrainResult | SelectResult = train(task, node, ranks, remarks.append)
    else:
        result = select(task, node, ranks, remarks.append)
    cpu_s = float(ranks.sum(np.array(time.process_time())))
    return replace(result, timing=replace(result.timing, cpu_s=cpu_s), remarks=tuple(remarks))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
