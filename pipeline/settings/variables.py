"""``variables:`` — collective variables whose exploration is followed."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from pipeline.settings.model import Settings


class DihedralVariable(Settings):
    """A dihedral angle in degrees, −180 to 180, periodic."""

    kind: Literal["dihedral"] = Field("dihedral", description="a dihedral angle")
    name: str = Field(min_length=1, description="label in tables and figures")
    atoms: tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt, NonNegativeInt] = Field(
        description="four atom indices, counted from 0"
    )


class DistanceVariable(Settings):
    """A distance between two atoms in Å."""

    kind: Literal["distance"] = Field("distance", description="a distance")
    name: str = Field(min_length=1, description="label in tables and figures")
    atoms: tuple[NonNegativeInt, NonNegativeInt] = Field(description="two atom indices, counted from 0")
    range_A: tuple[float, float] = Field(description="range that coverage is measured over, Å")


class VolumeVariable(Settings):
    """The volume of the cell in Å³, of structures that are periodic in three directions."""

    kind: Literal["volume"] = Field("volume", description="the volume of the cell")
    name: str = Field(min_length=1, description="label in tables and figures")
    range_A3: tuple[float, float] = Field(description="range that coverage is measured over, Å³")


Variable = Annotated[DihedralVariable | DistanceVariable | VolumeVariable, Field(discriminator="kind")]
