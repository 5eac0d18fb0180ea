"""Uncertainty: closed formulas by brute force, gradients by finite differences, coverage by counting."""

import math

import numpy as np
import pytest
import torch
from engine import made_up_calibration
from scipy.stats import binom

from pipeline.errors import TaskError
from pipeline.uncertainty.committee import committee_atomic, committee_total
from pipeline.uncertainty.conformal import Factor, conformal_factor, conformal_scores
from pipeline.uncertainty.distance import Distance, farthest_points
from pipeline.uncertainty.estimator import Estimator
from pipeline.uncertainty.features import SKETCHES, LinearShape, fold
from pipeline.uncertainty.posterior import Posterior

SIGMA = 0.01
NUMBERS = torch.tensor([1, 8, 29, 8])


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def numerical_gradient(function, x, step=1e-6):
    gradient = torch.zeros_like(x)
    for k in range(x.numel()):
        shift = torch.zeros_like(x).view(-1)
        shift[k] = step
        shift = shift.view_as(x)
        gradient.view(-1)[k] = (function(x + shift).sum() - function(x - shift).sum()) / (2 * step)
    return gradient


def brute_force_posterior(train, queries, sigma):
    c = np.mean(np.sum(train**2, axis=1)) ** -0.5
    x, q = c * train, c * queries
    inverse = np.linalg.inv(x.T @ x + sigma**2 * np.eye(x.shape[1]))
    return sigma**2 * q @ inverse @ q.T


def test_posterior_equals_its_closed_formula(rng):
    train, queries = rng.normal(size=(40, 12)), rng.normal(size=(9, 12))
    expected = brute_force_posterior(train, queries, SIGMA)
    posterior = Posterior.fit(torch.from_numpy(train), sigma=SIGMA)
    rows = posterior.transformed(torch.from_numpy(queries)).numpy()
    np.testing.assert_allclose(rows @ rows.T, expected, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(posterior(torch.from_numpy(queries)).numpy() ** 2, np.diag(expected), rtol=1e-9)


def test_posterior_knows_less_of_directions_outside_the_training_set(rng):
    basis = np.linalg.qr(rng.normal(size=(20, 20)))[0]
    train = rng.normal(size=(30, 5)) @ basis[:5]
    posterior = Posterior.fit(torch.from_numpy(train), sigma=SIGMA)
    inside, outside = posterior(torch.from_numpy(np.stack([basis[0], basis[10]]))).tolist()
    assert outside > 50 * inside


def test_posterior_of_a_training_point_shrinks_with_every_repetition_of_it(rng):
    one = torch.from_numpy(rng.normal(size=(1, 6)))
    said = [float(Posterior.fit(one.repeat(n, 1), sigma=SIGMA)(one)) for n in (1, 10, 100)]
    c = float(one.square().sum()) ** -0.5
    np.testing.assert_allclose(
        said, [SIGMA / math.sqrt(n + SIGMA**2) * c * float(one.norm()) for n in (1, 10, 100)], rtol=1e-6
    )


def test_posterior_does_not_change_when_all_features_are_scaled_or_rotated(rng):
    train, queries = torch.from_numpy(rng.normal(size=(30, 8))), torch.from_numpy(rng.normal(size=(4, 8)))
    rotation = torch.from_numpy(np.linalg.qr(rng.normal(size=(8, 8)))[0])
    u = Posterior.fit(train, sigma=SIGMA)(queries)
    torch.testing.assert_close(Posterior.fit(37.0 * train, sigma=SIGMA)(37.0 * queries), u)
    torch.testing.assert_close(Posterior.fit(train @ rotation, sigma=SIGMA)(queries @ rotation), u)


def test_posterior_in_single_precision_is_close_to_double(rng):
    # strongly correlated features, as gradients are
    train = torch.from_numpy(1.0 + 0.01 * rng.normal(size=(500, 64)))
    posterior = Posterior.fit(train, sigma=SIGMA)
    queries = train[:20] + 0.01
    torch.testing.assert_close(posterior(queries.float()).double(), posterior(queries), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["posterior", "distance"])
def test_gradient_of_feature_uncertainties_is_the_finite_difference(rng, kind):
    train, queries = torch.from_numpy(rng.normal(size=(25, 6))), torch.from_numpy(rng.normal(size=(5, 6)))
    estimator = Estimator.fit(kind, train, train, sigma=SIGMA)
    for function in (estimator.total, lambda at: estimator.atomic(at, torch.tensor([1, 6, 8, 29, 1]))):
        x = queries.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(function(x).sum(), x)
        torch.testing.assert_close(gradient, numerical_gradient(function, queries), rtol=1e-5, atol=1e-7)


def test_gradients_are_finite_where_the_uncertainty_is_zero(rng):
    train = torch.from_numpy(rng.normal(size=(25, 6)))
    for part, at in (
        (Posterior.fit(train, sigma=SIGMA), torch.zeros(1, 6).double()),
        (Distance.fit(train, max_references=99), train[:3]),
    ):
        x = at.clone().requires_grad_(True)
        u = part(x)
        u.sum().backward()
        assert float(u.detach().abs().max()) < 1e-12
        assert bool(torch.isfinite(x.grad).all())
    energies = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    committee_total(energies, torch.tensor([4, 5])).sum().backward()
    assert bool(torch.isfinite(energies.grad).all())


def test_distance_is_the_nearest_training_feature_by_brute_force(rng):
    train, queries = rng.normal(size=(50, 5)), rng.normal(size=(11, 5))
    c = np.mean(np.sum(train**2, axis=1)) ** -0.5
    expected = c * np.min(np.linalg.norm(queries[:, None] - train[None], axis=2), axis=1)
    found = Distance.fit(torch.from_numpy(train), max_references=1000)(torch.from_numpy(queries))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_thinning_by_farthest_points_covers_all_features(rng):
    features = torch.from_numpy(rng.normal(size=(200, 3)))
    taken = features[farthest_points(features, 40)]
    between = torch.cdist(taken, taken) + 1e9 * torch.eye(40, dtype=torch.float64)
    assert float(torch.cdist(features, taken).min(dim=1).values.max()) <= float(between.min()) + 1e-12
    assert len(Distance.fit(features, max_references=40).references) == 40


def test_thinning_keeps_every_feature_when_they_are_few(rng):
    features = torch.from_numpy(rng.normal(size=(6, 3)))
    assert sorted(farthest_points(features, 10).tolist()) == list(range(6))


def test_committee_is_the_spread_of_its_members(rng):
    energies, forces, sizes = rng.normal(size=(4, 3)), rng.normal(size=(4, 7, 3)), np.array([2, 3, 2])
    np.testing.assert_allclose(
        committee_total(torch.from_numpy(energies), torch.from_numpy(sizes)), np.std(energies / sizes, axis=0)
    )
    np.testing.assert_allclose(
        committee_atomic(torch.from_numpy(forces)), np.sqrt(np.var(forces, axis=0).sum(axis=1)), rtol=1e-12
    )


def test_committee_of_equal_members_knows_everything():
    forces = torch.ones(3, 5, 3, dtype=torch.float64)
    assert float(committee_atomic(forces).abs().max()) == 0.0


LAYERS = [LinearShape(70, 40, 0.3, 0.1), LinearShape(40, 20, 0.2, 0.1), LinearShape(20, 1, 0.5, 0.1)]


def inputs_and_deltas(rng):
    """Of two atoms that have something in common, as real ones do."""
    xs = [torch.from_numpy(rng.normal(size=(2, layer.n_in)) + 0.7) for layer in LAYERS]
    deltas = [torch.from_numpy(rng.normal(size=(2, layer.n_out)) + 0.3) for layer in LAYERS]
    return xs, deltas


def draws(projection, xs, deltas, seeds, dimension=64):
    """(seeds, 2, 2) inner products of sketches."""
    sketches = [SKETCHES[projection](LAYERS, dimension, seed) for seed in range(seeds)]
    return torch.stack([(f := sketch(xs, deltas)) @ f.T for sketch in sketches])


@pytest.mark.parametrize("projection", ["structured", "gaussian"])
@pytest.mark.parametrize("dimension", [16, 50, 64])
def test_sketched_inner_products_estimate_those_of_full_gradients(rng, projection, dimension):
    xs, deltas = inputs_and_deltas(rng)
    exact = torch.zeros(2, 2, dtype=torch.float64)
    for layer, x, delta in zip(LAYERS, xs, deltas, strict=True):
        z = torch.cat([layer.factor * x, torch.full((2, 1), layer.constant, dtype=torch.float64)], dim=1)
        exact += (z @ z.T) * (delta @ delta.T)
    found = draws(projection, xs, deltas, 400, dimension)
    error = (found.mean(dim=0) - exact).abs() / (found.std(dim=0) / math.sqrt(len(found)))
    assert float(error.max()) < 4.0


def test_structured_projections_scatter_no_more_than_gaussian_ones(rng):
    xs, deltas = inputs_and_deltas(rng)
    spread = {kind: draws(kind, xs, deltas, 400).std(dim=0) for kind in ("structured", "gaussian")}
    assert bool((spread["structured"] < 1.1 * spread["gaussian"]).all())


def convolved(sketch, xs, deltas):
    """A structured sketch as a graph of torch's own operations."""
    total = torch.zeros_like(xs[0][:, :1])
    for k, (x, delta) in enumerate(zip(xs, deltas, strict=True)):
        spectrum = torch.fft.rfft(fold(delta, sketch.signs(k, x.dtype)[2], sketch.dimension))
        total = total + torch.fft.irfft(torch.fft.rfft(sketch.folded(k, x)) * spectrum, n=sketch.dimension)
    return total


@pytest.mark.parametrize("dimension", [16, 50, 64])
def test_structured_sketches_have_the_derivatives_of_what_they_are_made_of(rng, dimension):
    sketch = SKETCHES["structured"](LAYERS, dimension, 3)
    tensors = [t.requires_grad_(True) for part in inputs_and_deltas(rng) for t in part]
    found, expected = sketch(tensors[:3], tensors[3:]), convolved(sketch, tensors[:3], tensors[3:])
    torch.testing.assert_close(found, expected)
    direction = torch.from_numpy(rng.normal(size=found.shape))
    slopes = [torch.autograd.grad((f * direction).sum(), tensors, retain_graph=True) for f in (found, expected)]
    bent = [torch.autograd.grad((f * direction).sum(), tensors, create_graph=True) for f in (found, expected)]
    for one, other, again in zip(*slopes, bent[0], strict=True):
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(again, other)
    seconds = [torch.autograd.grad(sum(s.square().sum() for s in one), tensors) for one in bent]
    for one, other in zip(*seconds, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("projection", ["structured", "gaussian"])
def test_sketch_follows_from_its_seed_and_is_not_stored(rng, projection):
    xs, deltas = inputs_and_deltas(rng)
    first, again, other = (SKETCHES[projection](LAYERS, 16, seed) for seed in (5, 5, 6))
    assert first.state_dict() == {}
    xs, deltas = [x.float() for x in xs], [d.float() for d in deltas]
    assert torch.equal(first(xs, deltas), again(xs, deltas))
    assert not torch.equal(first(xs, deltas), other(xs, deltas))


def test_conformal_factor_is_the_ranked_score(rng):
    residuals, uncertainties = rng.exponential(size=99), 0.5 + rng.random(99)
    scores = np.sort(residuals / uncertainties)
    # ⌈100 · 0.95⌉ = 95
    assert conformal_factor(conformal_scores(residuals, uncertainties), 0.05) == Factor(
        value=scores[94], count=99, exact=True
    )


def test_conformal_factor_needs_nineteen_points_for_five_percent(rng):
    scores = rng.exponential(size=19)
    enough, few = (conformal_factor(scores[:n], 0.05) for n in (19, 18))
    assert enough == Factor(value=scores.max(), count=19, exact=True)
    assert few == Factor(value=scores[:18].max(), count=18, exact=False)
    assert conformal_factor(np.zeros(0), 0.05) == Factor(value=1.0, count=0, exact=False)


def test_conformal_factor_of_an_uncertainty_of_zero_is_finite():
    assert math.isfinite(conformal_factor(conformal_scores(np.ones(30), np.zeros(30)), 0.05).value)


@pytest.mark.parametrize(("n", "alpha"), [(19, 0.05), (60, 0.1), (200, 0.05)])
def test_calibrated_bounds_hold_as_often_as_promised_on_exchangeable_data(n, alpha):
    rng = np.random.default_rng(n)
    hits, tests, draws = 0, 50, 200
    per_draw = []
    for _ in range(draws):
        uncertainties = 0.1 + rng.random(n + tests)
        residuals = uncertainties * rng.standard_t(3, size=n + tests).__abs__()
        factor = conformal_factor(conformal_scores(residuals[:n], uncertainties[:n]), alpha)
        per_draw.append(np.mean(residuals[n:] <= factor.value * uncertainties[n:]))
        hits += int(residuals[n] <= factor.value * uncertainties[n])
    # one test point per draw is an exact Bernoulli trial of probability >= 1 − α
    assert binom.cdf(hits, draws, 1 - alpha) > 1e-3
    # and not far too wide: its expectation is at most 1 − α + 1/(n+1)
    spread = np.std(per_draw) / math.sqrt(draws)
    assert 1 - alpha - 4 * spread <= np.mean(per_draw) <= 1 - alpha + 1 / (n + 1) + 4 * spread


@pytest.mark.parametrize("kind", ["posterior", "distance", "committee"])
def test_estimator_survives_its_state_dict(rng, kind):
    structures = torch.from_numpy(rng.normal(size=(12, 6))).float()
    atoms = torch.from_numpy(rng.normal(size=(60, 6))).float()
    estimator = Estimator.fit(kind, structures, atoms, sigma=SIGMA, max_references=30)
    estimator.calibrate(made_up_calibration(total=2.5, atomic=0.5, of_elements={"O": 0.7}))
    again = Estimator.from_config(estimator.config(), estimator.state_dict())
    assert again.calibration.plain() == estimator.calibration.plain()
    assert again.total_factor == 2.5
    assert again.atomic_factor[[1, 8, 29]].tolist() == [0.5, 0.7, 0.5]
    assert again.needs_forces == (kind == "committee")
    x = torch.from_numpy(rng.normal(size=(4, 6))).float()
    assert torch.equal(again.kernel(x), estimator.kernel(x))
    if kind != "committee":
        assert torch.equal(again.total(x), estimator.total(x))
        assert torch.equal(again.atomic(x, NUMBERS), estimator.atomic(x, NUMBERS))


def test_calibration_multiplies_the_uncertainty(rng):
    x = torch.from_numpy(rng.normal(size=(20, 4)))
    estimator = Estimator.fit("posterior", x, x, sigma=SIGMA)
    numbers = torch.tensor([1, 8]).repeat(10)
    total, atomic = estimator.total(x), estimator.atomic(x, numbers)
    estimator.calibrate(made_up_calibration(total=3.0, atomic=7.0, of_elements={"O": 2.0}))
    torch.testing.assert_close(estimator.total(x), 3.0 * total)
    torch.testing.assert_close(estimator.atomic(x, numbers), torch.tensor([7.0, 2.0]).double().repeat(10) * atomic)
    # the kernel is not calibrated
    torch.testing.assert_close(estimator.kernel(x).norm(dim=1), total)


def test_a_committee_refuses_to_judge_features(rng):
    x = torch.from_numpy(rng.normal(size=(5, 4)))
    with pytest.raises(TaskError):
        Estimator.fit("committee", x, x, sigma=SIGMA).total(x)
