"""Settings of density-functional references: CP2K and Quantum ESPRESSO."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from pydantic.fields import FieldInfo

from pipeline.settings.model import Settings


class KPoints(Settings):
    """Sampling of the Brillouin zone: a mesh, or a spacing that gives every cell a mesh of the same density."""

    mesh: tuple[PositiveInt, PositiveInt, PositiveInt] | None = Field(
        None, description="points along each reciprocal axis"
    )
    spacing_per_A: PositiveFloat | None = Field(
        None, description="largest distance of neighbouring points, 1/Å, 2π included (0.25 is dense)"
    )
    shifted: bool = Field(False, description="shift the mesh by half a step, off the Γ point")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.mesh is None) == (self.spacing_per_A is None):
            raise ValueError("give either mesh or spacing_per_A")
        return self


class Smearing(Settings):
    """Fractional occupations, for metals and small gaps. The label's energy is then the free energy: forces derive from it."""

    kind: Literal["fermi", "gaussian", "cold"] = Field(
        "fermi", description="distribution (CP2K: fermi; cold: Marzari-Vanderbilt)"
    )
    width_eV: PositiveFloat = Field(description="width, eV; for fermi k_B T (300 K: 0.02585)")


class ElectronicSettings(Settings):
    """What both codes know."""

    charge: int = Field(0, description="total charge, e")
    multiplicity: PositiveInt | None = Field(
        None, description="2S + 1 of a spin-polarised calculation [default: not spin-polarised]"
    )
    magnetization: dict[str, float] = Field(
        default_factory=dict, description="starting magnetic moment per element, μB; switches spin polarisation on"
    )
    kpoints: KPoints | None = Field(None, description="k-points [default: the Γ point alone]")
    smearing: Smearing | None = Field(None, description="smearing of occupations [default: fixed occupations]")
    max_steps: PositiveInt = Field(100, description="SCF steps of the first try")
    charges: bool = Field(
        False, description="keep atomic charges with each label, e (Mulliken; CP2K alone: pw.x prints none)"
    )
    magnetic_moments: bool = Field(False, description="keep atomic magnetic moments with each spin-polarised label, μB")
    guess: Literal["atomic", "nearest"] = Field(
        "atomic",
        description="where the SCF starts; nearest: from the wave function or density of the nearest labelled frame (with CP2K "
        "8 steps instead of 25 for water moved by 0.05 Å; with pw.x 10 instead of 9 for silicon, so not worth it there); the "
        "last digits then depend on the order of labels",
    )


class CP2KReference(ElectronicSettings):
    """CP2K, Quickstep (GPW): a named preset, or an input file of your own of which only the geometry is replaced."""

    kind: Literal["cp2k"] = Field("cp2k", description="CP2K")
    preset: Literal["pbe", "pbe-d3"] | None = Field(
        None, description="functional with GTH pseudopotentials; D3 with Becke-Johnson damping"
    )
    template: str | None = Field(
        None, description="your own CP2K input; cell and coordinates are replaced, forces and stress switched on"
    )
    basis: str = Field("DZVP-MOLOPT-SR-GTH", description="Gaussian basis set of every element")
    basis_of: dict[str, str] = Field(default_factory=dict, description="basis set of single elements, El: NAME")
    potential_of: dict[str, str] = Field(
        default_factory=dict, description="pseudopotential of single elements, El: NAME [default: GTH-PBE]"
    )
    basis_files: tuple[str, ...] = Field(
        ("BASIS_MOLOPT",), description="basis set files, CP2K's own by name or files of yours by path"
    )
    potential_files: tuple[str, ...] = Field(
        ("GTH_POTENTIALS",), description="pseudopotential files, CP2K's own by name or files of yours by path"
    )
    cutoff_Ry: PositiveFloat = Field(600.0, description="plane-wave cutoff of the finest grid, Ry")
    rel_cutoff_Ry: PositiveFloat = Field(60.0, description="cutoff that decides on which grid a Gaussian goes, Ry")
    xc_grid: Literal["plain", "smooth", "fine"] = Field(
        "plain",
        description="grid of the functional. Water in 6 Å, PBE, 400 Ry: moved by 0.033 Å, O's force changes by 0.18 (plain), "
        "0.035 (smooth: energies +0.17 eV) or 0.008 eV/Å (fine: 8 times as long); errors against 1200 Ry 0.17, 0.018, 0.003",
    )
    scf_convergence: PositiveFloat = Field(1e-7, description="SCF convergence (EPS_SCF)")
    solver: Literal["ot", "diagonalization"] | None = Field(
        None, description="SCF method [default: ot with fixed occupations at Γ, else diagonalization]"
    )

    @model_validator(mode="after")
    def _preset_or_template(self) -> Self:
        if (self.preset is None) == (self.template is None):
            raise ValueError("give either preset or template")
        if self.template is not None:
            _refuse_beside_template(self, ("preset", "template", "kind", "guess", "charges", "magnetic_moments"))
        if self.smearing is not None and self.smearing.kind != "fermi":
            raise ValueError(f"smearing.kind is {self.smearing.kind}, but CP2K has fermi")
        if self.solver == "ot" and (self.smearing is not None or self.kpoints is not None):
            raise ValueError("solver is ot, which knows neither smearing nor kpoints; use diagonalization")
        if (self.multiplicity or 1) > 1 and self.smearing is not None and self.kpoints is not None:
            raise ValueError(
                f"multiplicity is {self.multiplicity}, but CP2K fixes no moment with smearing and kpoints; leave it out and "
                "give magnetization, from which the moment relaxes"
            )
        return self


class QuantumEspressoReference(ElectronicSettings):
    """pw.x of Quantum ESPRESSO: plane waves from a directory of pseudopotentials, or an input file of your own."""

    kind: Literal["quantum_espresso"] = Field("quantum_espresso", description="pw.x of Quantum ESPRESSO")
    pseudopotentials: str = Field(
        description="directory of pseudopotentials (UPF, or GTH named *.gth); it may hold a cutoffs.json with recommended "
        'cutoffs, {"Si": {"filename": …, "cutoff_wfc": 30, "cutoff_rho": 240}}, Ry, as the SSSP families have'
    )
    pseudopotential_of: dict[str, str] = Field(
        default_factory=dict,
        description="file of each element, El: NAME; elements that are not named then have none [default: all of the "
        "directory, which must hold one file per element; recommended cutoffs are the largest of all of these]",
    )
    template: str | None = Field(
        None, description="your own pw.x input; cell, positions and pseudopotentials are replaced, forces and stress on"
    )
    cutoff_Ry: PositiveFloat | None = Field(
        None, description="cutoff of wave functions, Ry [default: the largest recommended one]"
    )
    density_cutoff_Ry: PositiveFloat | None = Field(
        None, description="cutoff of density and potential, Ry [default: the largest recommended one]"
    )
    dispersion: Literal["none", "d3"] = Field("none", description="d3: Grimme's D3 with Becke-Johnson damping")
    scf_convergence_eV_per_atom: PositiveFloat = Field(
        1e-7, description="SCF convergence: estimated energy error, eV per atom"
    )

    @model_validator(mode="after")
    def _template_alone(self) -> Self:
        if self.charges:
            raise ValueError("charges is true, but pw.x prints no atomic charges; leave it out")
        if self.cutoff_Ry and self.density_cutoff_Ry and self.density_cutoff_Ry < 4 * self.cutoff_Ry:
            raise ValueError(
                f"density_cutoff_Ry is {self.density_cutoff_Ry:g}, but products of wave functions reach to four times "
                f"cutoff_Ry ({self.cutoff_Ry:g}); raise it to {4 * self.cutoff_Ry:g} or more"
            )
        if self.template is not None:
            kept = (
                "template",
                "kind",
                "guess",
                "pseudopotentials",
                "pseudopotential_of",
                "magnetic_moments",
            )
            _refuse_beside_template(self, kept)
        return self


def _default(field: FieldInfo) -> object:
    return field.get_default(call_default_factory=True, validated_data={})


def _refuse_beside_template(settings: ElectronicSettings, kept: tuple[str, ...]) -> None:
    # resolved settings name every field: what has its default value says nothing
    said = {name for name, field in type(settings).model_fields.items() if getattr(settings, name) != _default(field)}
    if others := sorted(said - set(kept)):
        raise ValueError(f"{', '.join(others)} cannot be given beside template: the template says it")


DFTReference = Annotated[CP2KReference | QuantumEspressoReference, Field(discriminator="kind")]
