"""What is asked of a batch system: jobs that hold workers, and the driver's own job."""

import re
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from pipeline.settings.model import Settings

_CLOCK = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+):(?P<minutes>\d{1,2}):(?P<seconds>\d{1,2})")


def parse_walltime(value: object) -> object:
    """Seconds of ``HH:MM:SS`` or ``D-HH:MM:SS``; hours may exceed 24. Numbers are seconds (YAML reads 12:00:00 as one)."""
    if not isinstance(value, str):
        return value
    match = _CLOCK.fullmatch(value.strip())
    if match is None or int(match["minutes"]) > 59 or int(match["seconds"]) > 59:
        raise ValueError(f"{value!r} is not a wall time; write HH:MM:SS, D-HH:MM:SS or a number of seconds")
    hours = 24 * int(match["days"] or 0) + int(match["hours"])
    return 3600 * hours + 60 * int(match["minutes"]) + int(match["seconds"])


Walltime = Annotated[int, BeforeValidator(parse_walltime), Field(ge=60)]


_OURS = {
    "-a": "each job is followed by its own number",
    "--array": "each job is followed by its own number",
    "-W": "sbatch must not wait for the job",
    "--wait": "sbatch must not wait for the job",
    "--wrap": "jobs have a script",
    "-M": "squeue and scancel would look at another cluster; log in to the one you mean",
    "--clusters": "squeue and scancel would look at another cluster; log in to the one you mean",
    "-t": "use walltime, which farwalk must know",
    "--time": "use walltime, which farwalk must know",
}
"""Options that would break what farwalk does with its jobs, and why."""


def _options(lines: tuple[str, ...]) -> tuple[str, ...]:
    for line in lines:
        name = re.split(r"[= ]", line, maxsplit=1)[0]
        if name in _OURS:
            raise ValueError(f"{name} cannot be given here: {_OURS[name]}")
        if not line.startswith("-") or "\n" in line:
            raise ValueError(
                f"{line!r} is not an option of sbatch; write it as on its command line, e.g. --exclude=node7"
            )
    return lines


class JobSettings(Settings):
    """Options every SLURM job has."""

    partition: str | None = Field(None, description="partition [default: the cluster's]")
    account: str | None = Field(None, description="account that pays [default: the site's]")
    qos: str | None = Field(None, description="quality of service")
    constraint: str | None = Field(None, description="features nodes must have, e.g. gpu&hbm80g")
    walltime: Walltime = Field(description="wall time of one job: HH:MM:SS, D-HH:MM:SS or seconds")
    scheduler_options: tuple[str, ...] = Field(
        (), description="further options of sbatch, as on its command line, e.g. --exclude=node7"
    )
    worker_init: str = Field("", description="shell lines after the site's worker_init")

    _check_options = field_validator("scheduler_options")(_options)


class Allocation(JobSettings):
    """Jobs (blocks) that hold workers of one kind: how many, how big, how many workers in each."""

    min_blocks: NonNegativeInt = Field(0, description="jobs kept while there is nothing to do")
    max_blocks: PositiveInt = Field(1, description="jobs at a time, at most")
    nodes_per_block: PositiveInt = Field(1, description="nodes per job")
    cores_per_node: PositiveInt = Field(description="CPU cores per node that the job asks for")
    memory_GB_per_node: PositiveInt | None = Field(None, description="memory per node, GB [default: the cluster's]")
    gpus_per_node: NonNegativeInt = Field(0, description="GPUs per node; each worker gets one")
    gres: str | None = Field(
        None, description="how GPUs are asked for, e.g. gpu:a100:4 [default: --gpus-per-node=gpus_per_node]"
    )
    workers_per_gpu: PositiveInt = Field(1, description="workers that share one GPU")
    cores_per_worker: PositiveInt = Field(1, description="CPU threads of a worker")
    exclusive: bool = Field(False, description="ask for whole nodes")
    launcher: Literal["single", "srun"] | None = Field(
        None,
        description="how worker pools start on the nodes of a job: with srun one on each, or a single one on the first "
        "[default: srun with several nodes, unless a label takes several, else single]",
    )
    launcher_options: str = Field("", description="options of srun")
    drain: Walltime | None = Field(
        None,
        description="no new task in a job with less wall time left than this: HH:MM:SS or seconds "
        "[default: a third of walltime, at most 15 minutes]",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.cores_per_worker * self.workers_per_node > self.cores_per_node:
            raise ValueError(
                f"cores_per_node is {self.cores_per_node}, but {self.workers_per_node} workers of "
                f"{self.cores_per_worker} cores do not fit; lower cores_per_worker or workers_per_gpu"
            )
        if self.drain is not None and self.drain >= self.walltime:
            raise ValueError(f"drain ({self.drain} s) must be below walltime ({self.walltime} s)")
        if self.min_blocks > self.max_blocks:
            raise ValueError(f"min_blocks ({self.min_blocks}) exceeds max_blocks ({self.max_blocks})")
        return self

    @property
    def workers_per_node(self) -> int:
        """One per GPU (or several), or as many as fit on the cores."""
        if self.gpus_per_node:
            return self.gpus_per_node * self.workers_per_gpu
        return max(1, self.cores_per_node // self.cores_per_worker)

    @property
    def drain_s(self) -> int:
        """Seconds before the end of a job from which its workers take no new task."""
        return self.drain if self.drain is not None else min(900, self.walltime // 3)


class DriverJob(JobSettings):
    """The driver as a job of its own (``farwalk submit``): small, long, never with a GPU."""

    walltime: Walltime = Field(24 * 3600, description="wall time of one driver job; it hands over to the next one")
    cores: PositiveInt = Field(2, description="CPU cores")
    memory_GB: PositiveInt | None = Field(
        4, description="memory, GB; null where a cluster wants nothing said about memory"
    )
    stop_before: Walltime = Field(
        300, description="how long before its wall time the driver stops softly and hands over: HH:MM:SS or seconds"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if 2 * self.stop_before > self.walltime:
            raise ValueError(f"stop_before ({self.stop_before} s) must be at most half of walltime ({self.walltime} s)")
        return self
