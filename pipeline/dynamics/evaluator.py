"""What the model says of all walkers of a batch at a step: in one piece, or in as many as fit into memory.

Shapes: B walkers, A atoms. Units: eV/Å, eV, eV/atom.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from pipeline.batching import Batch
from pipeline.bias import BiasedForces, biased_forces, species_weights, stress_impulse
from pipeline.dynamics.capacity import Capacity, Share, peak_bytes
from pipeline.dynamics.metadynamics import Hillside
from pipeline.frames import IntArray
from pipeline.potentials.model import Model, Outcome
from pipeline.settings.walkers import BiasSettings


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What the model says of the walkers: what moves them, and (where asked for) what it does not know.

    Attributes:
        result: forces and virials.
        totals: (B,) float64 calibrated total uncertainties, eV/atom, or None.
        atomic: (A,) float64 calibrated atom-based uncertainties, eV/Å, or None.
    """

    result: BiasedForces
    totals: Tensor | None
    atomic: Tensor | None


class Evaluator:
    """Asks the model.

    Args:
        model: gives forces and uncertainty.
        bias: settings of the bias.
        capacity: decides in how many parts.
        virial: also virials.
    """

    def __init__(self, model: Model, bias: BiasSettings, capacity: Capacity, *, virial: bool) -> None:
        self._model, self._bias, self._capacity, self._virial = model, bias, capacity, virial

    def lay_out(self, batch: Batch, sizes: IntArray) -> None:
        """Take up a batch of walkers of ``sizes`` (B,) atoms; its geometry may change afterwards."""
        self._sizes = sizes
        self._weights = species_weights(self._bias, batch.numbers)
        self._capacity.plan(batch, sizes, partial(self._taken, batch))

    def evaluate(
        self,
        batch: Batch,
        clock: int,
        *,
        strength: Tensor | None = None,
        stress: Tensor | None = None,
        hills: Hillside | None = None,
        split: bool = False,
        uncertainty: bool = False,
    ) -> Evaluated:
        """Forces, virials and uncertainties of a batch.

        Args:
            batch: walkers.
            clock: steps the batch has made.
            strength: (B,) τ_F s_F; stress: (B,) τ_σ s_σ; None where the bias does not act.
            hills: of metadynamics.
            split: E and u apart.
            uncertainty: also what the model does not know here.
        """

        def one(share: Share) -> Evaluated:
            part, walkers = share.of(batch, self._sizes), share.walkers
            result = biased_forces(
                self._model,
                part,
                settings=self._bias,
                strength=None if strength is None else strength[walkers],
                stress_strength=None if stress is None else stress[walkers],
                weights=self._weights[share.atoms],
                split=split,
                features=uncertainty,
                virial=self._virial,
                stress_impulse=stress_impulse(self._bias, clock),
                extra=None if hills is None else partial(hills.energy, walkers=walkers),
            )
            return self._judged(result, part, uncertainty)

        return _joined(self._capacity.evaluate(self._sizes, one), batch)

    def _judged(self, result: BiasedForces, part: Batch, uncertainty: bool) -> Evaluated:
        """With uncertainties where asked for, and without graph and features, whose memory the next part or step needs."""
        outcome = _detached(result.outcome)
        bare = replace(outcome, features=None, structure_features=None)
        result = replace(result, outcome=bare, batch=part)
        if not uncertainty:
            return Evaluated(result, None, None)
        totals = self._model.total_uncertainty(outcome, part).detach().to(torch.float64)
        atomic = self._model.atomic_uncertainty(outcome, part).detach().to(torch.float64)
        return Evaluated(result, totals, atomic)

    def _taken(self, batch: Batch, share: Share) -> float:
        """Bytes that an evaluation of a share takes at most: of a step that needs everything there is."""
        part = share.of(batch, self._sizes)
        run = partial(
            biased_forces,
            self._model,
            part,
            settings=self._bias,
            strength=None,
            weights=self._weights[share.atoms],
            split=self._bias.may_act,
            virial=self._virial,
        )
        return peak_bytes(run, [*self._model.parameters(), *self._model.buffers()], batch.device)


def _detached(outcome: Outcome) -> Outcome:
    """Without the graph."""
    phi, mean = outcome.features, outcome.structure_features
    return Outcome(
        outcome.energies.detach(),
        outcome.member_energies.detach(),
        None if phi is None else phi.detach(),
        None if mean is None else mean.detach(),
    )


def _joined(parts: Sequence[Evaluated], batch: Batch) -> Evaluated:
    """Consecutive parts of a batch as one."""
    if len(parts) == 1:
        return parts[0]

    def together(name: str, holders: Sequence[object]) -> Tensor | None:
        values = [getattr(holder, name) for holder in holders]
        return None if values[0] is None else torch.cat(values)

    results = [part.result for part in parts]
    forces = together("forces", results)
    assert forces is not None
    result = BiasedForces(
        forces=forces,
        plain=together("plain", results),
        gradient=together("gradient", results),
        virials=together("virials", results),
        plain_virials=together("plain_virials", results),
        strain_gradient=together("strain_gradient", results),
        outcome=Outcome(
            torch.cat([one.outcome.energies for one in results]),
            torch.cat([one.outcome.member_energies for one in results], dim=1),
            None,
            None,
        ),
        batch=batch,
    )
    return Evaluated(result, together("totals", parts), together("atomic", parts))
