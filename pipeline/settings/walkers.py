"""``walkers:`` — the biased MD that explores."""

from typing import Annotated, Literal

from ase.data import atomic_numbers
from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from pipeline.settings.model import Settings


class ConstantTau(Settings):
    """τ stays as it is."""

    kind: Literal["constant"] = Field("constant", description="the same τ for the whole life of a walker")


class RampTau(Settings):
    """τ rises while a walker grows older: its first steps stay near what is known."""

    kind: Literal["ramp"] = Field("ramp", description="τ changes linearly with the age of a walker")
    first: float = Field(0.0, ge=0, le=5, description="τ of a new walker; it reaches bias.tau after `steps`")
    steps: PositiveInt = Field(description="age at which bias.tau is reached, MD steps; it stays there")


class AdaptiveTau(Settings):
    """τ follows how far a walker has come: up while it is late, down while it is early.

    Progress is the largest atom-based uncertainty over stop.uncertainty_eV_per_A; on time means progress = age / steps. What is
    guaranteed: τ stays between least and most, and a walker that is late at every stop check has τ = most from `steps` / 2 on.
    That it reaches the threshold is not: a region may hold nothing unknown.
    """

    kind: Literal["adaptive"] = Field("adaptive", description="τ lets walkers reach the threshold in about `steps`")
    steps: PositiveInt = Field(description="MD steps in which a walker should reach the threshold")
    least: float = Field(0.0, ge=0, le=5, description="τ is never below this")
    most: float = Field(1.0, gt=0, le=5, description="τ is never above this; walkers start from bias.tau")


TauSchedule = Annotated[ConstantTau | RampTau | AdaptiveTau, Field(discriminator="kind")]


class BiasSettings(Settings):
    """The uncertainty bias E − τu (Zaverkin et al. 2024)."""

    tau: float = Field(0.25, ge=0, le=5, description="relative strength τ: |F_biased − F| / |F| ≈ τ; 0 is plain MD")
    tau_stress: float = Field(
        0.0,
        ge=0,
        le=5,
        description="relative strength of the bias stress: |σ_biased − σ| / |σ| ≈ this; needs walkers.barostat",
    )
    schedule: TauSchedule = Field(default_factory=ConstantTau, description="how τ changes in the life of a walker")
    quantity: Literal["total", "atomic"] = Field(
        "total", description="total uncertainty, or the sum of the atom-based ones"
    )
    species_weights: dict[str, float] = Field(
        default_factory=dict,
        description="weight w of the bias force per element, default 1; H: 0 leaves fast modes unbiased",
    )
    window_steps: PositiveInt = Field(100, description="MD steps over which the relative strength is averaged")
    stress_window_steps: PositiveInt = Field(
        100, description="MD steps over which the relative strength of the stress is averaged"
    )
    update_every: PositiveInt = Field(10, description="MD steps between updates of the relative strength")
    every: PositiveInt = Field(
        1,
        le=20,
        description="MD steps between bias forces; n acts as an impulse of n times the force (r-RESPA), n times cheaper",
    )
    stress_every: PositiveInt = Field(
        5,
        le=20,
        description="with a barostat: MD steps between those that give the stress its own strength τ_stress (r-RESPA); in "
        "between it carries that of the force, at no cost; n time steps must be short against any vibration, also the cell's. "
        "Without effect where bias.every is above 1 or a weight is not 1: the stress then has its own strength at every step",
    )

    @property
    def may_act(self) -> bool:
        """Whether any walker can ever be biased."""
        schedule = self.schedule
        match schedule:
            case AdaptiveTau():
                most = schedule.most
            case RampTau():
                most = max(schedule.first, self.tau)
            case ConstantTau():
                most = self.tau
        return most > 0 or self.tau_stress > 0

    @field_validator("species_weights")
    @classmethod
    def _elements(cls, weights: dict[str, float]) -> dict[str, float]:
        for element, weight in weights.items():
            if atomic_numbers.get(element, 0) < 1:
                raise ValueError(f"unknown element {element!r}; use chemical symbols such as H, C, Al")
            if weight < 0:
                raise ValueError(f"weight of {element} is {weight}; it must be 0 or more")
        return weights


class BarostatSettings(Settings):
    """A stochastic barostat: Langevin dynamics of the cell (Quigley and Probert 2004, J. Chem. Phys. 120, 11432)."""

    kind: Literal["isotropic", "anisotropic", "flexible"] = Field(
        description="isotropic: volume; anisotropic: three edges apart, angles fixed; flexible: lengths and angles"
    )
    time_fs: float = Field(
        500.0,
        gt=0,
        description="relaxation time of the cell, fs, as of a gas; the volume of a solid oscillates with a period of about "
        "this where it is soft, of a fifth where it is hard",
    )
    friction_per_ps: float = Field(5.0, ge=0, le=1000, description="friction of the cell's motion, 1/ps")


class MetadynamicsSettings(Settings):
    """Well-tempered metadynamics (Barducci, Bussi and Parrinello 2008, Phys. Rev. Lett. 100, 020603); hills per walker."""

    variables: tuple[str, ...] = Field(
        min_length=1, max_length=3, description="names of collective variables that every system has"
    )
    widths: tuple[float, ...] = Field(
        min_length=1, max_length=3, description="width σ of a hill along each variable: degrees, Å or Å³"
    )
    height_eV: float = Field(0.012, gt=0, description="height of the first hills, eV")
    every: PositiveInt = Field(100, description="MD steps between hills; a multiple of stop.check_every")
    bias_factor: float = Field(
        10.0, gt=1, description="γ = (T + ΔT) / T: how much flatter than Boltzmann's the visited distribution becomes"
    )


class StopSettings(Settings):
    """When a walker has gone far enough, or too far."""

    uncertainty_eV_per_A: float = Field(
        1.5, gt=0, description="calibrated atom-based uncertainty that ends a walk, eV/Å"
    )
    max_force_eV_per_A: float = Field(
        100.0,
        gt=0,
        description="force on one atom that ends a walk, eV/Å: what moves it, with bias and hills; with bias.every above 1 "
        "without the bias, whose impulses are no forces",
    )
    min_distance_fraction: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="shortest distance allowed, as a fraction of the sum of covalent radii; 0 switches it off",
    )
    isolation_A: float = Field(3.5, gt=0, description="an atom with no neighbour within this distance is isolated, Å")
    bond_graph: bool = Field(
        False,
        description="end a walk when a bond of its start structure breaks or a new one forms; pairs within 5 % of the "
        "threshold at its start are not watched",
    )
    bond_fraction: float = Field(
        1.3, gt=1, le=2, description="bonded: distance below this fraction of the sum of covalent radii"
    )
    volume_change: float = Field(
        2.0,
        gt=1,
        description="a cell this factor larger than the largest start structure of its system, or smaller than the smallest, "
        "ends a walk",
    )
    min_angle_deg: float = Field(
        30.0, ge=0, lt=60, description="cell angles below this, or above 180° minus it, end a walk"
    )
    min_height_fraction: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="shortest height of the cell allowed, as a fraction of that at its start; looked at where it is below the "
        "cutoff, which a thin cell passes in many images",
    )
    check_every: PositiveInt = Field(5, description="MD steps between stop checks (NaN is seen at the same steps)")


class WalkerSettings(Settings):
    """Many walkers, in batches, at several temperatures."""

    count: PositiveInt = Field(16, le=100_000, description="walkers running at a time")
    batch: PositiveInt = Field(
        8, le=4096, description="walkers moved by one forward pass; count / batch walk tasks run side by side"
    )
    segment_steps: PositiveInt = Field(1000, description="MD steps each walker makes per round")
    max_steps: PositiveInt = Field(20_000, description="age at which a walker is replaced by a new one, MD steps")
    store_every: PositiveInt = Field(100, description="MD steps between stored candidate frames")
    timestep_fs: float = Field(0.5, gt=0, le=10, description="MD time step, fs")
    temperatures_K: tuple[float, ...] = Field(
        (300.0,), min_length=1, description="walkers take these temperatures in turn, K"
    )
    friction_per_ps: float = Field(10.0, gt=0, le=1000, description="Langevin friction, 1/ps")
    pressures_MPa: tuple[float, ...] = Field(
        (0.0,),
        min_length=1,
        description="with a barostat walkers take these pressures in turn, at every temperature, MPa; negative is tension",
    )
    barostat: BarostatSettings | None = Field(None, description="moves the cell; without it the cell stays")
    metadynamics: MetadynamicsSettings | None = Field(
        None, description="hills along collective variables: the baseline that biased walkers are compared with"
    )
    enough: NonNegativeInt = Field(
        0,
        description="end a round early once this many walkers have stopped on something new; "
        "0: four times the labels of the round",
    )
    bias: BiasSettings = Field(default_factory=BiasSettings, description="the uncertainty bias")
    stop: StopSettings = Field(default_factory=StopSettings, description="stop checks")

    @field_validator("pressures_MPa")
    @classmethod
    def _finite(cls, pressures: tuple[float, ...]) -> tuple[float, ...]:
        for value in pressures:
            if not -1e5 <= value <= 1e7:
                raise ValueError(f"{value} MPa is not a pressure between -1e5 and 1e7 MPa")
        return pressures

    @field_validator("temperatures_K")
    @classmethod
    def _positive(cls, temperatures: tuple[float, ...]) -> tuple[float, ...]:
        for value in temperatures:
            if not 0 < value <= 20_000:
                raise ValueError(f"{value} K is not a temperature between 0 and 20000 K")
        return temperatures
