"""Worker processes in the jobs of a SLURM cluster."""

import fcntl
import functools
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from parsl.config import Config

from pipeline.errors import SiteError
from pipeline.settings.allocation import Allocation
from pipeline.settings.site import SlurmSite
from site_configs.slurm_executor import SlurmExecutor
from site_configs.slurm_jobs import Queue, SlurmJobs
from site_configs.slurm_script import JobKind
from site_configs.workers import HEARTBEAT_S, LOST_AFTER_S, RETRIES, interchange_command, worker_command

IDLE_S = 600.0
"""How long an idle job is kept, seconds. Walks and labels alternate: to wait in the queue again after every half round
would cost more than ten idle minutes."""
STRATEGY_S = 1.0
"""How often Parsl compares tasks and jobs, seconds."""
STARTING_S = 120
"""A pool may begin so long after its job and still keep to ``drain``, seconds: module load, imports from a slow disk. What it
does not need serves the end of a label, after its program."""

_SIOCGIFADDR = 0x8915
"""Linux: the address of a network interface."""


def make_config(
    run_dir: Path,
    site: SlurmSite,
    *,
    job_names: Mapping[str, str],
    retry_handler: Callable[[Exception, Any], float],
    notify: Callable[[str, str], None],
    exports: Mapping[str, str],
) -> Config:
    """A fresh configuration: one executor per kind of job.

    Args:
        run_dir: for scripts, logs and certificates; on a disk that driver and workers share.
        site: the jobs.
        job_names: executor label -> name of its jobs.
        retry_handler: what a failure costs of :data:`site_configs.workers.RETRIES`.
        notify: takes what happens to jobs, a line and a remedy; called from other threads.
        exports: variables that workers need.

    Raises:
        SiteError: there is no such network interface.
    """
    address = address_of(site.interface) if site.interface else None
    queue = Queue(tuple(job_names.values()), functools.partial(_tell_silence, notify))

    def executor(label: str, allocation: Allocation) -> SlurmExecutor:
        kind = JobKind(label, job_names[label], site, allocation, exports)
        return SlurmExecutor(
            label=label,
            jobs=SlurmJobs(kind, queue),
            notify=notify,
            address=address,
            encrypted=True,
            max_workers_per_node=site.workers_per_pool(label),
            cores_per_worker=1e-6,  # the number of workers alone decides
            cpu_affinity="none",  # the job's cores are SLURM's affair
            heartbeat_period=HEARTBEAT_S,
            heartbeat_threshold=LOST_AFTER_S,
            drain_period=drain_period(allocation),
            launch_cmd=worker_command(site.python) if site.python else worker_command(),
            interchange_launch_cmd=interchange_command(),
        )

    return Config(
        executors=[executor(label, allocation) for label, allocation in site.allocations.items()],
        run_dir=str(run_dir),
        retries=RETRIES,
        retry_handler=retry_handler,
        strategy="htex_auto_scale",  # ends single idle jobs too: the last long label must not keep all others waiting
        strategy_period=STRATEGY_S,
        max_idletime=IDLE_S,
        initialize_logging=False,  # the driver's own log has what matters; parsl.log grows by megabytes
        usage_tracking=0,
    )


def drain_period(allocation: Allocation) -> int:
    """Seconds from its own start in which a worker pool takes tasks: it starts later than its job."""
    taking = allocation.walltime - allocation.drain_s
    return taking - min(STARTING_S, taking // 2)


def address_of(interface: str) -> str:
    """IP address of a network interface of this machine.

    Raises:
        SiteError: there is none of that name.
    """
    request = struct.pack("256s", interface.encode()[:15])
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # Parsl's own function leaves it open
            return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24])
    except OSError:
        names = ", ".join(sorted(path.name for path in Path("/sys/class/net").glob("*")))
        raise SiteError(
            f"site.interface: this machine has no network interface {interface} with an address.", f"There are {names}."
        ) from None


def _tell_silence(notify: Callable[[str, str], None], problem: str | None) -> None:
    if problem is None:
        notify("SLURM answers again", "")
    else:
        notify(f"SLURM does not answer: {problem}; running jobs go on, new ones wait", "")
