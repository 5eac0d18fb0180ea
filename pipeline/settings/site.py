"""``site:`` — where tasks run. Holds no physics."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from pipeline.settings.model import Settings


class ResourceSettings(Settings):
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


Site = Annotated[InlineSite | LocalThreadsSite | LocalHTEXSite, Field(discriminator="kind")]
