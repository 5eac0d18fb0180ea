"""``selection:`` — which candidates are worth a label."""

from typing import Literal

from pydantic import Field, PositiveInt

from pipeline.settings.model import Settings


class SelectionSettings(Settings):
    """Batch selection on the posterior-transformed features."""

    kind: Literal["maxdet", "maxdist", "lcmd", "maxdiag", "random"] = Field(
        "maxdet", description="batch selection method"
    )
    batch: PositiveInt = Field(32, le=100_000, description="labels asked for per selection, at most")
    growth: float = Field(
        0.25,
        gt=0,
        le=10,
        description="a selection asks for at most this share of the labels so far (but for 8 or selection.batch, if fewer)",
    )
    max_candidates: PositiveInt = Field(20_000, description="candidates scored per round; more are thinned evenly")
    duplicate_A: float = Field(
        0.02, ge=0, description="root-mean-square distance of sorted interatomic distances that counts as the same, Å"
    )
    known_eV_per_A: float | None = Field(
        None,
        gt=0,
        description="candidates whose calibrated bound on every atom's force error (its length) is below this are known: no "
        "label is spent on them, eV/Å; null: with streaming the bound of a model that is on stop.target_force_eV_per_A (on "
        "0.1 eV/Å without a target), 2.8 times as large; with rounds none is dropped",
    )
    max_force_eV_per_A: float = Field(
        100.0, gt=0, description="candidates whose predicted force exceeds this are dropped, eV/Å"
    )
