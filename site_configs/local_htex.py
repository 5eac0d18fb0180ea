"""Worker processes on this machine: the workstation and laptop site."""

import functools
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD
from parsl.jobs.error_handlers import windowed_error_handler
from parsl.providers import LocalProvider

from pipeline.settings.site import LocalHTEXSite

LOOPBACK = "127.0.0.1"
HEARTBEAT_S = 5
LOST_AFTER_S = 30
"""A manager unheard of for so long is lost; a manager whose driver was killed ends after so long."""


def make_config(run_dir: Path, site: LocalHTEXSite, retry_handler: Callable[[Exception, Any], float]) -> Config:
    """A fresh configuration: one executor per kind of task, one worker per slot.

    Args:
        run_dir: for the logs of managers and workers.
        site: slots, threads and GPUs.
        retry_handler: what a failure costs of the two retries.
    """
    gpus = site.gpus
    return Config(
        executors=[
            _executor("walk", slots=site.walk_slots, threads=site.walk_threads, gpus=gpus),
            _executor("label", slots=site.label_slots, threads=site.label_threads),
            _executor("select", slots=1, threads=site.train_threads),
            _executor("train", slots=1, threads=site.train_threads, gpus=min(gpus, 1)),
        ],
        run_dir=str(run_dir),
        retries=2,
        retry_handler=retry_handler,
        strategy="simple",  # "none" would never replace a lost block, and its tasks would wait for ever
        strategy_period=1,
        initialize_logging=False,  # the driver's own log has what matters; parsl.log grows by megabytes
        usage_tracking=0,
    )


def _executor(label: str, *, slots: int, threads: int, gpus: int = 0) -> HighThroughputExecutor:
    return HighThroughputExecutor(
        label=label,
        address=LOOPBACK,  # nothing on this machine needs to be reached from outside
        loopback_address=LOOPBACK,
        encrypted=True,
        max_workers_per_node=slots,
        cores_per_worker=1e-6,  # slots alone decide; the default would refuse more slots than cores
        cpu_affinity="none",
        available_accelerators=gpus,
        heartbeat_period=HEARTBEAT_S,
        heartbeat_threshold=LOST_AFTER_S,
        block_error_handler=functools.partial(windowed_error_handler, threshold=3),
        launch_cmd=_worker_command(),
        interchange_launch_cmd=_interchange_command(),
        provider=LocalProvider(
            init_blocks=1, min_blocks=1, max_blocks=1, worker_init="\n".join(_environment(threads, gpus))
        ),
    )


def _environment(threads: int, gpus: int) -> list[str]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENMM_CPU_THREADS")
    # waiting threads must sleep: spinning ones made a step 30 times slower where cores are shared
    lines = ["export OMP_WAIT_POLICY=passive", *(f"export {name}={threads}" for name in names)]
    return lines if gpus else [*lines, "export CUDA_VISIBLE_DEVICES="]


def _worker_command() -> str:
    """The worker pool with the running interpreter, wherever PATH points; -P keeps the working directory out of sys.path."""
    python = f"{sys.executable} -P -m parsl.executors.high_throughput.process_worker_pool"
    return str(DEFAULT_LAUNCH_CMD).replace("process_worker_pool.py", python, 1)


def _interchange_command() -> list[str]:
    """The interchange with the running interpreter, deaf to Ctrl-C, which is for the driver: it lets running tasks finish.

    Where the system can, the interchange dies with the driver, and the workers end after it.
    """
    python = [sys.executable, "-P", "-m", "parsl.executors.high_throughput.interchange"]
    guard = shutil.which("setpriv")
    command = [guard, "--pdeathsig", "KILL", *python] if guard else python
    return ["/bin/sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]
