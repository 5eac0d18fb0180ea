"""What all sites with worker processes share: how the interchange and the workers start, and what their environment says."""

import shlex
import shutil
import sys
from collections.abc import Mapping

from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD

HEARTBEAT_S = 5
"""Period of heartbeats; also how often a pool looks for workers that died, seconds."""
LOST_AFTER_S = 30
"""A manager unheard of for so long is lost; a manager whose driver was killed ends after so long, seconds."""
RETRIES = 4
"""What a task may spend on lost workers and jobs; a retry handler sets the prices."""

GPUS_VARIABLE = "FARWALK_GPUS_PER_NODE"
"""Tells a worker how many GPUs its node has for the workers of its pool; it pins itself to one of them."""

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENMM_CPU_THREADS")


def environment(threads: int, gpus: int, exports: Mapping[str, str]) -> list[str]:
    """Shell lines for the environment of the workers of one pool.

    Args:
        threads: CPU threads of a worker.
        gpus: GPUs of the node that the workers share; 0 hides all.
        exports: further variables.
    """
    # waiting threads must sleep: spinning ones made a step 30 times slower where cores are shared
    lines = ["export OMP_WAIT_POLICY=passive", *(f"export {name}={threads}" for name in _THREADS)]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in exports.items()]
    lines.append(f"export {GPUS_VARIABLE}={gpus}")
    return lines if gpus else [*lines, "export CUDA_VISIBLE_DEVICES= ROCR_VISIBLE_DEVICES="]


def worker_command(python: str = sys.executable) -> str:
    """The worker pool as a module of an interpreter, wherever PATH points; -P keeps the working directory out of sys.path."""
    module = f"{shlex.quote(python)} -P -m parsl.executors.high_throughput.process_worker_pool"
    command = str(DEFAULT_LAUNCH_CMD).replace("process_worker_pool.py", module, 1)
    for path in ("{cert_dir}", "{logdir}"):
        command = command.replace(path, f'"{path}"')  # campaign directories may have spaces
    return command


def interchange_command() -> list[str]:
    """The interchange with the running interpreter, deaf to Ctrl-C, which is for the driver: it lets running tasks finish.

    Where the system can, the interchange has a session of its own, since Parsl waits for ever for one that a signal to the
    driver's whole process group ended, and it dies with the driver; the workers end after it.
    """
    python = [sys.executable, "-P", "-m", "parsl.executors.high_throughput.interchange"]
    guard = shutil.which("setpriv")
    command = [guard, "--pdeathsig", "KILL", *python] if guard else python
    if alone := shutil.which("setsid"):
        command = [alone, *command]
    return ["/bin/sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]
