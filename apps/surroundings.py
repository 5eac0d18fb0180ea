"""What a worker finds around itself: asked for by ``farwalk check`` before hours are spent there."""

import dataclasses
import os
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from apps.probe import Place, whereabouts
from apps.worker import device_name, pin_device
from pipeline.errors import SiteError

TOKEN = "token"
"""File in the directory of a check: workers read it, so that a disk of their own under the same path is found out."""
DEVICE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """One worker's answer.

    Attributes:
        place: its farwalk and python.
        torch: version of torch.
        given: variables that said which devices the job has, before the worker pinned itself to one.
        device: the device it pinned itself to; empty for a worker without.
        devices: how many devices torch sees.
        computes: what models compute on there, see :func:`apps.worker.device_name`.
        refusal: why it could not pin itself, and the remedy; empty when it could.
        host, node, job, block: machine, SLURM's names of node and job, Parsl's of the block; empty where there is none.
        cores: CPU cores it may use.
        scratch: directory on the node's own disk; empty where the site names none.
        scratch_problem: why it cannot be written; empty when it can.
        scratch_free: free bytes there.
        directory_problem: why the directory of the check cannot be used from there; empty when it can.
        directory_free: free bytes there.
    """

    place: Place
    torch: str
    given: dict[str, str]
    device: str
    devices: int
    computes: str
    refusal: tuple[str, str]
    host: str
    node: str
    job: str
    block: str
    cores: int
    scratch: str
    scratch_problem: str
    scratch_free: int
    directory_problem: str
    directory_free: int

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> "Surroundings":
        """From what :func:`look_around` returned."""
        return cls(**{**values, "place": Place(**values["place"])})


def look_around(directory: str, token: str) -> dict[str, Any]:
    """What the process that calls it finds, as plain values: they can be read whatever farwalk the worker runs.

    Args:
        directory: of the check, on a disk that driver and workers share.
        token: what its file ``token`` holds.
    """
    given = {name: os.environ[name] for name in DEVICE_VARIABLES if os.environ.get(name)}
    refusal, device = ("", ""), ""
    try:
        device = pin_device()
    except SiteError as error:
        refusal = (error.message, error.remedy)
    scratch = os.environ.get("FARWALK_SCRATCH", "")
    scratch_problem, scratch_free = _writable(Path(scratch)) if scratch else ("", 0)
    directory_problem, directory_free = _shared(Path(directory), token)
    found = Surroundings(
        place=whereabouts(),
        torch=str(torch.__version__),
        given=given,
        device=device,
        devices=torch.cuda.device_count(),
        computes=device_name(),
        refusal=refusal,
        host=socket.gethostname(),
        node=os.environ.get("SLURMD_NODENAME", ""),
        job=os.environ.get("SLURM_JOB_ID", ""),
        block=os.environ.get("PARSL_WORKER_BLOCK_ID", ""),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        scratch=scratch,
        scratch_problem=scratch_problem,
        scratch_free=scratch_free,
        directory_problem=directory_problem,
        directory_free=directory_free,
    )
    return dataclasses.asdict(found)


def _writable(directory: Path) -> tuple[str, int]:
    """Why nothing can be written there, and the free bytes."""
    try:
        with tempfile.NamedTemporaryFile(prefix=".farwalk-", dir=directory) as file:
            file.write(b"farwalk")
        return "", shutil.disk_usage(directory).free
    except OSError as error:
        return error.strerror or str(error), 0


def _shared(directory: Path, token: str) -> tuple[str, int]:
    """Why this is not the directory the driver sees, or cannot be written; and the free bytes."""
    try:
        if (directory / TOKEN).read_text(encoding="utf-8") != token:
            return "another directory than the driver's: each node has its own disk there", 0
    except OSError as error:
        return f"cannot be read: {error.strerror or error}", 0
    return _writable(directory)
