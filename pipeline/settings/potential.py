"""``potential:`` — which machine-learned potential is trained."""

from typing import Literal

from pydantic import Field, PositiveInt

from pipeline.settings.model import Settings


class GMNNSettings(Settings):
    """Gaussian-moment neural network (Zaverkin et al. 2024).

    Defaults are quick to train; published: S 7, K 9, hidden [512, 512].
    """

    kind: Literal["gmnn"] = Field("gmnn", description="Gaussian-moment neural network")
    cutoff_A: float = Field(5.0, gt=1.0, le=15.0, description="radial cutoff r_c, Å")
    gaussians: PositiveInt = Field(9, le=64, description="number K of Gaussian radial functions")
    channels: PositiveInt = Field(
        5, le=16, description="number S of contracted radial functions (5: 360 features, 7: 910)"
    )
    hidden: tuple[PositiveInt, ...] = Field((256, 256), min_length=1, description="widths of the hidden layers")
    members: PositiveInt = Field(1, le=32, description="committee size; above 1 needs uncertainty.kind: committee")


PotentialSettings = GMNNSettings
