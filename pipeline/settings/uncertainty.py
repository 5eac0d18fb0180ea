"""``uncertainty:`` — how the potential says what it does not know."""

from typing import Literal

from pydantic import Field, PositiveInt

from pipeline.settings.model import Settings

FeatureKind = Literal["last_layer", "sketched"]
Projection = Literal["structured", "gaussian"]


class FeatureUncertaintySettings(Settings):
    """Uncertainty from gradient features of one model (Zaverkin et al. 2024)."""

    kind: Literal["posterior", "distance"] = Field(
        "posterior", description="Gaussian posterior variance, or distance to the training features"
    )
    features: FeatureKind = Field(
        "last_layer", description="gradient with respect to the last layer, or sketched full gradient"
    )
    sketch_dimension: PositiveInt = Field(512, le=8192, description="length p of a sketched feature")
    projection: Projection = Field(
        "structured", description="of sketched features: structured (signs and Fourier transforms, fast), or gaussian"
    )
    sigma: float = Field(0.01, gt=0, description="ridge σ of the posterior, dimensionless")
    alpha: float = Field(
        0.05, gt=0, lt=0.5, description="conformal miscoverage α: errors exceed u with at most this probability"
    )
    max_references: PositiveInt = Field(
        4096, description="training features kept by kind distance (farthest-point thinning)"
    )


class CommitteeUncertaintySettings(Settings):
    """Standard deviation over a committee; the selection kernel still uses the first member's features."""

    kind: Literal["committee"] = Field("committee", description="spread of a committee")
    features: FeatureKind = Field("last_layer", description="features of the selection kernel")
    sketch_dimension: PositiveInt = Field(512, le=8192, description="length p of a sketched feature")
    projection: Projection = Field(
        "structured", description="of sketched features: structured (signs and Fourier transforms, fast), or gaussian"
    )
    sigma: float = Field(0.01, gt=0, description="ridge σ of the selection kernel's posterior, dimensionless")
    alpha: float = Field(
        0.05, gt=0, lt=0.5, description="conformal miscoverage α: errors exceed u with at most this probability"
    )


UncertaintySettings = FeatureUncertaintySettings | CommitteeUncertaintySettings
