"""``variables:`` — collective variables whose exploration is followed."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeInt

from pipeline.settings.model import Settings


def _apart(atoms: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(atoms)) < len(atoms):
        raise ValueError(f"{list(atoms)} names an atom twice; name each once")
    return atoms


def _rising(ends: tuple[float, float]) -> tuple[float, float]:
    low, high = ends
    if not low < high:
        raise ValueError(f"{list(ends)} does not rise; write the lower end first, and a higher one")
    return ends


Pair = Annotated[tuple[NonNegativeInt, NonNegativeInt], AfterValidator(_apart)]
Four = Annotated[tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt, NonNegativeInt], AfterValidator(_apart)]
Range = Annotated[tuple[float, float], AfterValidator(_rising)]


class DihedralVariable(Settings):
    """A dihedral angle in degrees, −180 to 180, periodic."""

    kind: Literal["dihedral"] = Field("dihedral", description="a dihedral angle")
    name: str = Field(min_length=1, description="label in tables and figures")
    atoms: Four = Field(description="four atom indices, counted from 0")


class DistanceVariable(Settings):
    """A distance between two atoms in Å."""

    kind: Literal["distance"] = Field("distance", description="a distance")
    name: str = Field(min_length=1, description="label in tables and figures")
    atoms: Pair = Field(description="two atom indices, counted from 0")
    range_A: Range = Field(description="range that coverage is measured over, Å")


class VolumeVariable(Settings):
    """The volume of the cell in Å³, of structures that are periodic in three directions."""

    kind: Literal["volume"] = Field("volume", description="the volume of the cell")
    name: str = Field(min_length=1, description="label in tables and figures")
    range_A3: Range = Field(description="range that coverage is measured over, Å³")


Variable = Annotated[DihedralVariable | DistanceVariable | VolumeVariable, Field(discriminator="kind")]
