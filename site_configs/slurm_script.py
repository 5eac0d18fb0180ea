"""The batch script of one job of workers."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.settings.allocation import Allocation, JobSettings
from pipeline.settings.site import SlurmSite
from site_configs.workers import environment


@dataclass(frozen=True, slots=True)
class JobKind:
    """What the jobs of one executor have in common.

    Attributes:
        label: of the executor.
        name: of the jobs, exactly.
        site: account, worker_init and scratch of all jobs.
        allocation: size and limits of these.
        exports: variables that workers need.
    """

    label: str
    name: str
    site: SlurmSite
    allocation: Allocation
    exports: Mapping[str, str]


def script(kind: JobKind, command: str, output: Path) -> str:
    """Text of the script that starts one worker pool on each node.

    Args:
        kind: what all jobs of the executor have in common.
        command: starts a worker pool.
        output: path of its standard output, without the suffix.
    """
    allocation = kind.allocation
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in _options(kind, output)), ""]
    lines += ["# srun would take the environment from SBATCH_EXPORT", "export SLURM_EXPORT_ENV=ALL"]
    ends = f"$(( $(date +%s) + {allocation.walltime} ))"
    lines += [f'export FARWALK_JOB_ENDS="${{SLURM_JOB_END_TIME:-{ends}}}"']
    lines += environment(allocation.cores_per_worker, allocation.gpus_per_node, kind.exports)
    lines += [text for text in (kind.site.worker_init, allocation.worker_init) if text]
    lines += ["", *_start(kind, command), ""]
    return "\n".join(lines)


def asked_options(job: JobSettings, site: SlurmSite, size: Mapping[str, object]) -> list[str]:
    """What a job asks for, as options of sbatch.

    Args:
        job: its settings.
        site: whose account pays where the job names none.
        size: further options by name; None leaves one out.
    """
    asked = {
        "partition": job.partition,
        "account": job.account or site.account,
        "qos": job.qos,
        "constraint": job.constraint,
        **size,
        "time": clock(job.walltime),
    }
    return [f"--{name}={shlex.quote(str(value))}" for name, value in asked.items() if value is not None]


def output_path(path: str) -> str:
    """Value of sbatch's ``--output``, which takes % for the beginning of a pattern."""
    return shlex.quote(path.replace("%", "%%"))


def _options(kind: JobKind, output: Path) -> list[str]:
    allocation = kind.allocation
    size = {
        "nodes": allocation.nodes_per_block,
        "ntasks-per-node": 1,
        "cpus-per-task": allocation.cores_per_node,
        "mem": allocation.memory_GB_per_node and f"{allocation.memory_GB_per_node}G",
        "gres": allocation.gres,
        "gpus-per-node": None if allocation.gres else allocation.gpus_per_node or None,
    }
    lines = asked_options(allocation, kind.site, size)
    lines += ["--exclusive"] if allocation.exclusive else []
    lines += allocation.scheduler_options
    # after the user's own: jobs are found by name, read by file, and replaced by the driver, not by SLURM
    return [
        *lines,
        f"--job-name={shlex.quote(kind.name)}",
        *(f"--{stream}={output_path(f'{output}{suffix}')}" for stream, suffix in _STREAMS.items()),
        "--no-requeue",
    ]


_STREAMS = {"output": ".out", "error": ".err"}


def _start(kind: JobKind, command: str) -> list[str]:
    """The pool on each node; variables in the name of the scratch directory are those of the node."""
    scratch = kind.site.scratch.replace("\\", "\\\\").replace('"', '\\"').replace("`", "\\`")
    node = [
        f'export FARWALK_SCRATCH="{scratch}"',
        'mkdir -p "$FARWALK_SCRATCH" && [ -w "$FARWALK_SCRATCH" ] && export TMPDIR="$FARWALK_SCRATCH"',
        f"exec {command}",
    ]
    if kind.site.launcher(kind.label) == "single":
        return node
    nodes, cores = kind.allocation.nodes_per_block, kind.allocation.cores_per_node
    # since 22.05 srun forgets --cpus-per-task of the job; --overlap leaves the cores to the srun of a label
    step = f"srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 --cpus-per-task={cores} --overlap"
    step = f"{step} {kind.allocation.launcher_options}".rstrip()
    return [f"exec {step} bash -c {shlex.quote(chr(10).join(node))}"]


def clock(seconds: int) -> str:
    """``D-HH:MM:SS``, which SLURM takes for any length; it counts whole minutes, so part of one is rounded up."""
    minutes = -(-seconds // 60)
    return f"{minutes // 1440}-{minutes // 60 % 24:02d}:{minutes % 60:02d}:00"
