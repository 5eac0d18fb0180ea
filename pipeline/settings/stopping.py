"""``stop:`` — when the campaign is done."""

from pydantic import Field, PositiveInt

from pipeline.settings.model import Settings


class StopRule(Settings):
    """Ends the campaign before the label budget is spent."""

    target_force_eV_per_A: float | None = Field(
        None,
        gt=0,
        description="stop when the force RMSE of the running model on freshly selected labels stays below this, eV/Å; "
        "null: budget only",
    )
    consecutive: PositiveInt = Field(3, description="rounds in a row that must be below the target")
    max_rounds: PositiveInt = Field(1000, description="most rounds")
    max_wall_h: float | None = Field(
        None, gt=0, description="most hours of wall time, over all runs of this campaign; null: no limit"
    )
