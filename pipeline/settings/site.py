"""``site:`` — where tasks run. Holds no physics."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pipeline.settings.allocation import Allocation, DriverJob
from pipeline.settings.launch import LONGEST_S, LaunchSettings
from pipeline.settings.model import Settings

WORK = ("walk", "label", "select", "train")
"""Kinds of tasks, each of which a site must have an executor for."""


class SiteSettings(Settings):
    """What every site says."""

    walk_task_s: PositiveFloat = Field(
        600.0,
        description="seconds after which a walk task hands its walkers on to the next one; what a lost worker costs at most",
    )
    launch: LaunchSettings = Field(
        default_factory=LaunchSettings, description="how the program of an external reference is started"
    )
    train_ranks: PositiveInt = Field(1, description="MPI ranks of training and selection; 1: without MPI")

    @property
    def label_launch(self) -> LaunchSettings:
        """``launch`` as labels have it, with the time limit that holds here."""
        return self.launch

    @property
    def routes(self) -> dict[str, str]:
        """Kind of task -> label of the executor that carries it out."""
        return {work: work for work in WORK}


class ResourceSettings(SiteSettings):
    """Slots and threads per kind of work, shared by the local sites."""

    walk_slots: PositiveInt = Field(1, description="walk tasks at a time")
    label_slots: PositiveInt = Field(1, description="label tasks at a time")
    walk_threads: PositiveInt = Field(1, description="CPU threads per walk task")
    label_threads: PositiveInt = Field(1, description="CPU threads per label task")
    train_threads: PositiveInt = Field(1, description="CPU threads of training and selection")

    @model_validator(mode="after")
    def _label_fits(self) -> Self:
        problems = []
        if self.launch.nodes > 1:
            problems.append(
                f"launch.nodes is {self.launch.nodes}, but this machine is one node; only kind: slurm has more"
            )
        problems += _ranks_problems(self.launch, self.label_threads, "label_threads")
        problems += _training_problems(self.train_ranks, self.train_threads, "train_threads")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class InlineSite(ResourceSettings):
    """Everything in the driver process, one task after another: no engine, for tests and debugging."""

    kind: Literal["inline"] = Field("inline", description="in the driver process")


class LocalThreadsSite(ResourceSettings):
    """Parsl threads in the driver process: for tests and small demos."""

    kind: Literal["local_threads"] = Field("local_threads", description="Parsl threads in the driver process")


class LocalHTEXSite(ResourceSettings):
    """Parsl worker processes on this machine: the workstation site."""

    kind: Literal["local_htex"] = Field("local_htex", description="Parsl worker processes on this machine")
    gpus: int = Field(0, ge=0, description="GPUs of this machine; each walk and train worker gets one")


class SlurmSite(SiteSettings):
    """A SLURM cluster: walkers (and training) in one kind of job, labels in another."""

    kind: Literal["slurm"] = Field("slurm", description="Parsl worker processes in SLURM jobs")
    account: str | None = Field(None, description="account that pays for all jobs")
    worker_init: str = Field("", description="shell lines before workers start: module load, source activate, export")
    python: str | None = Field(None, description="Python on the workers [default: the driver's]")
    scratch: str = Field(
        "/tmp",  # the node's own; sites with better ones say so
        description="node-local directory for temporary files; variables such as $TMPDIR are expanded on the node",
    )
    interface: str | None = Field(
        None,
        description="network interface of the driver's node that workers reach, e.g. hsn0 [default: all are tried]",
    )
    walk: Allocation = Field(description="jobs of the walkers (GPU partition)")
    label: Allocation = Field(description="jobs of the reference calculations (CPU partition)")
    train: Allocation | None = Field(None, description="jobs of the trainer [default: it shares those of walk]")
    select: Allocation | None = Field(None, description="jobs of the selector [default: it shares those of train]")
    driver: DriverJob = Field(default_factory=DriverJob, description="the driver's own job, see `farwalk submit`")

    @property
    def label_launch(self) -> LaunchSettings:
        """``launch`` as labels have it: without a time limit of its own, a try ends before its job does."""
        if self.launch.time_limit is not None:
            return self.launch
        return self.launch.model_copy(update={"time_limit": min(LONGEST_S, self.label.drain_s)})

    @property
    def routes(self) -> dict[str, str]:
        """Kind of task -> label of the executor that carries it out."""
        train = "train" if self.train else "walk"
        return {"walk": "walk", "label": "label", "train": train, "select": "select" if self.select else train}

    @property
    def allocations(self) -> dict[str, Allocation]:
        """Executor label -> its jobs."""
        named = {"walk": self.walk, "label": self.label, "select": self.select, "train": self.train}
        return {label: allocation for label, allocation in named.items() if allocation is not None}

    @model_validator(mode="after")
    def _label_fits(self) -> Self:
        nodes, job = self.launch.nodes, self.label
        problems = []
        if nodes > 1:
            if job.nodes_per_block % nodes:
                problems.append(
                    f"label.nodes_per_block ({job.nodes_per_block}) is not a multiple of launch.nodes ({nodes}): "
                    "jobs for labels must hold whole labels"
                )
            elif job.nodes_per_block > nodes and not self.launch.is_srun:
                problems.append(
                    f"label.nodes_per_block ({job.nodes_per_block}) holds {job.nodes_per_block // nodes} labels of "
                    f"launch.nodes ({nodes}), but launch.mpi would start all on the same nodes; use srun --exact there, or "
                    f"set nodes_per_block to {nodes}"
                )
            if job.launcher == "srun":
                problems.append(
                    f"label.launcher is srun, but with launch.nodes ({nodes}) one worker serves several nodes; use single"
                )
        problems += _ranks_problems(self.launch, job.cores_per_worker, "label.cores_per_worker")
        trainer = "train" if self.train else "walk"
        problems += _training_problems(self.train_ranks, self.train_threads, f"{trainer}.cores_per_worker")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def launcher(self, label: str) -> Literal["single", "srun"]:
        """How the worker pools of an executor's job start: one alone on the first node, or with srun one on each."""
        job = self.allocations[label]
        if label == "label" and self.launch.nodes > 1:
            return "single"  # the program of a label, not the worker, spreads over its nodes
        return job.launcher or ("srun" if job.nodes_per_block > 1 else "single")

    def workers_per_pool(self, label: str) -> int:
        """Workers that one pool of an executor holds."""
        job = self.allocations[label]
        if label == "label" and self.launch.nodes > 1:
            return job.nodes_per_block // self.launch.nodes
        return job.workers_per_node

    def slots(self, label: str) -> int:
        """Workers of an executor when all its jobs run."""
        job = self.allocations[label]
        pools = job.nodes_per_block if self.launcher(label) == "srun" else 1
        return job.max_blocks * pools * self.workers_per_pool(label)

    @property
    def walk_slots(self) -> int:
        """Walk tasks at a time."""
        return self.slots("walk")

    @property
    def label_slots(self) -> int:
        """Label tasks at a time."""
        return self.slots("label")

    @property
    def walk_threads(self) -> int:
        """CPU threads per walk task."""
        return self.walk.cores_per_worker

    @property
    def label_threads(self) -> int:
        """CPU threads per label task, on each of its nodes."""
        return self.label.cores_per_worker

    @property
    def train_threads(self) -> int:
        """CPU threads of training and selection."""
        return (self.train or self.walk).cores_per_worker


def _ranks_problems(launch: LaunchSettings, cores: int, key: str) -> list[str]:
    """Whether the program of a label asks for more cores than a label task has, on each of its nodes."""
    nodes = launch.nodes
    asked = math.ceil((launch.ranks or nodes) / nodes) * launch.threads
    if asked <= cores:
        return []
    of_one, where = (" / launch.nodes", " on each node") if nodes > 1 else ("", "")
    return [
        f"launch.ranks{of_one} × launch.threads is {asked}, but a label task has {cores} cores{where} ({key}); lower the "
        "former or raise the latter"
    ]


def _training_problems(ranks: int, cores: int, key: str) -> list[str]:
    """Whether training has a core for each of its ranks."""
    if ranks <= cores:
        return []
    return [f"train_ranks is {ranks}, but training has {cores} cores ({key}); lower the former or raise the latter"]


Site = Annotated[InlineSite | LocalThreadsSite | LocalHTEXSite | SlurmSite, Field(discriminator="kind")]
