"""``systems:`` — what is simulated and where it starts."""

from pydantic import Field, PositiveInt, field_validator

from pipeline.settings.model import Settings
from pipeline.settings.variables import Variable


class SystemSettings(Settings):
    """One system with its start structures."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="short name used in tables and files")
    structures: tuple[str, ...] = Field(
        min_length=1, description="structure files (extxyz, CIF, POSCAR, any ASE format), relative to the campaign file"
    )
    index: str = Field(
        ":",
        pattern=r"^(-?\d+|(-?\d+)?:(-?\d+)?(:(-?[1-9]\d*)?)?)$",
        description="which images of a trajectory: an ASE index such as 0, -1 or ::10",
    )
    repeat: tuple[PositiveInt, PositiveInt, PositiveInt] = Field(
        (1, 1, 1), description="supercell of periodic start structures"
    )
    share: float | None = Field(
        None,
        gt=0,
        description="share of the walkers and labels, relative to those of the other systems; null: where the model is less "
        "certain, more walkers start, and labels go to what is worth most",
    )
    variables: tuple[Variable, ...] = Field(
        (), max_length=3, description="collective variables whose coverage is followed on a grid: three at most"
    )

    @field_validator("index", mode="before")
    @classmethod
    def _as_text(cls, index: object) -> object:
        return str(index) if isinstance(index, int) and not isinstance(index, bool) else index

    @field_validator("variables")
    @classmethod
    def _named_apart(cls, variables: tuple[Variable, ...]) -> tuple[Variable, ...]:
        names = [variable.name for variable in variables]
        if len(set(names)) < len(names):
            raise ValueError(f"two variables share a name in {names}; give each its own")
        return variables
