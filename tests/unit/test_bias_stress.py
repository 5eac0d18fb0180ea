import numpy as np
import pytest
import torch
from engine import crystal, ethanol, model, slab, zoo
from potential_contract import DERIVATIVE_TOLERANCE, STEP_A, rebuilt, relative_error, slope
from test_bias import case

from pipeline.batching import make_batch
from pipeline.bias import bias_quantity, biased_forces, species_weights, stress_impulse
from pipeline.settings.walkers import BiasSettings
from pipeline.strength import RelativeStrength, empty_bias_state

PAIRS = [(i, j) for i in range(3) for j in range(i, 3)]


def biased(subject, frames, *, strength=None, stress=None, settings=None, **wanted):
    """Forces and virials of frames with their own strengths of force and stress."""
    settings = settings or BiasSettings()
    batch = make_batch(frames, subject.cutoff_A)
    wanted = {"split": False, "virial": True, **wanted}
    return biased_forces(
        subject,
        batch,
        settings=settings,
        strength=None if strength is None else torch.tensor(strength, dtype=torch.float64),
        stress_strength=None if stress is None else torch.tensor(stress, dtype=torch.float64),
        weights=species_weights(settings, batch.numbers),
        **wanted,
    )


def strained(frame, i, j, h):
    """The structure under a symmetric strain of which the elements ij and ji sum to h."""
    grow = np.eye(3)
    grow[i, j] += 0.5 * h
    grow[j, i] += 0.5 * h
    return rebuilt(frame, frame.positions @ grow, frame.cell @ grow)


def by_strain(function, frame, step):
    """(6,) derivatives of a function of a structure by its strain, by finite differences."""
    return np.array([slope(lambda h, i=i, j=j: function(strained(frame, i, j, h)), step) for i, j in PAIRS])


def upper(matrices):
    """The six elements of the only matrix of a batch."""
    return np.array([float(matrices[0, i, j]) for i, j in PAIRS])


@case
def test_bias_stress_is_strength_times_the_strain_derivative_of_the_uncertainty(kind, features, quantity):
    subject = model(kind, features=features)
    settings = BiasSettings(quantity=quantity, species_weights={"Cu": 2.0})  # weights are of forces alone
    # a distance has kinks where the nearest reference changes: stay on one side of them
    step = 0.02 * STEP_A if kind == "distance" else STEP_A

    def uncertainty(frame):
        batch = make_batch([frame], subject.cutoff_A)
        with torch.no_grad():
            return bias_quantity(subject, subject(batch), batch, quantity).item()

    for frame in (crystal(6), slab(6)):
        found = biased(subject, [frame], strength=[0.1], stress=[0.37], settings=settings)
        expected = by_strain(uncertainty, frame, step)
        assert relative_error(upper(found.strain_gradient), expected) < DERIVATIVE_TOLERANCE
        assert relative_error(upper(found.virials - found.plain_virials), 0.37 * expected) < DERIVATIVE_TOLERANCE


def hills(batch, strain):
    """(B,) an energy of positions and strain: springs to the origin, and a function of the strained volume."""
    grow = torch.eye(3, dtype=torch.float64) if strain is None else torch.eye(3, dtype=torch.float64) + strain
    cells = torch.matmul(batch.cells, grow)
    places = batch.positions if strain is None else (batch.positions.unsqueeze(1) @ grow[batch.system]).squeeze(1)
    return 0.2 * batch.sum_atoms(places.square()).sum(dim=1) + 0.5 * torch.cos(0.1 * torch.linalg.det(cells))


@pytest.mark.parametrize("strength", [None, [0.3]], ids=["plain", "biased"])
def test_an_extra_energy_is_added_to_forces_and_virials(strength):
    subject, frame = model(), crystal(6)
    with_hills = biased(subject, [frame], strength=strength, stress=strength, extra=hills)
    without = biased(subject, [frame], strength=strength, stress=strength)

    def energy(other):
        return hills(make_batch([other], subject.cutoff_A), None).item()

    virial = -by_strain(energy, frame, STEP_A)
    assert relative_error(upper(with_hills.virials - without.virials), virial) < DERIVATIVE_TOLERANCE
    pull = torch.from_numpy(-0.4 * frame.positions)
    torch.testing.assert_close(with_hills.forces - without.forces, pull, rtol=1e-9, atol=1e-9)


@case
def test_one_pass_gives_the_virials_of_two_where_force_and_stress_have_one_strength(kind, features, quantity):
    subject, settings = model(kind, features=features), BiasSettings(quantity=quantity)
    frames, both = [crystal(5), slab(5)], torch.tensor([0.1, 0.7], dtype=torch.float64)
    batch = make_batch(frames, subject.cutoff_A)

    def run(stress):
        weights = species_weights(settings, batch.numbers)
        return biased_forces(
            subject,
            batch,
            settings=settings,
            strength=both,
            stress_strength=stress,
            weights=weights,
            split=False,
            virial=True,
        )

    one, two = run(both), run(both.clone())
    assert one.plain_virials is None
    assert two.plain_virials is not None
    torch.testing.assert_close(one.virials, two.virials, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one.forces, two.forces, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("stress", [None, [0.9, 0.2]], ids=["no bias stress", "bias stress"])
@pytest.mark.parametrize("strength", [None, [0.1, 0.7]], ids=["no bias force", "bias force"])
@pytest.mark.parametrize("sampled", [False, True], ids=["fused", "split"])
def test_impulses_of_the_bias_stress_sum_to_that_of_every_step(strength, stress, sampled):
    subject, frames = model(), [crystal(5), slab(5)]
    every = 4

    def run(impulse, split):
        return biased(subject, frames, strength=strength, stress=stress, stress_impulse=impulse, split=split)

    exact = run(1, sampled)
    between, kick = run(0, sampled), run(every, sampled)
    together = (every - 1) * between.virials + kick.virials
    torch.testing.assert_close(together, every * exact.virials, rtol=1e-9, atol=1e-9)
    for found in (between, kick):
        torch.testing.assert_close(found.forces, exact.forces, rtol=1e-9, atol=1e-10)
    if strength is not None and not sampled:
        assert between.plain is None  # one pass


def test_a_strength_measured_on_the_same_sample_gives_the_relative_bias_stress_asked_for():
    subject, frames, tau = model(), [crystal(5), slab(5)], 0.4
    sample = biased(subject, frames, split=True)
    measured = RelativeStrength([empty_bias_state() for _ in frames], BiasSettings())
    measured.record(sample)
    found = biased(subject, frames, stress=(tau * measured.stress()).tolist())
    change, plain = found.virials - found.plain_virials, found.plain_virials
    ratio = torch.linalg.vector_norm(change, dim=(1, 2)) / torch.linalg.vector_norm(plain, dim=(1, 2))
    torch.testing.assert_close(ratio, torch.full_like(ratio, tau), rtol=1e-9, atol=0.0)


def test_weights_that_take_two_passes_anyway_need_no_impulses():
    subject, settings = model(), BiasSettings(species_weights={"Cu": 0.5})
    runs = [
        biased(subject, [crystal(5)], strength=[0.3], stress=[0.8], settings=settings, stress_impulse=impulse)
        for impulse in (0, 1, 5)
    ]
    for found in runs:
        torch.testing.assert_close(found.virials, found.plain_virials + 0.8 * found.strain_gradient)


def test_the_stress_has_impulses_at_the_steps_of_its_clock():
    settings = BiasSettings(stress_every=3)
    assert [stress_impulse(settings, clock) for clock in range(7)] == [3, 0, 0, 3, 0, 0, 3]
    assert [stress_impulse(BiasSettings(every=2), clock) for clock in range(3)] == [1, 1, 1]


def test_without_a_bias_the_virials_are_those_of_the_energy():
    subject, frames = model(), zoo(5)
    found = biased(subject, frames)
    assert found.gradient is found.strain_gradient is None
    assert found.virials is found.plain_virials
    split = biased(subject, frames, split=True)
    torch.testing.assert_close(split.virials, found.virials, rtol=1e-12, atol=1e-12)
    assert split.strain_gradient is not None


def test_virials_of_a_batch_are_those_of_each_walker_alone():
    subject, strength, stress = model(), [0.1, 0.0, 0.7, 1.3], [0.4, 0.2, 0.0, 1.0]
    together = biased(subject, zoo(5), strength=strength, stress=stress).virials
    alone = torch.cat(
        [
            biased(subject, [frame], strength=[a], stress=[b]).virials
            for frame, a, b in zip(zoo(5), strength, stress, strict=True)
        ]
    )
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


def test_virials_are_symmetric_and_absent_unless_asked_for():
    subject = model()
    found = biased(subject, [ethanol(5), crystal(5)], strength=[0.3, 0.3], stress=[0.1, 0.1], extra=hills)
    for matrices in (found.virials, found.plain_virials, found.strain_gradient):
        assert torch.equal(matrices, matrices.transpose(1, 2))
    without = biased(subject, [ethanol(5)], strength=[0.3], virial=False)
    assert without.virials is without.plain_virials is without.strain_gradient is None


@case
def test_biased_forces_never_wait_for_the_device(kind, features, quantity):
    """The meta device has shapes and no numbers: whatever asks for one raises."""
    subject = model(kind, features=features).to("meta")
    batch = make_batch(zoo(5), subject.cutoff_A).to("meta")
    some = torch.ones(4, dtype=torch.float64, device="meta")
    for weights in ({}, {"H": 0.0}):
        settings = BiasSettings(quantity=quantity, species_weights=weights)
        for strength, stress, split in ((None, None, False), (some, some, False), (some, 2.0 * some, True)):
            found = biased_forces(
                subject,
                batch,
                settings=settings,
                strength=strength,
                stress_strength=stress,
                weights=species_weights(settings, batch.numbers),
                split=split,
                virial=True,
            )
            assert found.forces.device.type == found.virials.device.type == "meta"
            assert found.virials.shape == (4, 3, 3)
