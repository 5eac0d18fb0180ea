"""``labels:`` — the reference and what may be spent on it."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from pipeline.settings.dft import CP2KReference, QuantumEspressoReference
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


Reference = Annotated[
    EMTReference | OpenMMReference | ASEReference | CP2KReference | QuantumEspressoReference,
    Field(discriminator="kind"),
]


class SplitSettings(Settings):
    """Shares of the labels kept from training; what remains is trained on."""

    validation: float = Field(0.1, gt=0, lt=0.5, description="share used to pick the best epoch")
    calibration: float = Field(
        0.1, gt=0, lt=0.5, description="share used to calibrate the uncertainty, never trained on"
    )


class RecoverySettings(Settings):
    """What happens when a label fails."""

    max_tries: PositiveInt = Field(
        5, description="tries of one label, each made differently from those before; then it is quarantined"
    )
    pause_share: float = Field(
        0.5, gt=0, le=1, description="share of the latest labels failed for one cause above which labelling pauses"
    )
    pause_after: PositiveInt = Field(
        6, description="labels failed for one cause, out of those last asked for, before labelling may pause"
    )


class LabelSettings(Settings):
    """Reference calculations."""

    reference: Reference = Field(description="what computes energies and forces")
    budget: PositiveInt = Field(description="reference calculations the campaign may spend, start structures included")
    initial: PositiveInt = Field(16, description="labels of rattled start structures made before the first model")
    initial_rattle_A: PositiveFloat = Field(
        0.05, le=1.0, description="standard deviation of the rattling of start structures, Å"
    )
    initial_strain: float = Field(
        0.0,
        ge=0,
        le=0.3,
        description="largest component of the random strain of rattled start structures, relative; only where they are "
        "periodic in three directions. Walkers with a barostat need labels of other cells than that of the start",
    )
    max_force_eV_per_A: float = Field(200.0, gt=0, description="labels with a larger force are refused, eV/Å")
    max_net_force_eV_per_A: float | None = Field(
        0.15,
        gt=0,
        description="labels whose forces' sum, over the square root of the number of atoms, is larger than this are refused, "
        "eV/Å: noise of the reference's grid, which a finer cutoff lowers, and xc_grid of CP2K; null where the reference "
        "has an external field",
    )
    energy_window_eV_per_atom: float | None = Field(
        5.0,
        gt=0,
        description="labels whose energy is farther than this from a fit of the earlier labels' energies to their "
        "compositions are refused, eV per atom; null: not checked",
    )
    recovery: RecoverySettings = Field(default_factory=RecoverySettings, description="what happens when a label fails")
    splits: SplitSettings = Field(
        default_factory=SplitSettings, description="shares kept for validation and calibration"
    )
