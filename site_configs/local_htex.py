"""Worker processes on this machine: the workstation and laptop site."""

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.jobs.error_handlers import windowed_error_handler
from parsl.providers import LocalProvider

from pipeline.settings.site import LocalHTEXSite
from site_configs.workers import HEARTBEAT_S, LOST_AFTER_S, RETRIES, environment, interchange_command, worker_command

LOOPBACK = "127.0.0.1"


def make_config(
    run_dir: Path,
    site: LocalHTEXSite,
    *,
    retry_handler: Callable[[Exception, Any], float],
    exports: Mapping[str, str],
) -> Config:
    """A fresh configuration: one executor per kind of task, one worker per slot.

    Args:
        run_dir: for the logs of managers and workers.
        site: slots, threads and GPUs.
        retry_handler: what a failure costs of :data:`site_configs.workers.RETRIES`.
        exports: variables that workers need.
    """

    def executor(label: str, *, slots: int, threads: int, gpus: int = 0) -> HighThroughputExecutor:
        shared = min(gpus, slots)
        return _executor(label, slots, environment(threads, shared, {**exports, **_first_devices(shared)}))

    return Config(
        executors=[
            executor("walk", slots=site.walk_slots, threads=site.walk_threads, gpus=site.gpus),
            executor("label", slots=site.label_slots, threads=site.label_threads),
            executor("select", slots=1, threads=site.train_threads),
            executor("train", slots=1, threads=site.train_threads, gpus=site.gpus),
        ],
        run_dir=str(run_dir),
        retries=RETRIES,
        retry_handler=retry_handler,
        strategy="simple",  # "none" would never replace a lost block, and its tasks would wait for ever
        strategy_period=1,
        initialize_logging=False,  # the driver's own log has what matters; parsl.log grows by megabytes
        usage_tracking=0,
    )


def _first_devices(count: int) -> dict[str, str]:
    """Of the devices this process was given, as many as the workers share."""
    names = [name for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES") if count and os.environ.get(name)]
    return {name: ",".join(os.environ[name].split(",")[:count]) for name in names}


def _executor(label: str, slots: int, lines: list[str]) -> HighThroughputExecutor:
    return HighThroughputExecutor(
        label=label,
        address=LOOPBACK,  # nothing on this machine needs to be reached from outside
        loopback_address=LOOPBACK,
        encrypted=True,
        max_workers_per_node=slots,
        cores_per_worker=1e-6,  # slots alone decide; the default would refuse more slots than cores
        cpu_affinity="none",
        heartbeat_period=HEARTBEAT_S,
        heartbeat_threshold=LOST_AFTER_S,
        block_error_handler=functools.partial(windowed_error_handler, threshold=3),
        launch_cmd=worker_command(),
        interchange_launch_cmd=interchange_command(),
        provider=LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1, worker_init="\n".join(lines)),
    )
