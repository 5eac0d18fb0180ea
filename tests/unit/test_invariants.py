"""Invariants and pair moments, whose derivatives are written by hand, against naive sums and automatic differentiation."""

import pytest
import torch
from engine import crystal, ethanol, gmnn, model, zoo
from potential_contract import equal

from pipeline.batching import make_batch
from pipeline.potentials.base import differentiate
from pipeline.potentials.gmnn import BIAS_FACTOR
from pipeline.potentials.invariants import Invariants
from pipeline.potentials.moments import PAIRS, TRIPLES, feature_count
from pipeline.potentials.network import scaled_product, silu


def tensors(moments):
    """Full Ψ0, Ψ1, Ψ2, Ψ3 of packed moments (A, S, 20)."""
    a, s, _ = moments.shape
    square, cube = moments.new_zeros(a, s, 3, 3), moments.new_zeros(a, s, 3, 3, 3)
    for c in range(3):
        for d in range(3):
            square[:, :, c, d] = moments[:, :, 4 + PAIRS.index(tuple(sorted((c, d))))]
            for e in range(3):
                cube[:, :, c, d, e] = moments[:, :, 10 + TRIPLES.index(tuple(sorted((c, d, e))))]
    return moments[:, :, 0], moments[:, :, 1:4], square, cube


def naive(moments):
    """The invariants as they are written in the paper, one sum each."""
    s = moments.shape[1]
    scalar, vector, square, cube = tensors(moments)
    pairs = [(a, b) for b in range(s) for a in range(b + 1)]
    parts = [scalar]
    for quadratic in (
        torch.einsum("nac,nbc->nab", vector, vector),
        torch.einsum("nacd,nbcd->nab", square, square),
        torch.einsum("nacde,nbcde->nab", cube, cube),
    ):
        parts.append(torch.stack([quadratic[:, a, b] for a, b in pairs], dim=1))
    vectors = torch.einsum("nac,nbd,nscd->nabs", vector, vector, square)
    cubes = torch.einsum("nacef,nbdef,nscd->nabs", cube, cube, square)
    parts += [torch.stack([x[:, a, b] for a, b in pairs], dim=1).flatten(1) for x in (vectors, cubes)]
    parts.append(torch.einsum("nscde,nuc,nbde->nusb", cube, vector, square).flatten(1))
    triple = torch.einsum("nacd,nbde,nsec->nabs", square, square, square)
    parts.append(torch.stack([triple[:, a, b, c] for a, b in pairs for c in range(b, s)], dim=1))
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_invariants_are_those_of_the_paper(channels):
    moments = torch.randn(4, channels, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(channels))
    found = Invariants(channels)(moments)
    assert found.shape == (4, feature_count(channels))
    equal(found, naive(moments))


@pytest.mark.parametrize("channels", [1, 3])
def test_invariants_have_the_derivatives_of_their_sums(channels):
    generator = torch.Generator().manual_seed(channels)
    moments = torch.randn(3, channels, 20, dtype=torch.float64, generator=generator, requires_grad=True)
    direction = torch.randn(3, feature_count(channels), dtype=torch.float64, generator=generator)
    once, twice = [], []
    for function in (Invariants(channels), naive):
        once += torch.autograd.grad((function(moments) * direction).sum(), moments)
        (slope,) = torch.autograd.grad((function(moments) * direction).sum(), moments, create_graph=True)
        twice += torch.autograd.grad(slope.square().sum(), moments)
    equal(*once)
    equal(*twice)


@pytest.mark.parametrize("kind", ["last_layer", "sketched"])
def test_constant_weights_give_the_derivatives_that_trainable_ones_do(kind):
    """Weights that are trained take plain automatic differentiation; constant ones take the derivatives by hand."""

    def derivatives(trainable):
        potential = gmnn(kind=kind).requires_grad_(trainable)
        batch = make_batch(zoo(), potential.cutoff_A)
        positions = batch.positions.requires_grad_(True)
        strain = torch.zeros_like(batch.cells).requires_grad_(True)
        prediction = potential(batch.with_positions(positions), strain=strain, features=True)
        scalar = prediction.energies.sum() + prediction.features.square().sum()
        first = torch.autograd.grad(scalar, [positions, strain], retain_graph=True)
        again = torch.autograd.grad(scalar, [positions, strain], create_graph=True)
        second = torch.autograd.grad(sum(x.square().sum() for x in again), [positions, strain])
        return prediction.features, *first, *again, *second

    for found, expected in zip(derivatives(False), derivatives(True), strict=True):
        scale = float(expected.detach().abs().max())
        equal(found / scale, expected / scale)


def test_a_second_derivative_of_the_energy_is_the_slope_of_the_forces():
    potential = gmnn().requires_grad_(False)
    batch = make_batch([ethanol()], potential.cutoff_A)
    direction = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    positions = batch.positions.requires_grad_(True)
    energy = potential(batch.with_positions(positions)).energies.sum()
    (slope,) = torch.autograd.grad(energy, positions, create_graph=True)
    (bent,) = torch.autograd.grad((slope * direction).sum(), positions)
    step = 1e-4
    ends = [
        differentiate(potential, batch.with_positions(positions.detach() + h * direction)).forces
        for h in (step, -step, 2 * step, -2 * step)
    ]
    expected = -(8 * (ends[0] - ends[1]) - (ends[2] - ends[3])) / (12 * step)
    torch.testing.assert_close(bent, expected, rtol=1e-6, atol=1e-6)


def test_derivatives_of_sketched_features_that_keep_their_graph_are_those_that_do_not():
    """And the second is the slope of the first. What is convolved depends on the same positions, one through the other."""
    potential = gmnn(kind="sketched").requires_grad_(False)
    batch = make_batch([ethanol()], potential.cutoff_A)
    direction = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def slope(shift, create_graph=False):
        positions = (batch.positions.detach() + shift).requires_grad_(True)
        phi = potential(batch.with_positions(positions), features=True).features
        return positions, torch.autograd.grad(phi.square().sum(), positions, create_graph=create_graph)[0]

    positions, bent = slope(0.0, create_graph=True)
    equal(bent, slope(0.0)[1])
    (second,) = torch.autograd.grad((bent * direction).sum(), positions)
    step = 1e-4
    ends = [slope(h * direction)[1] for h in (step, -step, 2 * step, -2 * step)]
    expected = (8 * (ends[0] - ends[1]) - (ends[2] - ends[3])) / (12 * step)
    torch.testing.assert_close(second, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_a_bias_learns_also_where_the_weights_do_not():
    layer = gmnn().linear_layers[0]
    layer.weight.requires_grad_(False)
    layer(torch.ones(3, layer.weight.shape[1], dtype=torch.float64)).sum().backward()
    equal(layer.bias.grad, torch.full_like(layer.bias, 3 * BIAS_FACTOR))


def test_pieces_of_the_network_have_their_derivatives():
    generator = torch.Generator().manual_seed(1)
    x, matrix, bias = (torch.randn(n, dtype=torch.float64, generator=generator) for n in ((3, 4), (4, 5), (5,)))
    x.requires_grad_(True)
    check, again = torch.autograd.gradcheck, torch.autograd.gradgradcheck
    for function in (
        lambda x: scaled_product(x, matrix, 0.3, bias, 0.1),
        lambda x: scaled_product(x, matrix, 0.3),
        lambda x: silu(x, with_slope=True),
    ):
        assert check(function, x)
        assert again(function, x)
    value, slope = silu(x, with_slope=True)
    plain = torch.nn.functional.silu(x)
    equal(value, plain)
    equal(slope, torch.autograd.grad(plain.sum(), x)[0])
    equal(scaled_product(x, matrix, 0.3, bias, 0.1), 0.3 * x @ matrix + 0.1 * bias)


@pytest.mark.parametrize("features", ["last_layer", "sketched"])
def test_a_step_without_data_on_the_meta_device_asks_for_none(features):
    """On the meta device whatever would wait for a number, or mix devices, raises."""
    subject = model(features=features, dtype=torch.float32).to("meta")
    batch = make_batch([ethanol(), crystal()], subject.cutoff_A).to(torch.device("meta"))
    positions = batch.positions.requires_grad_(True)
    strain = torch.zeros_like(batch.cells).requires_grad_(True)
    moved = batch.with_positions(positions)
    outcome = subject(moved, strain=strain)
    scalar = outcome.energies.sum() - subject.total_uncertainty(outcome, moved).sum()
    for gradient, like in zip(torch.autograd.grad(scalar, [positions, strain]), (positions, strain), strict=True):
        assert (gradient.shape, gradient.dtype, gradient.device) == (like.shape, like.dtype, like.device)
