"""``walkers:`` — the biased MD that explores."""

from typing import Literal

from ase.data import atomic_numbers
from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from pipeline.settings.model import Settings


class BiasSettings(Settings):
    """The uncertainty bias E − τu (Zaverkin et al. 2024)."""

    tau: float = Field(0.25, ge=0, le=5, description="relative strength τ: |F_biased − F| / |F| ≈ τ; 0 is plain MD")
    quantity: Literal["total", "atomic"] = Field(
        "total", description="total uncertainty, or the sum of the atom-based ones"
    )
    species_weights: dict[str, float] = Field(
        default_factory=dict,
        description="weight w of the bias force per element, default 1; H: 0 leaves fast modes unbiased",
    )
    window_steps: PositiveInt = Field(100, description="MD steps over which the relative strength is averaged")
    update_every: PositiveInt = Field(10, description="MD steps between updates of the relative strength")
    every: PositiveInt = Field(
        1,
        le=20,
        description="MD steps between bias forces; n acts as an impulse of n times the force (r-RESPA), n times cheaper",
    )

    @field_validator("species_weights")
    @classmethod
    def _elements(cls, weights: dict[str, float]) -> dict[str, float]:
        for element, weight in weights.items():
            if atomic_numbers.get(element, 0) < 1:
                raise ValueError(f"unknown element {element!r}; use chemical symbols such as H, C, Al")
            if weight < 0:
                raise ValueError(f"weight of {element} is {weight}; it must be 0 or more")
        return weights


class StopSettings(Settings):
    """When a walker has gone far enough, or too far."""

    uncertainty_eV_per_A: float = Field(
        1.5, gt=0, description="calibrated atom-based uncertainty that ends a walk, eV/Å"
    )
    max_force_eV_per_A: float = Field(100.0, gt=0, description="force on one atom that ends a walk, eV/Å")
    min_distance_fraction: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="shortest distance allowed, as a fraction of the sum of covalent radii; 0 switches it off",
    )
    isolation_A: float = Field(3.5, gt=0, description="an atom with no neighbour within this distance is isolated, Å")
    bond_graph: bool = Field(
        False, description="end a walk when a bond of its start structure breaks or a new one forms"
    )
    bond_fraction: float = Field(
        1.3, gt=1, le=2, description="bonded: distance below this fraction of the sum of covalent radii"
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
    enough: NonNegativeInt = Field(
        0,
        description="end a round early once this many walkers have stopped on something new; "
        "0: four times the labels of the round",
    )
    bias: BiasSettings = Field(default_factory=BiasSettings, description="the uncertainty bias")
    stop: StopSettings = Field(default_factory=StopSettings, description="stop checks")

    @field_validator("temperatures_K")
    @classmethod
    def _positive(cls, temperatures: tuple[float, ...]) -> tuple[float, ...]:
        for value in temperatures:
            if not 0 < value <= 20_000:
                raise ValueError(f"{value} K is not a temperature between 0 and 20000 K")
        return temperatures
