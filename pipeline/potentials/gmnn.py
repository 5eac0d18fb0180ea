"""Gaussian-moment neural network, the built-in potential (Zaverkin et al. 2024, npj Comput. Mater. 10, 83, Methods).

Shapes: B structures, A atoms, M neighbours, Z elements, K Gaussians, S channels. Units: eV, Å.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from pipeline.batching import Batch
from pipeline.errors import ModelError
from pipeline.potentials.base import Potential, Prediction
from pipeline.potentials.invariants import Invariants
from pipeline.potentials.moments import feature_count, unit_moments
from pipeline.potentials.network import scaled_product, silu
from pipeline.potentials.pairs import Radial, pair_moments
from pipeline.settings.potential import GMNNSettings
from pipeline.settings.uncertainty import Projection
from pipeline.uncertainty.features import SKETCHES, LinearShape, Sketch

R_MIN_A = 0.5
BIAS_FACTOR = 0.1
SILU_SCALE = 1.6765
"""Gain that keeps the variance of a standard normal input through SiLU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpec:
    """Which gradient features a potential hands out: ``last_layer``, or ``sketched`` to length ``dimension``.

    Sketched ones by the ``projection`` of :data:`pipeline.uncertainty.features.SKETCHES`, drawn from ``seed``.
    """

    kind: str = "last_layer"
    dimension: int = 512
    seed: int = 0
    projection: Projection = "structured"


class RadialFunctions(nn.Module):
    """R_s(r; Zi, Zj) = f_c(r) K^(−½) Σ_k e[Zi,Zj,s,k] φ_k(r) with Gaussians φ_k and a cosine cutoff f_c."""

    def __init__(self, *, cutoff_A: float, gaussians: int, channels: int, elements: int) -> None:
        super().__init__()
        k = gaussians
        self.cutoff_A, self.channels = cutoff_A, channels
        centres = R_MIN_A + torch.arange(k, dtype=torch.float64) * (cutoff_A - R_MIN_A) / k
        self.register_buffer("centres", centres, persistent=False)
        self.beta = k**2 / cutoff_A**2
        self.prefactor = (2.0 * self.beta / math.pi) ** 0.25 / math.sqrt(k)
        self.table = nn.Parameter(torch.empty(elements, channels, elements, k))

    centres: Tensor

    def basis(self, distance: Tensor) -> Tensor:
        """(A, M, K) enveloped Gaussians K^(−½) f_c(r) φ_k(r) of distances (A, M) in Å."""
        inside = torch.clamp(distance * (math.pi / self.cutoff_A), max=math.pi)
        envelope = (0.5 * self.prefactor) * (1.0 + torch.cos(inside))
        offset = distance.unsqueeze(-1) - self.centres.to(distance.dtype)
        gaussians: Tensor = torch.exp(-self.beta * offset.square()) * envelope.unsqueeze(-1)
        return gaussians

    def around(self, species: Tensor, neighbors: Tensor) -> Radial:
        """The functions around centres of these elements (A,), their neighbours of those (A·M,)."""
        kinds = neighbors.view(len(species), -1)
        return Radial(self.centres, self.beta, self.prefactor, self.cutoff_A, self._tables(species), kinds)

    def contract(self, by_element: Tensor, species: Tensor) -> Tensor:
        """Apply the species table of each centre (A,): (A, Z·K, n) to (A, S, n)."""
        return torch.bmm(self._tables(species), by_element)

    def _tables(self, species: Tensor) -> Tensor:
        """(A, S, Z·K)."""
        return self.table.index_select(0, species).view(len(species), self.channels, -1)


class NTKLinear(nn.Module):
    """A linear layer in NTK parametrisation: x W / √n_in + 0.1 b, weights of unit variance."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in))
        self.bias = nn.Parameter(torch.zeros(n_out))
        self.factor = 1.0 / math.sqrt(n_in)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """The layer of ``gain`` · x."""
        return scaled_product(x, self.weight.t(), gain * self.factor, self.bias, BIAS_FACTOR)

    def backpropagated(self, delta: Tensor, gain: float = 1.0) -> Tensor:
        """∂/∂x of the layer of ``gain`` · x, from ∂/∂out."""
        return scaled_product(delta, self.weight, gain * self.factor)

    def weighted_input(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """z = [x/√n_in; 0.1]: ∂out/∂[weight; bias] for one output."""
        return torch.cat([x * (gain * self.factor), x.new_full((len(x), 1), BIAS_FACTOR)], dim=1)


class GMNN(Potential):
    """E_i = f (a_Z y_i + b_Z) + E⁰_Z with a per-atom network y on Gaussian-moment invariants.

    The per-element offsets E⁰ and all sums over atoms are float64; the network runs in the dtype of its weights.

    Args:
        settings: sizes and cutoff.
        elements: atomic numbers, ascending.
        features: which gradient features to hand out.
        generator: draws the initial weights.
    """

    def __init__(
        self,
        settings: GMNNSettings,
        elements: Sequence[int],
        features: FeatureSpec,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.settings, self.feature_spec = settings, features
        self.elements, self.cutoff_A = tuple(sorted(elements)), settings.cutoff_A
        z = len(self.elements)
        index = torch.full((128,), -1, dtype=torch.int64)
        index[list(self.elements)] = torch.arange(z)
        self.register_buffer("element_index", index, persistent=False)
        self.radial = RadialFunctions(
            cutoff_A=settings.cutoff_A, gaussians=settings.gaussians, channels=settings.channels, elements=z
        )
        self.invariants = Invariants(settings.channels)
        widths = [feature_count(settings.channels), *settings.hidden, 1]
        self.layers = nn.ModuleList(NTKLinear(i, o) for i, o in pairwise(widths))
        self.scale = nn.Parameter(torch.ones(z))
        self.shift = nn.Parameter(torch.zeros(z))
        self.register_buffer("unit_energy", torch.ones((), dtype=torch.float64))
        self.register_buffer("offsets", torch.zeros(z, dtype=torch.float64))
        self.sketch: Sketch | None = None
        if features.kind == "sketched":
            self.sketch = SKETCHES[features.projection](self._shapes(), features.dimension, features.seed)
        self.feature_dimension = features.dimension if self.sketch else widths[-2] + 1
        self._initialise(generator)

    element_index: Tensor
    unit_energy: Tensor
    offsets: Tensor

    def _gain(self, index: int) -> float:
        """What the inputs of a layer are multiplied by: those of the first are invariants, the others come out of a SiLU."""
        return 1.0 if index == 0 else SILU_SCALE

    def _shapes(self) -> list[LinearShape]:
        """Linear layers as their gradients see them."""
        shapes = []
        for k, layer in enumerate(self.linear_layers):
            n_out, n_in = layer.weight.shape
            shapes.append(LinearShape(n_in, n_out, self._gain(k) * layer.factor, BIAS_FACTOR))
        return shapes

    @property
    def linear_layers(self) -> list[NTKLinear]:
        """The layers, typed."""
        return [layer for layer in self.layers if isinstance(layer, NTKLinear)]

    def _initialise(self, generator: torch.Generator | None) -> None:
        with torch.no_grad():
            self.radial.table.uniform_(-1.0, 1.0, generator=generator)
            for layer in self.layers:
                assert isinstance(layer, NTKLinear)
                layer.weight.normal_(generator=generator)

    def set_energy_scale(self, *, offsets_eV: Tensor, unit_eV: float) -> None:
        """Per-element offsets E⁰ (Z,) in eV and the energy unit f in eV of the network's output."""
        self.offsets.copy_(offsets_eV)
        self.unit_energy.fill_(unit_eV)

    def species(self, batch: Batch) -> Tensor:
        """(A,) element indices.

        Raises:
            ModelError: an element the model was not made for.
        """
        species = self.element_index.index_select(0, batch.numbers)
        # reading the answer would hold up any other device; there an unknown element fails as an index out of range
        if species.device.type == "cpu" and int(species.min()) < 0:
            unknown = sorted({int(n) for n in batch.numbers[species < 0]})
            raise ModelError(
                f"The model knows elements {self.elements}, the structure has {unknown}.", "Train on them first."
            )
        return species

    def by_element(self, basis: Tensor, species: Tensor, batch: Batch) -> Tensor:
        """(A, M, Z·K): the basis (A, M, K) in the columns of the neighbour's element, zero elsewhere."""
        kinds = species.index_select(0, batch.neighbors.reshape(-1)).view_as(batch.neighbors)
        one_hot = (kinds.unsqueeze(-1) == torch.arange(len(self.elements), device=kinds.device)).to(basis.dtype)
        return (one_hot.unsqueeze(-1) * basis.unsqueeze(2)).flatten(2)

    def forward(self, batch: Batch, *, strain: Tensor | None = None, features: bool = False) -> Prediction:
        species = self.species(batch)
        edges = batch.edges(strain)
        if torch.is_grad_enabled() and self.radial.table.requires_grad:
            moments = self._moments(edges, species, batch)
        else:
            radial = self.radial.around(species, species.index_select(0, batch.neighbors.reshape(-1)))
            moments = pair_moments(edges, radial, lambda edges: self._moments(edges, species, batch))
        return self.readout(moments, species, batch, features=features)

    def _moments(self, edges: Tensor, species: Tensor, batch: Batch) -> Tensor:
        """Ψ (A, S, 20) of edges (A, M, 3) as a graph that derivatives of any order and of the weights can be taken of."""
        distance, moments = unit_moments(edges.to(self.radial.table.dtype))
        by_element = self.by_element(self.radial.basis(distance), species, batch)
        return torch.bmm(self.radial.contract(by_element.transpose(1, 2), species), moments)

    def readout(self, moments: Tensor, species: Tensor, batch: Batch, *, features: bool) -> Prediction:
        """Energies from the contracted moments Ψ (A, S, 20)."""
        layers = self.linear_layers
        x = self.invariants(moments)
        inputs, slopes = [x], []
        for k, layer in enumerate(layers[:-1]):
            x, slope = silu(layer(x, self._gain(k)), with_slope=features and self.sketch is not None)
            inputs.append(x)
            slopes.append(slope)
        output = layers[-1](x, self._gain(len(layers) - 1)).squeeze(1)
        unit = self.unit_energy.to(self.scale.dtype)
        scale = (self.scale * unit).index_select(0, species)
        atomic = scale * output + (self.shift * unit).index_select(0, species)
        energies = batch.sum_atoms(atomic) + batch.sum_atoms(self.offsets.index_select(0, species))
        phi = self._features(inputs, slopes, scale.unsqueeze(1)) if features else None
        return Prediction(energies, atomic, phi)

    def _features(self, inputs: list[Tensor], slopes: list[Tensor], scale: Tensor) -> Tensor:
        """φ_i = ∂E_i/∂w of the last layer, or its sketch over all linear layers."""
        layers = self.linear_layers
        if self.sketch is None:
            return scale * layers[-1].weighted_input(inputs[-1], self._gain(len(layers) - 1))
        deltas = [scale]
        for k in range(len(layers) - 1, 0, -1):
            deltas.insert(0, layers[k].backpropagated(deltas[0], self._gain(k)) * slopes[k - 1])
        sketched: Tensor = self.sketch(inputs, deltas)
        return sketched
