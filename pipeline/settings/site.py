"""``site:`` — where tasks run. Holds no physics."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from pipeline.settings.allocation import Allocation, DriverJob
from pipeline.settings.launch import LaunchSettings
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
    def routes(self) -> dict[str, str]:
        """Kind of task -> label of the executor that carries it out."""
        train = "train" if self.train else "walk"
        return {"walk": "walk", "label": "label", "train": train, "select": "select" if self.select else train}

    @property
    def allocations(self) -> dict[str, Allocation]:
        """Executor label -> its jobs."""
        named = {"walk": self.walk, "label": self.label, "select": self.select, "train": self.train}
        return {label: allocation for label, allocation in named.items() if allocation is not None}

    @property
    def walk_slots(self) -> int:
        """Walk tasks at a time."""
        return self.walk.slots

    @property
    def label_slots(self) -> int:
        """Label tasks at a time."""
        return self.label.slots

    @property
    def walk_threads(self) -> int:
        """CPU threads per walk task."""
        return self.walk.cores_per_worker

    @property
    def label_threads(self) -> int:
        """CPU threads per label task."""
        return self.label.cores_per_worker

    @property
    def train_threads(self) -> int:
        """CPU threads of training and selection."""
        return (self.train or self.walk).cores_per_worker


Site = Annotated[InlineSite | LocalThreadsSite | LocalHTEXSite | SlurmSite, Field(discriminator="kind")]
