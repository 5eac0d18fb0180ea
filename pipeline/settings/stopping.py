"""``stop:`` — when the campaign is done."""

from pydantic import Field, PositiveInt

from pipeline.settings.model import Settings


class CoverageStop(Settings):
    """The named variables of every system are explored: their coverage has stopped growing."""

    gain: float = Field(
        0.01, gt=0, lt=1, description="coverage (0 to 1) that must have been gained, or the campaign ends"
    )
    models: PositiveInt = Field(5, description="over so many models in a row")


class StopRule(Settings):
    """Ends the campaign before the label budget is spent."""

    target_force_eV_per_A: float | None = Field(
        None,
        gt=0,
        description="stop when the force RMSE of the running model on freshly selected labels stays below this, eV/Å; "
        "null: budget only",
    )
    consecutive: PositiveInt = Field(
        3,
        description="batches of new labels in a row that must be below the target: those new to one model, or to several in a "
        "row until they are 8 (or selection.batch)",
    )
    coverage: CoverageStop | None = Field(
        None, description="stop when walkers find nothing new in the collective variables; null: go on"
    )
    max_rounds: PositiveInt = Field(1000, description="most rounds; without effect on a stream")
    max_cpu_h: float | None = Field(
        None, gt=0, description="most core hours of labels, walkers, selection and training; null: no limit"
    )
    max_gpu_h: float | None = Field(
        None, gt=0, description="most GPU hours of walkers, selection and training; null: no limit"
    )
    max_wall_h: float | None = Field(
        None, gt=0, description="most hours of wall time, over all runs of this campaign; null: no limit"
    )
