"""``labels:`` — the reference and what may be spent on it."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from pipeline.settings.model import Settings


class EMTReference(Settings):
    """ASE's effective-medium theory: a cheap test potential for Al, Cu, Ag, Au, Ni, Pd, Pt (and H, C, N, O roughly)."""

    kind: Literal["emt"] = Field("emt", description="effective-medium theory of ASE")


class OpenMMReference(Settings):
    """An OpenMM force field: a cheap test potential for molecules (about 0.5 ms a label for alanine dipeptide)."""

    kind: Literal["openmm"] = Field("openmm", description="an OpenMM force field")
    topology: str = Field(description="PDB file with residue names and bonds, atoms in the order of the structures")
    force_field: tuple[str, ...] = Field(
        ("amber19/protein.ff19SB.xml",), min_length=1, description="OpenMM force field files"
    )


class ASEReference(Settings):
    """Any ASE calculator, by ASE name (``lj``) or import path (``tblite.ase.TBLite``)."""

    kind: Literal["ase"] = Field("ase", description="any ASE calculator")
    calculator: str = Field(
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$", description="ASE calculator name or dotted import path"
    )
    arguments: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the calculator")
    reuse: bool = Field(
        False,
        description="keep one calculator per worker instead of a new one per structure: for calculators that take long to "
        "build; what it computed before may change the last digits",
    )


Reference = Annotated[EMTReference | OpenMMReference | ASEReference, Field(discriminator="kind")]


class SplitSettings(Settings):
    """Shares of the labels kept from training; what remains is trained on."""

    validation: float = Field(0.1, gt=0, lt=0.5, description="share used to pick the best epoch")
    calibration: float = Field(
        0.1, gt=0, lt=0.5, description="share used to calibrate the uncertainty, never trained on"
    )


class LabelSettings(Settings):
    """Reference calculations."""

    reference: Reference = Field(description="what computes energies and forces")
    budget: PositiveInt = Field(description="reference calculations the campaign may spend, start structures included")
    initial: PositiveInt = Field(16, description="labels of rattled start structures made before the first model")
    initial_rattle_A: PositiveFloat = Field(
        0.05, le=1.0, description="standard deviation of the rattling of start structures, Å"
    )
    max_force_eV_per_A: float = Field(200.0, gt=0, description="labels with a larger force are refused, eV/Å")
    splits: SplitSettings = Field(
        default_factory=SplitSettings, description="shares kept for validation and calibration"
    )
