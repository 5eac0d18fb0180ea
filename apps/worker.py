"""The worker's side of a task: which farwalk, which GPU, which node; then the task itself.

The job script says in the environment what a worker must know:

=========================  ======================================================================================
``FARWALK_DRIVER``         the driver's farwalk, an :class:`apps.probe.Place` as JSON
``FARWALK_GPUS_PER_NODE``  GPUs that the workers of one node share; 0 for workers without
``FARWALK_SCRATCH``        directory on the node's own disk
``FARWALK_JOB_ENDS``       when the job ends at the latest, seconds since the epoch
=========================  ======================================================================================
"""

import dataclasses
import functools
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path

import torch

from apps.probe import SAME_FARWALK, Place, mismatch, whereabouts
from pipeline.errors import SiteError
from pipeline.inline import run_task
from pipeline.node import Node
from pipeline.records import Result, Task
from site_configs.workers import GPUS_VARIABLE

DRIVER_VARIABLE = "FARWALK_DRIVER"
NVIDIA, AMD = ("CUDA_VISIBLE_DEVICES",), ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
"""Variables that say which devices a process may use, the one nearest to the hardware first."""
_NONE = frozenset({"NoDevFiles", "-1"})
"""What SLURM and CUDA call no device."""


def carry_out(task: Task, *, parsl_resource_specification: Mapping[str, int] | None = None) -> Result:
    """Carry out any task in this worker.

    Args:
        task: what to do.
        parsl_resource_specification: of the executor, its priority; Parsl hands it on to every function.

    Raises:
        SiteError: this worker is of another farwalk than the driver, or its GPUs do not fit.
    """
    check_code()
    result = run_task(task, this_node())
    here = f"{socket.gethostname()}:{os.getpid()}"
    if result.timing.host != here:  # a label that another worker finished
        return result
    return dataclasses.replace(result, timing=dataclasses.replace(result.timing, host=_address(here)))


def _address(here: str) -> str:
    """Name of the node as SLURM knows it, process, and the job."""
    node, job = os.environ.get("SLURMD_NODENAME"), os.environ.get("SLURM_JOB_ID")
    return f"{node}:{os.getpid()} job {job}" if node and job else here


def this_node() -> Node:
    """This machine, after this process took its GPU where it has one.

    Raises:
        SiteError: the devices of the node do not fit its workers.
    """
    pin_device()
    return dataclasses.replace(find_node(os.environ), device=compute_device())


def compute_device() -> str:
    """What models compute on in this process: ``cuda`` where torch finds a GPU, which may be AMD's, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name() -> str:
    """The same with the name of the GPU, for people."""
    device = compute_device()
    return f"{device} ({torch.cuda.get_device_name()})" if device == "cuda" else device


def find_node(environment: Mapping[str, str]) -> Node:
    """What the environment says of this machine."""
    scratch, ends = environment.get("FARWALK_SCRATCH"), environment.get("FARWALK_JOB_ENDS")
    node = Node(name=environment.get("SLURMD_NODENAME", ""), ends=float(ends) if ends else None)
    if not scratch:
        return node
    # the directory is shared with other users of the node: these two are this user's alone
    cache, tries = (Path(scratch) / f"farwalk-{name}-{os.getuid()}" for name in ("cache", "tries"))
    return dataclasses.replace(node, cache=cache, scratch=tries)


def driver_code() -> str:
    """What the driver tells its workers about its farwalk, see :func:`check_code`."""
    return json.dumps(dataclasses.asdict(whereabouts()))


@functools.cache
def check_code() -> None:
    """Refuse to work for a driver of another farwalk, see :func:`apps.probe.mismatch`.

    Raises:
        SiteError: the driver's farwalk is another one.
    """
    told = os.environ.get(DRIVER_VARIABLE)
    if told is None:
        return
    if problem := mismatch(whereabouts(), Place(**json.loads(told))):
        raise SiteError(f"the worker on {socket.gethostname()} runs {problem}.", SAME_FARWALK)


@functools.cache
def pin_device() -> str:
    """Make exactly one GPU visible to this process, before anything uses one; again is the same.

    Returns:
        The device as the machine names it; empty for a worker without.

    Raises:
        SiteError: the devices of the node do not fit its workers.
    """
    changes, device = chosen_device(os.environ, amd=torch.version.hip is not None)
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    return device


def chosen_device(environment: Mapping[str, str], *, amd: bool) -> tuple[dict[str, str | None], str]:
    """Which device a worker takes, and what that changes in its environment.

    SLURM says what a job may use; the workers of a node share these evenly, neighbours first. On AMD the variables index one
    into another (ROCR, then HIP or CUDA), so only the first may be set.

    Args:
        environment: of the worker.
        amd: torch uses AMD devices.

    Returns:
        Variables to set (None: to remove), and the device.

    Raises:
        SiteError: the job has other devices than the site says, or the workers are not a multiple of them.
    """
    gpus = int(environment.get(GPUS_VARIABLE, "0"))
    if not gpus:
        return {}, ""
    names = AMD if amd else NVIDIA
    given = next((name for name in names if environment.get(name)), None)
    name = given or names[0]
    devices = environment[given].split(",") if given else [str(index) for index in range(gpus)]
    rank, workers = int(environment.get("PARSL_WORKER_RANK", "0")), int(environment.get("PARSL_WORKER_COUNT", "1"))
    node = environment.get("SLURMD_NODENAME") or socket.gethostname()
    if len(devices) != gpus or _NONE.intersection(devices):
        raise SiteError(
            f"workers on {node} see {name}={','.join(devices)}, but the site says {gpus} GPUs per node.",
            "Each worker needs exactly one: let gpus_per_node, gres and scheduler_options of the site ask for the same number.",
        )
    if workers % gpus:
        raise SiteError(
            f"{workers} workers on {node} cannot share {gpus} GPUs evenly.",
            "Let the number of workers be a multiple of the GPUs.",
        )
    device = devices[rank * len(devices) // workers]
    return {**{other: None for other in names if other != name}, name: device}, device
