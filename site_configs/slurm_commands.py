"""SLURM's commands as the engine uses them: argument lists, time limits, the scheduler's own words when it says no."""

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ANSWER_S = 30.0
"""How long a command may take, seconds: a controller that is down makes clients wait for 10 to 20."""


class SchedulerError(Exception):
    """A command failed or did not answer; the text is what it said."""


def call(command: Sequence[str], timeout_s: float = ANSWER_S, without: Sequence[str] = ()) -> str:
    """Standard output of a command, which sees no variable of the names ``without``.

    Raises:
        SchedulerError: it is not there, failed, or took too long.
    """
    name = command[0]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env={name: value for name, value in environment().items() if name not in without},
            check=False,
        )
    except FileNotFoundError:
        raise SchedulerError(f"{name}: command not found") from None
    except subprocess.TimeoutExpired as late:
        said = late.stderr.decode(errors="replace") if isinstance(late.stderr, bytes) else ""
        raise SchedulerError(_words(said) or f"{name} timed out after {timeout_s:g} s") from None
    if done.returncode:
        raise SchedulerError(_words(done.stderr) or f"{name} failed with exit code {done.returncode}")
    return done.stdout


def sbatch(script: Path, arguments: Sequence[str] = ()) -> str:
    """Submit a batch script; returns the number of the job.

    Raises:
        SchedulerError: it was refused.
    """
    # the user's own default is for scripts that name none: sbatch would let it win over the script
    named = "#SBATCH --account=" in script.read_text(encoding="utf-8")
    command = ["sbatch", "--parsable", str(script), *arguments]
    return job_number(call(command, without=("SBATCH_ACCOUNT",) if named else ()))


def job_number(answer: str) -> str:
    """The number in what ``sbatch --parsable`` printed; sites wrap sbatch, and wrappers talk.

    Raises:
        SchedulerError: there is none.
    """
    found = re.search(r"^(\d+)(;\S+)?\s*$|Submitted batch job (\d+)", answer, re.MULTILINE)
    if found is None:
        raise SchedulerError(f"sbatch gave no job number: {_words(answer) or 'it printed nothing'}")
    return found[1] or found[3]


def _words(text: str) -> str:
    """What a command said, as one line without its own name."""
    lines = [re.sub(r"^\w+: (error|fatal): ", "", line).strip() for line in text.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line))


def environment() -> dict[str, str]:
    """What SLURM's commands and jobs may inherit of this process's environment.

    A driver that is a job itself must not hand on its own allocation and devices. And what users set for their own hands is not
    for farwalk: SBATCH_PARTITION wins over a script, SQUEUE_PARTITION hides jobs, SCANCEL_STATE spares them without a word.
    """
    devices = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")
    own = re.compile(r"SLURM(D)?_(?!CONF$|JWT)|SBATCH_(?!ACCOUNT$)|S(QUEUE|CANCEL|INFO|CONTROL)_|PARSL_|FARWALK_")
    return {name: value for name, value in os.environ.items() if name not in devices and not own.match(name)}


@dataclass(frozen=True, slots=True)
class Refusal:
    """sbatch said no.

    Attributes:
        words: the scheduler's.
        final: asking again will not help.
        remedy: what to do, naming the key.
    """

    words: str
    final: bool
    remedy: str


_LATER = (
    "timed out",
    "temporarily unavailable",
    "temporarily unable",
    "try again",
    "unable to contact",
    "connection refused",
    "connection failure",
    "communication",
    "zero bytes were transmitted",
    "standby mode",
    "submitlimit",
    "submitjob",
    "maxjobcount",
    "no space left",
    "quota",
)
"""Words of refusals that pass by themselves."""

_PER_JOB = ("perjob", "wallduration")
"""Limits on one job, which no waiting satisfies."""

_SIZE = "cores_per_node, gpus_per_node or memory_GB_per_node"

_REMEDIES = {
    "invalid partition": "partition",
    "partition name": "partition",
    "not permitted to use this partition": "partition",
    "invalid account": "account",
    "account or account/partition": "account",
    "invalid qos": "qos",
    "feature specification": "constraint",
    "time limit": "walltime",
    "timelimit": "walltime",
    "wallduration": "walltime",
    "generic resource": "gres",
    "gres": "gres",
    "gpu": "gres",
    "memory specification": "memory_GB_per_node",
    "node configuration": _SIZE,
    "partition configuration": _SIZE,
    "more processors requested": _SIZE,
    "cpu count": _SIZE,
    "node count": "nodes_per_block",
    "perjob": _SIZE,
    "unrecognized option": "scheduler_options",
    "invalid option": "scheduler_options",
    "invalid argument": "scheduler_options",
    "ambiguous": "scheduler_options",
}
"""Words of refusals that do not pass -> the key of the site that is at fault."""

_SEE = {
    "partition": "sinfo -o '%P %a %l' lists those there are",
    "account": "sacctmgr show associations user=$USER format=account,partition,qos lists yours",
    "qos": "sacctmgr show associations user=$USER format=account,partition,qos lists yours",
    "constraint": "sinfo -o '%P %f' lists the features of the nodes",
    "walltime": "sinfo -o '%P %l' lists the limits",
    "gres": "sinfo -o '%P %G' lists the GPUs of the nodes (with gpus_per_node they are asked for by number alone)",
    "memory_GB_per_node": "sinfo -o '%P %m' lists the memory of the nodes in MB",
    _SIZE: "sinfo -o '%P %c %m %G' lists cores, memory in MB and GPUs of the nodes",
    "nodes_per_block": "sinfo -o '%P %D %s' lists the limits",
    "scheduler_options": "they are written as on the command line of sbatch",
}


def refusal(words: str, label: str, *, trusted: bool) -> Refusal:
    """What sbatch's refusal means.

    Args:
        words: what it said.
        label: executor whose job it is.
        trusted: a job like this one was accepted before. Without that, a refusal of unknown kind is taken to be final.
    """
    # said of every limit of an account or QOS, whichever it is; the line before it names the limit, where there is one
    general = "job violates accounting/qos policy (job submit limit, user's size and/or time limits)"
    lower = words.lower().replace(general, "violates limits, try again")
    if any(phrase in lower for phrase in _PER_JOB):
        lower = lower.replace("try again", "")
    if any(phrase in lower for phrase in _LATER):
        return Refusal(words, False, "")
    if "access/permission denied" in lower:
        return Refusal(words, True, "Run the driver where jobs may be submitted, e.g. on a login node.")
    key = next((key for phrase, key in _REMEDIES.items() if phrase in lower), None)
    if key is None:
        return Refusal(words, not trusted, f"Look at the site section: site.{label}." if not trusted else "")
    return Refusal(words, True, f"Change {key} of site.{label}: {_there(key)}.")


def _there(key: str) -> str:
    """What there is instead: the partitions themselves, else where to look."""
    if key == "partition":
        try:
            names = sorted(set(call(["sinfo", "--noheader", "--format=%R"], timeout_s=10.0).split()))
        except SchedulerError:
            names = []
        if names:
            return f"the partitions here are {', '.join(names)}"
    return _SEE[key]
