"""The per-atom network of GM-NN swept by hand: forward, backward, and once more along a direction, for training.

With P the sums over neighbours that a potential starts from, forces are a fixed linear map of ∂E/∂P. What a loss on energies
and forces needs is therefore the weight gradient of Σ_i c_i e_i + ė_i, where e_i are the atomic energies, c_i the derivative of
the loss by them, and ė_i their change along the direction Ṗ to which the transposed map takes the derivative by the forces.
That is one forward and one backward sweep for the forces and one of each for their change: as many matrix products as the
double backward of automatic differentiation, without its graph.

Shapes: A atoms, Q = Z·K radial functions by element, S channels. Units: eV.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.potentials.gmnn import BIAS_FACTOR, GMNN, SILU_SCALE, NTKLinear
from pipeline.potentials.tangents import Factors, InvariantTangents


@dataclass(frozen=True, slots=True)
class Sweep:
    """One sweep forward and backward.

    Attributes:
        atomic_energies: (A,) e_i without constant offsets.
        slope: (A, Q, 20) ∂e_i/∂P_i.
        sums, species: (A, Q, 20) and (A,), what was put in.
        table: (A, S, Q) species table of each atom.
        factors: of the invariants.
        inputs: x of each linear layer; ``output``: (A,) of the last one.
        rests: 1 − σ of the outputs of the others; ``slopes``: dx/d(output) behind them.
        by_outputs: derivative of e_i by the outputs of each layer; ``by_inputs``: by its inputs.
        by_moments: (A, S, 20) derivative by the moments.
        rate: (A,) eV per unit of the network's output.
    """

    atomic_energies: Tensor
    slope: Tensor
    sums: Tensor
    species: Tensor
    table: Tensor
    factors: Factors
    inputs: list[Tensor]
    output: Tensor
    rests: list[Tensor]
    slopes: list[Tensor]
    by_outputs: list[Tensor]
    by_inputs: list[Tensor]
    by_moments: Tensor
    rate: Tensor


class Sweeps:
    """Sweeps over the network of a potential with whatever weights it has at the time.

    Args:
        potential: what is swept.
    """

    def __init__(self, potential: GMNN) -> None:
        self.potential = potential
        self._layers = [layer for layer in potential.layers if isinstance(layer, NTKLinear)]
        self._tangents = InvariantTangents(potential.invariants)

    @torch.no_grad()
    def both_ways(self, sums: Tensor, species: Tensor) -> Sweep:
        """Atomic energies and their derivative by P, for sums P (A, Q, 20) and element indices (A,)."""
        potential, invariants = self.potential, self.potential.invariants
        atoms, channels = len(species), potential.radial.channels
        table = potential.radial.table.index_select(0, species).view(atoms, channels, -1)
        moments = torch.bmm(table, sums)
        factors = invariants.factors(moments)
        inputs: list[Tensor] = [invariants.contract(moments, factors)]
        rests: list[Tensor] = []
        slopes: list[Tensor] = []
        for layer in self._layers[:-1]:
            output = _onward(layer, inputs[-1], BIAS_FACTOR)
            gate = torch.sigmoid(output)
            rests.append(1.0 - gate)
            gate *= SILU_SCALE
            inputs.append(output.mul_(gate))
            slopes.append(torch.addcmul(gate, inputs[-1], rests[-1]))
        output = _onward(self._layers[-1], inputs[-1], BIAS_FACTOR).squeeze(1)
        unit = potential.unit_energy.to(potential.scale.dtype)
        rate = (potential.scale * unit).index_select(0, species)
        by_outputs: list[Tensor] = [rate.unsqueeze(1)]
        by_inputs: list[Tensor] = []
        for k in reversed(range(len(self._layers))):
            by_inputs.insert(0, _back(self._layers[k], by_outputs[0]))
            if k > 0:
                by_outputs.insert(0, by_inputs[0] * slopes[k - 1])
        by_moments = invariants.pull(by_inputs[0], factors)
        return Sweep(
            atomic_energies=rate * output + (potential.shift * unit).index_select(0, species),
            slope=torch.bmm(table.transpose(1, 2), by_moments),
            sums=sums,
            species=species,
            table=table,
            factors=factors,
            inputs=inputs,
            output=output,
            rests=rests,
            slopes=slopes,
            by_outputs=by_outputs,
            by_inputs=by_inputs,
            by_moments=by_moments,
            rate=rate,
        )

    @torch.no_grad()
    def by_weights(self, sweep: Sweep, direction: Tensor, share: Tensor) -> dict[str, Tensor]:
        """The derivative of Σ_i c_i e_i + ė_i by all weights, by the names the potential gives them.

        Args:
            sweep: of :meth:`both_ways`.
            direction: (A, Q, 20) Ṗ.
            share: (A,) c.
        """
        found: dict[str, Tensor] = {}
        d_input, changes = self._tangents.contract(sweep.factors, torch.bmm(sweep.table, direction))
        d_inputs, d_outputs = [d_input], []
        for k, layer in enumerate(self._layers):
            d_outputs.append(_onward(layer, d_inputs[-1], 0.0))
            if k < len(sweep.slopes):
                d_inputs.append(d_outputs[-1] * sweep.slopes[k])
        d_by_output = (share * sweep.rate).unsqueeze(1)
        for k in reversed(range(len(self._layers))):
            layer = self._layers[k]
            weight = torch.addmm(layer.bias[:1], d_by_output.t(), sweep.inputs[k], beta=0.0, alpha=layer.factor)
            weight.addmm_(sweep.by_outputs[k].t(), d_inputs[k], alpha=layer.factor)
            found[f"layers.{k}.weight"], found[f"layers.{k}.bias"] = weight, BIAS_FACTOR * d_by_output.sum(dim=0)
            d_by_input = _back(layer, d_by_output)
            if k > 0:
                slope = sweep.slopes[k - 1]
                # the second derivative of SiLU is 2 (1 − σ) (slope − SiLU/2)
                curvature = torch.sub(slope, sweep.inputs[k], alpha=0.5).mul_(sweep.rests[k - 1])
                d_by_output = d_by_input * slope
                d_by_output.addcmul_(sweep.by_inputs[k] * d_outputs[k - 1], curvature, value=2.0)
        d_by_moments = self._tangents.pull(sweep.factors, changes, sweep.by_inputs[0], d_by_input)
        table = torch.bmm(d_by_moments, sweep.sums.transpose(1, 2))
        table.baddbmm_(sweep.by_moments, direction.transpose(1, 2))
        unit = self.potential.unit_energy.to(share.dtype)
        scale = share * sweep.output + d_outputs[-1].squeeze(1)
        # a product with the atoms of each element adds in the same order every time, also on a GPU
        elements = torch.arange(len(self.potential.elements), device=share.device)
        of_element = (elements.unsqueeze(1) == sweep.species).to(share.dtype)
        found["radial.table"] = (of_element @ table.flatten(1)).view_as(self.potential.radial.table)
        found["scale"], found["shift"] = unit * (of_element @ scale), unit * (of_element @ share)
        return found


def _onward(layer: NTKLinear, x: Tensor, bias: float) -> Tensor:
    """A layer with ``bias`` times its bias."""
    return torch.addmm(layer.bias, x, layer.weight.t(), beta=bias, alpha=layer.factor)


def _back(layer: NTKLinear, by_output: Tensor) -> Tensor:
    """Derivative by the input of a layer from that by its output."""
    return torch.addmm(layer.bias[:1], by_output, layer.weight, beta=0.0, alpha=layer.factor)
