"""Structures, potentials and models that the tests of the numerical core share: small, random, in the dtype asked for."""

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111, molecule

from pipeline.batching import make_batch
from pipeline.frames import Frame
from pipeline.potentials.gmnn import GMNN, FeatureSpec
from pipeline.potentials.model import Model
from pipeline.settings.potential import GMNNSettings
from pipeline.settings.uncertainty import Projection
from pipeline.uncertainty.calibration import Calibration, made_up_factor
from pipeline.uncertainty.estimator import Estimator

ELEMENTS = (1, 6, 8, 29)
CUTOFF_A = 4.0


def frame_of(atoms: Atoms, seed: int = 0, rattle_A: float = 0.08) -> Frame:
    """A rattled copy."""
    copy = atoms.copy()
    copy.rattle(rattle_A, seed=seed)
    return Frame.from_atoms(copy, system="test")


def ethanol(seed: int = 0) -> Frame:
    """Nine atoms, not periodic."""
    return frame_of(molecule("CH3CH2OH"), seed)


def water(seed: int = 0) -> Frame:
    """Three atoms, not periodic."""
    return frame_of(molecule("H2O"), seed)


def slab(seed: int = 0) -> Frame:
    """Copper with an oxygen atom on it, periodic in two directions."""
    atoms = fcc111("Cu", (2, 2, 2), vacuum=6.0)
    add_adsorbate(atoms, "O", 1.2, "fcc")
    return frame_of(atoms, seed)


def crystal(seed: int = 0) -> Frame:
    """Two atoms in a small skewed cell: every neighbour is there in several images."""
    atoms = bulk("CuO", "rocksalt", a=4.2)
    shear = np.array([[1.0, 0.15, 0.0], [0.0, 1.0, 0.1], [0.05, 0.0, 1.0]])
    atoms.set_cell(atoms.cell.array @ shear, scale_atoms=True)
    return frame_of(atoms, seed)


def zoo(seed: int = 0) -> list[Frame]:
    """One of each: sizes and periodicities differ."""
    return [ethanol(seed), slab(seed), water(seed), crystal(seed)]


def gmnn(
    *,
    channels: int = 5,
    kind: str = "last_layer",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    hidden: tuple[int, ...] = (24, 16),
    projection: Projection = "structured",
) -> GMNN:
    """A random potential with all of its constants away from their defaults."""
    settings = GMNNSettings(cutoff_A=CUTOFF_A, channels=channels, hidden=hidden, gaussians=6)
    generator = torch.Generator().manual_seed(seed)
    features = FeatureSpec(kind=kind, dimension=32, seed=7, projection=projection)
    potential = GMNN(settings, ELEMENTS, features, generator)
    with torch.no_grad():
        for layer in potential.layers:
            layer.bias.normal_(generator=generator)
        potential.scale.uniform_(0.7, 1.3, generator=generator)
        potential.shift.uniform_(-0.3, 0.3, generator=generator)
    potential.to(dtype)
    potential.offsets, potential.unit_energy = potential.offsets.double(), potential.unit_energy.double()
    potential.set_energy_scale(
        offsets_eV=torch.tensor([-13.1, -1030.2, -2040.3, -45000.4], dtype=torch.float64), unit_eV=0.7
    )
    return potential


def features_of(potential: GMNN, frames: Sequence[Frame]) -> tuple[torch.Tensor, torch.Tensor]:
    """Structure features (n, P) and atom features (A, P)."""
    batch = make_batch(frames, potential.cutoff_A)
    with torch.no_grad():
        phi = potential(batch, features=True).features
    assert phi is not None
    return (batch.sum_atoms(phi) / batch.n_atoms.unsqueeze(1)).to(phi.dtype), phi


def made_up_calibration(*, total: float, atomic: float, of_elements: dict[str, float] | None = None) -> Calibration:
    """Factors that come from no scores."""
    elements = [
        made_up_factor("atomic", value=value, count=20, group=element) for element, value in (of_elements or {}).items()
    ]
    both = (made_up_factor("total", value=total, count=20), made_up_factor("atomic", value=atomic, count=20))
    return Calibration(alpha=0.05, factors=(*both, *elements))


def model(
    kind: str = "posterior",
    *,
    features: str = "last_layer",
    dtype: torch.dtype = torch.float64,
    channels: int = 5,
    training: Sequence[Frame] | None = None,
    version: int = 3,
) -> Model:
    """A model whose uncertainty is fitted on rattled structures and calibrated by made-up factors."""
    members = [
        gmnn(channels=channels, kind=features, dtype=dtype, seed=seed)
        for seed in range(3 if kind == "committee" else 1)
    ]
    known = [frame for seed in range(100, 103) for frame in zoo(seed)] if training is None else training
    estimator = Estimator.fit(kind, *features_of(members[0], known), sigma=0.1)
    estimator.calibrate(made_up_calibration(total=1.7, atomic=2.3, of_elements={"H": 1.1, "Cu": 3.7}))
    return Model(members, estimator, version)
