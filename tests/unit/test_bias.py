import numpy as np
import pytest
import torch
from ase import Atoms
from engine import crystal, ethanol, model, slab, water, zoo
from potential_contract import DERIVATIVE_TOLERANCE, STEP_A, rebuilt, relative_error, slope

from pipeline.batching import make_batch
from pipeline.bias import bias_quantity, biased_forces, species_weights
from pipeline.frames import Frame
from pipeline.settings.walkers import BiasSettings
from pipeline.strength import RelativeStrength, empty_bias_state

CASES = [
    (kind, features, quantity)
    for kind in ("posterior", "distance", "committee")
    for features in ("last_layer", "sketched")
    for quantity in ("total", "atomic")
    if not (kind == "committee" and quantity == "atomic")
]
case = pytest.mark.parametrize(("kind", "features", "quantity"), CASES)


def forces_of(subject, frames, *, tau_s, settings=None, split=True, weights=None):
    settings = settings or BiasSettings()
    batch = make_batch(frames, subject.cutoff_A)
    strength = None if tau_s is None else torch.as_tensor(tau_s, dtype=torch.float64).expand(len(frames))
    weights = species_weights(settings, batch.numbers) if weights is None else weights
    return biased_forces(subject, batch, settings=settings, strength=strength, weights=weights, split=split)


def uncertainty(subject, frame, quantity):
    batch = make_batch([frame], subject.cutoff_A)
    return bias_quantity(subject, subject(batch), batch, quantity).item()


@case
def test_bias_force_is_strength_times_weight_times_the_gradient_of_the_uncertainty(kind, features, quantity):
    subject = model(kind, features=features)
    settings = BiasSettings(quantity=quantity, species_weights={"H": 0.3, "Cu": 2.0})
    tau_s = 0.37
    # a distance has kinks where the nearest reference changes: stay on one side of them
    step = 0.02 * STEP_A if kind == "distance" else STEP_A
    for frame in (ethanol(6), crystal(6)):
        found = forces_of(subject, [frame], tau_s=tau_s, settings=settings)
        chosen = [(a, c) for a in (0, len(frame) - 1) for c in range(3)]

        def at(shift, atom, axis, frame=frame):
            positions = frame.positions.copy()
            positions[atom, axis] += shift
            return uncertainty(subject, rebuilt(frame, positions), quantity)

        weight = {1: 0.3, 29: 2.0}
        expected = np.array(
            [
                tau_s * weight.get(int(frame.numbers[a]), 1.0) * slope(lambda h, a=a, c=c: at(h, a, c), step)
                for a, c in chosen
            ]
        )
        bias = np.array([float(found.forces[a, c] - found.plain[a, c]) for a, c in chosen])
        assert relative_error(bias, expected) < DERIVATIVE_TOLERANCE


@pytest.mark.parametrize(
    ("kind", "quantity"), [("posterior", "total"), ("posterior", "atomic"), ("committee", "total")]
)
def test_the_quantity_is_the_calibrated_uncertainty(kind, quantity):
    subject = model(kind)
    said = subject.evaluate(zoo(5))
    for k, frame in enumerate(zoo(5)):
        atoms = said.system == k
        expected = said.total_uncertainty[k] if quantity == "total" else said.atomic_uncertainty[atoms].sum()
        assert uncertainty(subject, frame, quantity) == pytest.approx(expected, rel=1e-9)


@case
def test_one_fused_backward_pass_gives_the_forces_of_two(kind, features, quantity):
    subject = model(kind, features=features)
    settings = BiasSettings(quantity=quantity)
    tau_s = [0.1, 0.0, 0.7, 1.3]
    fused = forces_of(subject, zoo(5), tau_s=tau_s, settings=settings, split=False)
    split = forces_of(subject, zoo(5), tau_s=tau_s, settings=settings, split=True)
    assert fused.plain is None
    assert split.plain is not None
    torch.testing.assert_close(fused.forces, split.forces, rtol=1e-9, atol=1e-10)


def test_the_bias_of_a_batch_is_that_of_each_walker_alone():
    subject, tau_s = model(), [0.1, 0.0, 0.7, 1.3]
    together = forces_of(subject, zoo(5), tau_s=tau_s).forces
    alone = torch.cat([forces_of(subject, [f], tau_s=t).forces for f, t in zip(zoo(5), tau_s, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_elements_of_weight_zero_are_unbiased_to_the_bit(dtype):
    subject = model(dtype=dtype)
    settings = BiasSettings(species_weights={"H": 0.0})
    for split in (False, True):
        biased = forces_of(subject, [ethanol(5), water(5)], tau_s=0.4, settings=settings, split=split)
        plain = forces_of(subject, [ethanol(5), water(5)], tau_s=0.0, settings=settings, split=False)
        hydrogen = biased.batch.numbers == 1
        assert torch.equal(biased.forces[hydrogen], plain.forces[hydrogen])
        assert not torch.equal(biased.forces[~hydrogen], plain.forces[~hydrogen])


def test_without_a_bias_or_with_a_strength_of_zero_the_forces_are_plain_to_the_bit():
    subject = model(dtype=torch.float32)
    plain = forces_of(subject, zoo(5), tau_s=None, split=False)
    assert plain.gradient is None
    assert plain.plain is plain.forces
    for tau_s in (None, 0.0):
        split = forces_of(subject, zoo(5), tau_s=tau_s, split=True)
        assert torch.equal(plain.forces, split.forces)
        assert split.gradient is not None


def test_a_walker_of_strength_zero_among_biased_ones_has_the_plain_forces_to_rounding():
    subject = model()
    plain = forces_of(subject, zoo(5), tau_s=None, split=False)
    fused = forces_of(subject, zoo(5), tau_s=[0.4, 0.0, 0.4, 0.0], split=False)
    alone = (fused.batch.system == 1) | (fused.batch.system == 3)
    torch.testing.assert_close(fused.forces[alone], plain.forces[alone], rtol=1e-10, atol=1e-11)


@case
def test_a_strength_measured_on_the_same_sample_gives_the_relative_strength_asked_for(kind, features, quantity):
    subject = model(kind, features=features)
    settings = BiasSettings(quantity=quantity, species_weights={"H": 0.0})
    frames, tau = zoo(5), 0.25
    sample = forces_of(subject, frames, tau_s=0.0, settings=settings)
    strength = RelativeStrength([empty_bias_state() for _ in frames], settings)
    strength.record(sample)
    biased = forces_of(subject, frames, tau_s=tau * strength.force(), settings=settings)
    for k in range(len(frames)):
        own = biased.batch.system == k
        ratio = (biased.forces - biased.plain)[own].norm() / biased.plain[own].norm()
        assert ratio.item() == pytest.approx(tau, rel=1e-9)


def test_bias_forces_are_finite_at_a_training_structure_and_for_an_isolated_atom():
    lone = Frame.from_atoms(Atoms("OH", positions=[[0, 0, 0], [0, 0, 50.0]]), system="test")
    for kind in ("posterior", "distance", "committee"):
        subject = model(kind, training=[lone, *zoo(5)])
        for quantity in ("total", "atomic"):
            if kind == "committee" and quantity == "atomic":
                continue
            found = forces_of(subject, [lone, *zoo(5)], tau_s=0.5, settings=BiasSettings(quantity=quantity))
            assert torch.isfinite(found.forces).all()


def test_the_bias_does_not_push_a_molecule_or_turn_it():
    frame = ethanol(5)
    bias = forces_of(model(), [frame], tau_s=1.0)
    push = (bias.forces - bias.plain).numpy()
    assert np.abs(push).max() > 0
    assert np.abs(push.sum(axis=0)).max() < 1e-9
    assert np.abs(np.cross(frame.positions, push).sum(axis=0)).max() < 1e-9


def test_the_bias_climbs_the_uncertainty():
    subject = model()
    for frame in (ethanol(5), slab(5), crystal(5)):
        bias = forces_of(subject, [frame], tau_s=1.0)
        push = (bias.forces - bias.plain).numpy()
        uphill = rebuilt(frame, frame.positions + 1e-3 * push / np.abs(push).max())
        assert uncertainty(subject, uphill, "total") > uncertainty(subject, frame, "total")


def test_a_committee_makes_no_features_for_its_bias(monkeypatch):
    subject, asked = model("committee"), []
    forward = type(subject).forward

    def watched(self, batch, *, strain=None, features=True):
        asked.append(features)
        return forward(self, batch, strain=strain, features=features)

    monkeypatch.setattr(type(subject), "forward", watched)
    for split in (True, False):
        assert torch.isfinite(forces_of(subject, [water(3)], tau_s=0.2, split=split).forces).all()
    assert asked == [False, False]
