"""Live calibration: per group, following a shift, and measured beside what chance explains. By counting on made-up scores of
known distribution, and once through real trainings."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from engine import crystal, ethanol, made_up_calibration, model
from potential_contract import DERIVATIVE_TOLERANCE, STEP_A, rebuilt, relative_error, slope
from scipy.stats import betabinom, binom
from test_training import copper, split_labels, task_for

from pipeline.batching import make_batch
from pipeline.bias import bias_quantity, biased_forces, species_weights
from pipeline.potentials import load, save
from pipeline.records import ModelRef, Scores
from pipeline.settings.training import TrainingSettings
from pipeline.settings.walkers import BiasSettings
from pipeline.train import run_train
from pipeline.training.alarms import coverage_alarms
from pipeline.training.checks import Checks, coverages
from pipeline.training.scoring import score, score_later
from pipeline.uncertainty.band import Evidence, band, correlation_within, effective_count
from pipeline.uncertainty.calibration import ATOMS, LEAST_STRUCTURES, WINDOW, Calibration, Window
from pipeline.uncertainty.points import Points

ALPHA = 0.05
ATOMS_OF = {"H": 8, "C": 3, "O": 1}
SCALES = {"H": 1.0, "C": 4.0, "O": 0.3}


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def structures(rng, count, *, scale=1.0, system="x"):
    """Heavy-tailed scores of structures."""
    scores = scale * np.abs(rng.standard_normal(count)) * np.exp(0.5 * rng.standard_normal(count))
    return Points(scores=scores, groups=np.full(count, system), structures=np.arange(count))


def molecules(rng, count, *, correlation=0.3):
    """Scores of atoms that are alike within a structure, each element on its own scale."""
    names = np.tile(np.repeat(list(ATOMS_OF), list(ATOMS_OF.values())), count)
    rows = np.repeat(np.arange(count), sum(ATOMS_OF.values()))
    normal = np.sqrt(correlation) * rng.standard_normal(count)[rows]
    normal += np.sqrt(1.0 - correlation) * rng.standard_normal(len(rows))
    return Points(scores=np.array([SCALES[name] for name in names]) * np.exp(normal), groups=names, structures=rows)


def checked(quantity, points, calibration):
    """Errors on points whose uncertainty is 1, beside their bounds."""
    groups = points.groups if quantity == "atomic" else ["all"] * len(points)
    bounds = np.array([calibration.factor(quantity, str(group)).value for group in groups])
    return Checks(
        quantity=quantity, errors=points.scores, bounds=bounds, groups=points.groups, structures=points.structures
    )


def fitted(total, atomic, window=None):
    return Calibration.fit(alpha=ALPHA, total=total, atomic=atomic, window=window or Window())


def test_each_element_has_bounds_that_hold_as_promised_where_one_factor_fails(rng):
    own, pooled = [], []
    for _ in range(60):
        calibration = fitted(structures(rng, 40), molecules(rng, 40))
        later = molecules(rng, 20)
        own.append([one.share for one in coverages(calibration, checked("atomic", later, calibration))])
        pooled.append(np.mean(later.of("C").scores <= calibration.factor("atomic").value))
    assert [one.own for one in calibration.factors if one.quantity == "atomic"] == [True] * 4
    spread = np.std(own, axis=0) / np.sqrt(len(own))
    assert (np.mean(own, axis=0) >= 1 - ALPHA - 3 * spread).all()
    assert np.mean(pooled) < 0.85


def test_an_element_with_too_few_atoms_or_structures_takes_the_factor_of_all(rng):
    atomic = molecules(rng, 18)
    calibration = fitted(structures(rng, 18), atomic)
    found = {one.group: one for one in calibration.factors if one.quantity == "atomic"}
    assert [found[name].own for name in ("all", "H", "C", "O")] == [True, True, True, False]
    assert found["O"].value == found["all"].value
    assert (found["O"].count, found["O"].structures, found["O"].exact) == (18, 18, False)
    crowded = fitted(structures(rng, 4), molecules(rng, LEAST_STRUCTURES - 1))
    assert crowded.factor("atomic", "H").count == 8 * (LEAST_STRUCTURES - 1) >= 19
    assert not crowded.factor("atomic", "H").own
    # an element that was never seen
    assert calibration.factor("atomic", "Cu") == found["all"]
    assert calibration.table()[[1, 8, 29]].tolist() == [found[name].value for name in ("H", "O", "all")]


def test_factors_of_systems_are_reported_beside_that_of_all(rng):
    both = structures(rng, 30, system="a").then(structures(rng, 30, scale=5.0, system="b"), 60)
    calibration = fitted(both, molecules(rng, 5))
    a, b, together = (calibration.factor("total", name) for name in ("a", "b", "all"))
    assert a.value < together.value <= b.value
    assert (together.count, a.count, b.count) == (60, 30, 30)


def stream(rng, *, versions, shift):
    """Coverage of each version's bounds on the structures selected by it, with the window and without.

    Calibration begins with two structures and gets one of each ten labels; each version's uncertainty is on its own scale.
    """
    known = structures(rng, 2).scores
    window, held = Window(), []
    for _ in range(versions):
        scale = float(np.exp(0.5 * rng.standard_normal()))
        total = Points(scores=known * scale, groups=np.full(len(known), "x"), structures=np.arange(len(known)))
        live, plain = (fitted(total, molecules(rng, 5), one) for one in (window, Window()))
        selected = structures(rng, 16, scale=shift)
        later = replace(selected, scores=selected.scores * scale)
        held.append([checked("total", later, one).held.mean() for one in (live, plain)])
        window = window.then(checked("total", later, live).points(live), Points.none())
        known = np.concatenate([known, structures(rng, 2).scores])
    return np.array(held)


def test_the_shift_restores_coverage_where_what_is_selected_is_harder_than_what_calibrates(rng):
    held = np.mean([stream(rng, versions=8, shift=3.0)[2:] for _ in range(40)], axis=(0, 1))
    assert held[1] < 0.8
    assert held[0] > 1 - ALPHA - 0.02


def test_bounds_do_not_grow_without_end_where_nothing_shifts(rng):
    held = np.mean([stream(rng, versions=8, shift=1.0)[4:] for _ in range(40)], axis=(0, 1))
    assert 1 - ALPHA - 0.02 < held[0] < 0.99


def test_without_late_labels_there_is_no_shift_and_late_ones_never_narrow_a_bound(rng):
    total, atomic = structures(rng, 30), molecules(rng, 30)
    plain = fitted(total, atomic)
    assert {one.shift for one in plain.factors} == {1.0}
    easy = Window().then(replace(total, scores=0.01 * total.scores), replace(atomic, scores=0.01 * atomic.scores))
    assert fitted(total, atomic, easy).factors == plain.factors
    hard = Window().then(
        replace(total, scores=9.0 * total.scores / plain.scales["total"]),
        replace(atomic, scores=9.0 * atomic.scores / plain.scales["atomic"]),
    )
    for one, before in zip(fitted(total, atomic, hard).factors, plain.factors, strict=True):
        assert one.shift == pytest.approx(9.0)
        assert one.value == pytest.approx(9.0 * before.value)


def test_scores_do_not_depend_on_the_factors_that_are_taken_out_of_them(rng):
    calibration = fitted(structures(rng, 30), molecules(rng, 30))
    later = molecules(rng, 10)
    one, other = (checked("atomic", later, c).points(c).scores for c in (calibration, calibration.times(0.2)))
    np.testing.assert_allclose(one, later.scores / calibration.scales["atomic"], rtol=1e-12)
    np.testing.assert_allclose(other, one, rtol=1e-12)


def test_the_window_keeps_the_last_structures_and_the_distribution_of_their_atoms(rng):
    window, all_scores = Window(), []
    for _ in range(5):
        later = structures(rng, 25)
        all_scores += later.scores.tolist()
        crowd = Points(scores=rng.exponential(size=900), groups=np.full(900, "H"), structures=np.repeat([0, 1, 2], 300))
        window = window.then(later, crowd)
    assert window.total.scores.tolist() == all_scores[-WINDOW:]
    assert window.total.structures.tolist() == list(range(WINDOW))
    assert len(window.atomic) == 15 * ATOMS
    assert window.atomic.spread == 15
    assert np.median(window.atomic.scores) == pytest.approx(np.log(2.0), rel=0.15)
    broken = structures(rng, 3)
    broken.scores[1] = np.inf
    assert len(Window().then(broken, Points.none()).total) == 2


@pytest.mark.parametrize(("calibrated", "later"), [(2, 16), (19, 1), (40, 30), (99, 60)])
def test_the_band_of_structures_is_that_of_the_beta_binomial(calibrated, later):
    rank = min(calibrated, int(np.ceil((calibrated + 1) * (1 - ALPHA) - 1e-9)))
    exact = betabinom(later, rank, calibrated + 1 - rank)
    low, high = band(later, later, Evidence.of(calibrated, calibrated, ALPHA))
    assert (low * later, high * later) == pytest.approx((exact.ppf(0.005), exact.ppf(0.995)))


def test_atoms_that_are_alike_count_as_few(rng):
    for correlation, low, high in ((0.0, 0.0, 0.2), (0.5, 0.35, 0.85), (1.0, 0.95, 1.0)):
        atoms = molecules(rng, 40, correlation=correlation).of("H")
        assert low <= correlation_within(atoms.scores, atoms.structures) <= high
    assert effective_count(80, 8, 0.0) == 80
    assert effective_count(80, 8, 1.0) == 10
    assert correlation_within(np.arange(8.0), np.zeros(8, dtype=int)) == 1.0  # of one structure nothing is known


@pytest.mark.parametrize(("calibrated", "correlation"), [(8, 0.3), (30, 0.0), (30, 0.8)])
def test_a_right_model_is_left_alone_and_one_that_claims_too_much_is_found(calibrated, correlation):
    rng, draws = np.random.default_rng(calibrated), 100
    false, caught = [], []
    for _ in range(draws):
        calibration = fitted(structures(rng, calibrated), molecules(rng, calibrated, correlation=correlation))
        later = structures(rng, 40), molecules(rng, 40, correlation=correlation)
        for record, claimed in ((false, calibration), (caught, calibration.times(0.2))):
            found = [
                c
                for q, p in zip(("total", "atomic"), later, strict=True)
                for c in coverages(claimed, checked(q, p, claimed))
            ]
            record.append([one.is_off for one in found if one.group in ("all", "H")])
    # as many false alarms as 1 % may give
    assert (binom.sf(np.sum(false, axis=0) - 1, draws, 0.01) > 1e-3).all()
    # eight structures do not promise more than that two thirds hold
    assert np.mean(caught, axis=0).min() > (0.9 if calibrated > 19 else 0.5)


def test_nothing_is_claimed_of_bounds_that_were_not_calibrated(rng):
    nothing = Calibration.none()
    found = coverages(nothing, checked("total", structures(rng, 40, scale=9.0), nothing))
    assert {(one.low, one.high, one.is_off) for one in found} == {(0.0, 1.0, False)}


def test_an_alarm_names_model_group_and_numbers(rng):
    calibration = fitted(structures(rng, 60), molecules(rng, 30)).times(0.2)
    later = structures(rng, 20, system="x").then(structures(rng, 20, system="y"), 40)
    groups = coverages(calibration, checked("total", later, calibration))
    scores = Scores(count=40, energy_rmse=0.1, energy_mae=0.1, force_rmse=0.1, force_mae=0.1, groups=groups)
    alarms = coverage_alarms(7, scores)
    group = scores.groups[1]
    expected = (
        f"model v0007: {100 * group.share:.3g} % of 20 energy bounds held on later labels of system x, chance explains"
    )
    assert [alarm.text.startswith("model v0007: ") for alarm in alarms] == [True] * 3
    assert any(alarm.text.startswith(expected) for alarm in alarms)
    assert all("labels.splits.calibration" in alarm.remedy for alarm in alarms)
    one = replace(scores, groups=coverages(calibration, checked("total", structures(rng, 40), calibration)))
    assert len(coverage_alarms(7, one)) == 1  # the only system is all there is


def test_a_model_file_keeps_factors_and_window_and_an_old_one_its_single_factor(tmp_path, rng):
    subject = model()
    window = Window().then(structures(rng, 20), molecules(rng, 20))
    subject.estimator.calibrate(fitted(structures(rng, 30), molecules(rng, 30), window))
    again = load(save(subject, tmp_path / "model.pt").path)
    assert again.estimator.calibration.plain() == subject.estimator.calibration.plain()
    assert again.estimator.calibration.factors == subject.estimator.calibration.factors
    assert torch.equal(again.estimator.atomic_factor, subject.estimator.atomic_factor)
    payload = torch.load(tmp_path / "model.pt", weights_only=True)
    payload["estimator"]["state"]["atomic_factor"] = torch.tensor(2.5, dtype=torch.float64)
    del payload["estimator"]["config"]["calibration"]
    torch.save(payload, tmp_path / "old.pt")
    assert set(load(tmp_path / "old.pt").estimator.atomic_factor.tolist()) == {2.5}


@pytest.mark.parametrize("kind", ["posterior", "distance"])
def test_the_bias_climbs_the_sum_of_bounds_with_the_factor_of_each_element(kind):
    subject, plain = model(kind), model(kind)
    plain.estimator.calibrate(made_up_calibration(total=1.0, atomic=1.0))
    settings, tau_s = BiasSettings(quantity="atomic"), torch.tensor([0.4], dtype=torch.float64)
    step = 0.02 * STEP_A if kind == "distance" else STEP_A
    for frame in (ethanol(6), crystal(6)):
        factors = np.array([{1: 1.1, 29: 3.7}.get(int(number), 2.3) for number in frame.numbers])
        said = subject.evaluate([frame]).atomic_uncertainty
        np.testing.assert_allclose(said, factors * plain.evaluate([frame]).atomic_uncertainty, rtol=1e-12)
        batch = make_batch([frame], subject.cutoff_A)
        weights = species_weights(settings, batch.numbers)
        found = biased_forces(subject, batch, settings=settings, strength=tau_s, weights=weights, split=True)

        def at(shift, axis, frame=frame):
            positions = frame.positions.copy()
            positions[-1, axis] += shift
            moved = make_batch([rebuilt(frame, positions)], subject.cutoff_A)
            return bias_quantity(subject, subject(moved), moved, "atomic").item()

        expected = 0.4 * np.array([slope(lambda h, c=c: at(h, c), step) for c in range(3)])
        assert relative_error((found.forces - found.plain)[-1].numpy(), expected) < DERIVATIVE_TOLERANCE


def test_trainings_hand_on_the_window_and_say_when_bounds_do_not_hold(tmp_path):
    labels, fresh = split_labels(50), copper(20, seed=3)
    brief = TrainingSettings(epochs=2, warm_epochs=1, gate=None)
    first = run_train(task_for(tmp_path, labels, settings=brief))
    old = load(first.file.path)
    assert len(old.estimator.calibration.window.total) == 0

    def next_of(file, name):
        parent = ModelRef(version=1, file=file)
        task = task_for(tmp_path, labels + fresh, name=name, version=2, parent=parent, fresh=fresh, settings=brief)
        return run_train(task)

    second = next_of(first.file, "t2")
    # the parent is measured with its own factors: the labels have not touched them
    assert second.fresh == score(old, fresh)
    window = load(second.file.path).estimator.calibration.window
    assert window.total.scores.tolist() == score_later(old, fresh)[1].total.scores.tolist()
    assert (window.total.spread, window.atomic.spread, window.atomic.names) == (20, 20, ["Cu"])
    old.estimator.calibrate(old.estimator.calibration.times(0.05))
    third = next_of(save(old, tmp_path / "boastful.pt"), "t3")
    assert any("energy bounds held" in remark.text for remark in third.remarks)
    assert any("force bounds held" in remark.text for remark in third.remarks)
    # the next model is not misled by factors that were wrong
    assert [one.value for one in third.factors] == pytest.approx([one.value for one in second.factors], rel=1e-5)
