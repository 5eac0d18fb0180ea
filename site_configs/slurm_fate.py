"""What the end of a job means, and what a person can do about it."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import SiteError
from site_configs.slurm_jobs import VANISHED, Job

TAIL_LINES = 15
"""Lines of a job's output in an error."""


@dataclass(frozen=True, slots=True)
class Fate:
    """How a job ended.

    Attributes:
        text: as the end of a sentence; empty for jobs that ended by themselves.
        remedy: what to do, where something should be done.
        excused: not the fault of the site's settings.
    """

    text: str
    remedy: str = ""
    excused: bool = False


def fate_of(job: Job, label: str) -> Fate:
    """What its last state says.

    Args:
        job: one that ended.
        label: its executor.
    """
    match job.state:
        case "CANCELLED":
            return Fate("was cancelled", excused=True)
        case "PREEMPTED":
            return Fate("was preempted", excused=True)
        case "NODE_FAIL" | "BOOT_FAIL":
            return Fate("lost its node", excused=True)
        case "TIMEOUT" | "DEADLINE":
            keys = f"site.{label}.walltime or site.{label}.drain"
            return Fate("reached its wall time with tasks running", f"Where tasks take that long, raise {keys}.")
        case "OUT_OF_MEMORY":
            return Fate("ran out of memory", f"Raise site.{label}.memory_GB_per_node, or give a job fewer workers.")
        case "FAILED":
            return Fate("failed", f"See {job.output}.err.")
        case state if state == VANISHED:
            return Fate("is gone from the queue", excused=True)
        case "COMPLETED":
            return Fate("")
        case state:
            return Fate(f"ended ({state})", f"See {job.output}.err.")


_NEVER = {
    "PartitionTimeLimit": ("walltime", "it exceeds the partition's limit, see sinfo -o '%P %l'"),
    "PartitionNodeLimit": ("nodes_per_block", "it exceeds the partition's limit, see sinfo -o '%P %s'"),
    "PartitionConfig": ("partition", "the job does not fit its limits, see scontrol show partition"),
    "PartitionDown": ("partition", "it is down, see sinfo"),
    "PartitionInactive": ("partition", "it is inactive, see sinfo"),
    "BadConstraints": ("constraint", "no node has these features, see sinfo -o '%P %f %c %m %G'"),
    "InvalidAccount": ("account", "see sacctmgr show associations user=$USER"),
    "InvalidQOS": ("qos", "see sacctmgr show associations user=$USER"),
    "AccountNotAllowed": ("account", "the partition does not take it, see scontrol show partition"),
    "QOSNotAllowed": ("qos", "the partition does not take it, see scontrol show partition"),
    "AccountingPolicy": ("qos", "see sacctmgr show qos"),
}
"""Reason of a job that waits for ever -> the key at fault, and why."""


def never_starts(reason: str, label: str) -> str:
    """What to change for a job that the queue lists with this reason to start at all; empty when waiting is enough."""
    if reason in _NEVER:
        key, why = _NEVER[reason]
        return f"Change site.{label}.{key}: {why}."
    if "PerJob" in reason or "WallDuration" in reason:
        return f"Make the jobs of site.{label} smaller or shorter: see sacctmgr show qos."
    return "scontrol release it." if reason in {"JobHeldUser", "JobHeldAdmin"} else ""


def why_no_worker(job: Job, label: str, count: int) -> SiteError:
    """The error of an executor whose jobs end before a worker connects: the last one's own words."""
    where = f" on {job.node}" if job.node else ""
    times = "" if count == 1 else f", the last of {count} in a row"
    path, tail = output_of(job)
    said = f"the end of {path}:\n{tail}" if tail else f"it wrote nothing to {path}"
    if "ConnectionError" in tail or "Unable to connect" in tail:
        remedy = (
            "Its node cannot reach the driver's: set site.interface to a network interface that it can (see ip addr)."
        )
    elif not tail and not path.exists():
        remedy = "Its node could not even make that file: choose a --dir on a disk that all nodes share."
    else:
        remedy = f"Mend site.worker_init, site.{label}.worker_init or site.python; the script is {job.output}.sh."
    return SiteError(f"{label} job {job.id}{where} ended ({job.state}) without a worker{times}; {said}", f"\n{remedy}")


def output_of(job: Job) -> tuple[Path, str]:
    """The end of what a job wrote, and the file: its errors, or its output where there are none."""
    for suffix in (".err", ".out"):
        path = job.output.with_name(job.output.name + suffix)
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            continue
        if lines:
            return path, "\n".join(lines[-TAIL_LINES:])
    return job.output.with_name(job.output.name + ".err"), ""
