"""Sketched gradient features: a short vector per atom whose inner products estimate those of the full gradient.

Zaverkin et al. 2024 (npj Comput. Mater. 10, 83), Methods. Shapes: A atoms, p length of a feature, l a linear layer.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.settings.uncertainty import Projection


@dataclass(frozen=True, slots=True)
class LinearShape:
    """A linear layer as its gradient sees it: z = [factor · x; constant] for inputs x (A, n_in), δ (A, n_out)."""

    n_in: int
    n_out: int
    factor: float
    constant: float


class Sketch(nn.Module, ABC):
    """Features φ_i with E[φ_i·φ_j] = Σ_l (z_l,i·z_l,j)(δ_l,i·δ_l,j), the inner product of the gradients ∂E_i/∂w.

    The sum is over all linear layers, z is a layer's weighted input (with its bias entry) and δ = ∂E_i/∂out; the expectation
    is over seeds. Projections follow from ``seed`` alone and are not stored in files.

    Args:
        layers: shapes of the layers, first to last.
        dimension: p.
        seed: of the projections.
    """

    def __init__(self, layers: Sequence[LinearShape], dimension: int, seed: int) -> None:
        super().__init__()
        self.layers, self.dimension, self.seed = tuple(layers), dimension, seed

    @abstractmethod
    def forward(self, inputs: Sequence[Tensor], deltas: Sequence[Tensor]) -> Tensor:
        """(A, p) features from the layers' inputs x_l (A, n_in) and output gradients δ_l (A, n_out)."""


class GaussianSketch(Sketch):
    """φ_i = Σ_l (z_l,i P_l) ∘ (δ_l,i Q_l) with Gaussian P, Q: n p products per layer and atom, twice as dear as the network."""

    def __init__(self, layers: Sequence[LinearShape], dimension: int, seed: int) -> None:
        super().__init__(layers, dimension, seed)
        generator = torch.Generator().manual_seed(seed % 2**63)
        scale = dimension**-0.25
        for k, layer in enumerate(self.layers):
            left = torch.randn(layer.n_in + 1, dimension, generator=generator, dtype=torch.float64) * scale
            right = torch.randn(layer.n_out, dimension, generator=generator, dtype=torch.float64) * scale
            self.register_buffer(f"left_{k}", left.to(torch.get_default_dtype()), persistent=False)
            self.register_buffer(f"right_{k}", right.to(torch.get_default_dtype()), persistent=False)

    def forward(self, inputs: Sequence[Tensor], deltas: Sequence[Tensor]) -> Tensor:
        """(A, p) features."""
        terms = []
        for k, (layer, x, delta) in enumerate(zip(self.layers, inputs, deltas, strict=True)):
            left, right = (self.get_buffer(f"{side}_{k}").to(x.dtype) for side in ("left", "right"))
            projected = torch.addmm(left[-1], x, left[:-1], beta=layer.constant, alpha=layer.factor)
            terms.append(projected * (delta @ right))
        return torch.stack(terms).sum(dim=0)


class StructuredSketch(Sketch):
    """φ_i = Σ_l z̃_l,i ⊛ δ̃_l,i: circular convolutions of the two vectors with random signs, folded to length p.

    The tensor sketch of Pham and Pagh (KDD 2013) with a fixed fold in place of a random hash: entry m holds
    Σ s_a t_b z_a δ_b over a + b ≡ m (mod p), so that with independent signs s, t only equal entries of two atoms meet in the
    mean, for any fold. By Fourier transforms it takes p log p operations where Gaussian projections take n p.
    """

    def __init__(self, layers: Sequence[LinearShape], dimension: int, seed: int) -> None:
        super().__init__(layers, dimension, seed)
        generator = torch.Generator().manual_seed(seed % 2**63)

        def signs(n: int) -> Tensor:
            return 2.0 * torch.randint(2, (n,), generator=generator).to(torch.float64) - 1.0

        for k, layer in enumerate(self.layers):
            left = signs(layer.n_in + 1)
            self.register_buffer(f"left_{k}", left[:-1] * layer.factor, persistent=False)
            self.register_buffer(f"constant_{k}", left[-1] * layer.constant, persistent=False)
            self.register_buffer(f"right_{k}", signs(layer.n_out), persistent=False)

    def forward(self, inputs: Sequence[Tensor], deltas: Sequence[Tensor]) -> Tensor:
        """(A, p) features."""
        features: Tensor = _Convolutions.apply(self, *inputs, *deltas)  # type: ignore[no-untyped-call] # untyped in torch
        return features

    def signs(self, index: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Of a layer: signed factors of its inputs (n_in,), its signed constant, signs of its outputs (n_out,)."""
        left, constant, right = (self.get_buffer(f"{name}_{index}") for name in ("left", "constant", "right"))
        return left.to(dtype), constant.to(dtype), right.to(dtype)

    def folded(self, index: int, x: Tensor) -> Tensor:
        """(A, p) signed inputs of a layer, with its constant, folded."""
        left, constant, _ = self.signs(index, x.dtype)
        z = fold(x, left, self.dimension)
        place = self.layers[index].n_in % self.dimension
        z[:, place : place + 1] += constant
        return z

    def factors(self, inputs: Sequence[Tensor], deltas: Sequence[Tensor]) -> list[Tensor]:
        """Of each layer in turn, two tensors whose products add up to the spectrum of the features.

        Of a layer with one output they add up to the features themselves: a convolution with one number is a product.
        """
        found: list[Tensor] = []
        for k, (layer, x, delta) in enumerate(zip(self.layers, inputs, deltas, strict=True)):
            z, right = self.folded(k, x), self.signs(k, x.dtype)[2]
            if layer.n_out == 1:
                found += [z, delta * right]
            else:
                found += [torch.fft.rfft(z), torch.fft.rfft(fold(delta, right, self.dimension))]
        return found


def fold(values: Tensor, signs: Tensor, length: int) -> Tensor:
    """(A, length) sums of signed values (A, n): entry m is the sum of those at k ≡ m (mod length)."""
    total = values[:, :length] * signs[:length]
    if (missing := length - values.shape[1]) > 0:
        total = nn.functional.pad(total, (0, missing))
    for start in range(length, values.shape[1], length):
        part = values[:, start : start + length]
        total[:, : part.shape[1]] += part * signs[start : start + length]
    return total


def unfold(gradient: Tensor, signs: Tensor) -> Tensor:
    """The transpose of :func:`fold`: (A, length) to (A, n)."""
    length = gradient.shape[1]
    parts = [gradient[:, : len(one)] * one for one in torch.split(signs, length)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class _Convolutions(torch.autograd.Function):
    """A structured sketch; by hand because torch differentiates real transforms by complex ones, at twice the work."""

    @staticmethod
    def forward(ctx: Any, sketch: StructuredSketch, *tensors: Tensor) -> Tensor:  # noqa: ANN401 # torch says no more of it
        inputs, deltas = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        kept = sketch.factors(inputs, deltas)
        spectrum, total = None, None
        for k, layer in enumerate(sketch.layers):
            left, right = kept[2 * k : 2 * k + 2]
            if layer.n_out == 1:
                total = left * right if total is None else total.addcmul_(left, right)
            else:
                spectrum = left * right if spectrum is None else spectrum.addcmul_(left, right)
        ctx.sketch = sketch
        ctx.save_for_backward(*tensors, *kept)
        if spectrum is None:
            assert total is not None
            return total
        convolved: Tensor = torch.fft.irfft(spectrum, n=sketch.dimension)
        return convolved if total is None else convolved.add_(total)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 # torch says no more of it
        sketch: StructuredSketch = ctx.sketch
        count = len(sketch.layers)
        tensors, kept = ctx.saved_tensors[: 2 * count], ctx.saved_tensors[2 * count :]
        if torch.is_grad_enabled():
            # with their graph; not by torch from saved tensors: deltas depend on inputs, and a derivative with respect to
            # inputs would take that way too
            kept = sketch.factors(tensors[:count], tensors[count:])
        spectrum = torch.fft.rfft(gradient)
        by_inputs, by_deltas = [], []
        for k, layer in enumerate(sketch.layers):
            left, right = kept[2 * k : 2 * k + 2]
            signs, _, signs_out = sketch.signs(k, gradient.dtype)
            if layer.n_out == 1:
                by_inputs.append(unfold(gradient * right, signs))
                by_deltas.append((gradient * left).sum(dim=1, keepdim=True) * signs_out)
                continue
            by_z, by_delta = (torch.fft.irfft(spectrum * s.conj(), n=sketch.dimension) for s in (right, left))
            by_inputs.append(unfold(by_z, signs))
            by_deltas.append(unfold(by_delta, signs_out))
        return None, *by_inputs, *by_deltas


SKETCHES: dict[Projection, Callable[[Sequence[LinearShape], int, int], Sketch]] = {
    "structured": StructuredSketch,
    "gaussian": GaussianSketch,
}
"""Sketches by the name that settings and model files give their projections."""
