"""``schedule:`` — rounds with a barrier, or a stream without one."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt

from pipeline.settings.model import Settings


class RoundsSchedule(Settings):
    """Walk, select, label, train: each begins when the one before is complete."""

    kind: Literal["rounds"] = Field(
        "rounds", description="a barrier per iteration: reproducible to the bit at a fixed seed"
    )


class StreamingSchedule(Settings):
    """Walkers, labels and training side by side; none waits for the others to be complete."""

    kind: Literal["streaming"] = Field("streaming", description="no barrier: every slot is kept busy")
    pool: PositiveInt = Field(
        256,
        ge=2,
        le=1_000_000,
        description="candidates that may wait for a label (at least four for every label slot); while there are as many, "
        "walkers pause until a selection has kept the better half",
    )
    train_share: float = Field(
        0.1, gt=0, le=10, description="a training begins once new labels are this share of those the model knows"
    )
    train_wait_s: PositiveFloat = Field(
        1800.0, description="a training begins at the latest when a new label has waited this long, seconds"
    )


def _by_name(value: object) -> object:
    return {"kind": value} if isinstance(value, str) else value


ByKind = Annotated[RoundsSchedule | StreamingSchedule, Field(discriminator="kind")]
Schedule = Annotated[ByKind, BeforeValidator(_by_name, json_schema_input_type=ByKind | Literal["rounds", "streaming"])]
