"""Pieces of an atomic network whose derivatives cost no more than they must.

Shapes: A atoms, n inputs, m outputs.
"""

from typing import Any

import torch
from torch import Tensor

ALIGNED = 16
"""Numbers in a cache line: a product whose rows begin elsewhere takes up to 1.4 times as long on a CPU."""


def scaled_product(x: Tensor, matrix: Tensor, factor: float, bias: Tensor | None = None, share: float = 0.0) -> Tensor:
    """factor · x M + share · b for x (A, n), M (n, m) and b (m,).

    For constant M and b the derivative takes ``factor`` along in the product; torch's own goes over its result once more.
    """
    trainable = matrix.requires_grad or (bias is not None and bias.requires_grad)
    if torch.is_grad_enabled() and trainable:
        return _product(x, matrix, factor, bias, share)
    product: Tensor = _ScaledProduct.apply(x, matrix, factor, bias, share)  # type: ignore[no-untyped-call] # torch leaves it untyped
    return product


def silu(x: Tensor, *, with_slope: bool = False) -> tuple[Tensor, Tensor]:
    """SiLU (A, n) and, if wanted, its derivative; else x again in its place."""
    if not with_slope:
        return torch.nn.functional.silu(x), x
    value, slope = _SiLU.apply(x)  # type: ignore[no-untyped-call] # torch leaves it untyped
    return value, slope


def _product(x: Tensor, matrix: Tensor, factor: float, bias: Tensor | None = None, share: float = 0.0) -> Tensor:
    # what is added is not read where it is multiplied by zero
    return torch.addmm(matrix[0] if bias is None else bias, x, matrix, beta=share, alpha=factor)


class _ScaledProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, factor: float, bias: Tensor | None, share: float) -> Tensor:  # noqa: ANN401 # torch says no more of it
        ctx.factor = factor
        ctx.save_for_backward(matrix)
        return _product(x, matrix, factor, bias, share)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:  # noqa: ANN401 # torch says no more of it
        (matrix,) = ctx.saved_tensors
        back, n = matrix.t(), len(matrix)
        if torch.is_grad_enabled() or n % ALIGNED == 0:
            return _product(gradient, back, ctx.factor), None, None, None, None
        rows = gradient.new_empty(len(gradient), n + -n % ALIGNED)[:, :n]
        return torch.addmm(back[0], gradient, back, beta=0.0, alpha=ctx.factor, out=rows), None, None, None, None


class _SiLU(torch.autograd.Function):
    """y = x g with g the logistic function of x, and y' = y + g (1 − y); y'' = (1 − g)(2 y' − y)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401 # torch says no more of it
        gate = torch.sigmoid(x)
        value = x * gate
        slope = torch.addcmul(value, gate, 1.0 - value)
        ctx.save_for_backward(x, gate, value, slope)
        return value, slope

    @staticmethod
    def backward(ctx: Any, by_value: Tensor, by_slope: Tensor) -> Tensor:  # noqa: ANN401 # torch says no more of it
        x, gate, value, slope = ctx.saved_tensors
        if torch.is_grad_enabled():
            gate = torch.sigmoid(x)
            value = x * gate
            slope = torch.addcmul(value, gate, 1.0 - value)
        bend = torch.sub(value, slope, alpha=2.0)
        bend = torch.addcmul(bend, bend, gate, value=-1.0)
        return torch.addcmul(by_value * slope, by_slope, bend, value=-1.0)
