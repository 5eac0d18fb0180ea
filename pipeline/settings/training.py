"""``training:`` — loss and optimiser, as published unless said otherwise."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from pipeline.settings.model import Settings


class LossSettings(Settings):
    """L = Σ [ energy (E−E')² + force Σ|F−F'|² + stress |W−W'|² ], W = −V·stress; sums of squares in eV and Å."""

    energy: NonNegativeFloat = Field(1.0, description="weight of squared energy errors, 1/eV²")
    force: NonNegativeFloat = Field(4.0, description="weight of squared force errors, Å²/eV²")
    stress: NonNegativeFloat = Field(
        0.01, description="weight of squared virial errors, 1/eV²; only labels with stress count"
    )


class LearningRates(Settings):
    """Adam's learning rates per parameter group, falling linearly to 0; defaults as published.

    For molecules of some twenty atoms and a few hundred labels, species 0.04 and network 0.05 with batches of 4 reach the same
    force error in half the time.
    """

    species: PositiveFloat = Field(0.02, description="species-pair table of the radial functions")
    network: PositiveFloat = Field(0.03, description="weights of the neural network")
    scale: PositiveFloat = Field(0.05, description="per-element energy scale")
    shift: PositiveFloat = Field(0.001, description="per-element energy shift")


class GateSettings(Settings):
    """A new model replaces the running one only when it is not worse."""

    tolerance: float = Field(
        0.1, ge=0, description="how much larger its force and energy errors on the validation labels may be, relative"
    )
    walkers: NonNegativeInt = Field(8, le=64, description="short unbiased walks that must end sound; 0: none")
    steps: PositiveInt = Field(100, description="MD steps of each")


class TrainingSettings(Settings):
    """Training of one model version."""

    epochs: PositiveInt = Field(300, description="most epochs of a training from scratch")
    warm_epochs: PositiveInt = Field(100, description="most epochs of a warm start")
    start: Literal["warm", "scratch"] = Field(
        "warm", description="continue from the previous model, or start anew each round"
    )
    warm_rate: float = Field(
        1.0, gt=0, le=1, description="learning rates of a warm start relative to those from scratch"
    )
    batch: PositiveInt = Field(8, description="structures per optimiser step (published: 32)")
    patience: NonNegativeInt = Field(
        0, description="stop after this many epochs without a better validation score; 0: never early"
    )
    validate_every: PositiveInt = Field(2, description="epochs between validations")
    max_s: PositiveFloat | None = Field(
        None,
        description="most seconds one training may take (ends at the best epoch so far); breaks exact repeatability",
    )
    gate: GateSettings | None = Field(
        default_factory=GateSettings,
        description="what a new model must pass before it is published; one that fails is trained anew from scratch, once. "
        "null: every model is published",
    )
    loss: LossSettings = Field(default_factory=LossSettings, description="loss weights")
    learning_rates: LearningRates = Field(default_factory=LearningRates, description="Adam learning rates")
