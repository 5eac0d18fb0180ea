"""A model as an ASE calculator."""

from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from pipeline.batching import Batch
from pipeline.frames import Frame
from pipeline.moving import MovingBatch
from pipeline.potentials.evaluation import Evaluation


class Evaluator(Protocol):
    """What the calculator needs of a model."""

    @property
    def cutoff_A(self) -> float:
        """Radial cutoff, Å."""

    @property
    def device(self) -> torch.device:
        """Where its numbers are."""

    def check_elements(self, frames: Sequence[Frame]) -> None:
        """Refuse structures with elements it was not made for."""

    def evaluate_batch(self, batch: Batch, *, stress: bool = False, uncertainty: bool = True) -> Evaluation:
        """Everything about one batch."""


class ModelCalculator(Calculator):  # type: ignore[misc] # ASE is untyped
    """Energy (eV), forces (eV/Å), stress (eV/Å³, periodic structures) and what the model does not know.

    ``results["uncertainty"]`` is the calibrated total uncertainty in eV/atom, ``results["uncertainties"]`` the (N,)
    calibrated atom-based ones in eV/Å.

    Args:
        model: the model.
        skin_A: neighbour rows are reused until atoms and cell together have used up this extra radius, Å.
    """

    implemented_properties: ClassVar[list[str]] = [
        "energy",
        "free_energy",
        "forces",
        "stress",
        "uncertainty",
        "uncertainties",
    ]

    def __init__(self, model: Evaluator, *, skin_A: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self._skin_A = skin_A
        self._moving: MovingBatch | None = None

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """ASE's entry point."""
        super().calculate(atoms, properties, system_changes)
        # ASE counts what changes from here, also where this structure is refused: rows outlive only a call that ends well
        moving, self._moving = self._moving, None
        frame = Frame.from_atoms(self.atoms, system="")
        device = self.model.device
        if moving is None or {"numbers", "pbc"} & set(system_changes):
            self.model.check_elements([frame])
            moving = MovingBatch([frame], cutoff_A=self.model.cutoff_A, skin_A=self._skin_A, device=device)
        cells = torch.from_numpy(frame.cell[None]).to(device) if "cell" in system_changes else None
        batch = moving.follow(torch.from_numpy(frame.positions).to(device), cells)
        periodic = bool(frame.pbc.all())
        result = self.model.evaluate_batch(batch, stress=periodic)
        assert result.total_uncertainty is not None
        energy = float(result.energies[0])
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": result.forces,
            "uncertainty": float(result.total_uncertainty[0]),
            "uncertainties": np.asarray(result.atomic_uncertainty),
        }
        if periodic and result.stress is not None:
            self.results["stress"] = result.stress[0]
        self._moving = moving
