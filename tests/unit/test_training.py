"""Training: the loss by hand, the same gradient as the general path, what a fit must reach, and what the task promises."""

import json
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT

from pipeline.batching import make_batch
from pipeline.frames import Frame
from pipeline.potentials import load
from pipeline.potentials.base import differentiate
from pipeline.potentials.geometry import differentiate_fixed, fix_geometry
from pipeline.potentials.gmnn import GMNN, FeatureSpec
from pipeline.potentials.sweeps import Sweeps
from pipeline.ranks import Ranks
from pipeline.records import Label, ModelRef, Split, Status, TrainTask
from pipeline.settings.potential import GMNNSettings
from pipeline.settings.training import LearningRates, LossSettings, TrainingSettings
from pipeline.settings.uncertainty import CommitteeUncertaintySettings, FeatureUncertaintySettings
from pipeline.settings.walkers import WalkerSettings
from pipeline.shards import write_labels
from pipeline.train import run_train
from pipeline.training import dataset
from pipeline.training.dataset import LabelSet
from pipeline.training.energy_scale import composition_offsets, energy_unit
from pipeline.training.loss import loss, loss_gradient
from pipeline.training.scoring import score
from pipeline.training.trainer import Outcome, Schedule, Trainer

POTENTIAL = GMNNSettings(cutoff_A=4.0, gaussians=5, channels=3, hidden=(24, 24))
QUICK = TrainingSettings(epochs=10, warm_epochs=5, batch=4)


def copper(count, *, seed=0, split=Split.TRAIN, rattle_A=0.1, atoms=None):
    """Rattled copper labelled by EMT, with stress."""
    labels = []
    for k in range(count):
        one = (bulk("Cu", cubic=True) if atoms is None else atoms).copy()
        one.rattle(rattle_A, seed=1000 * seed + k)
        one.calc = EMT()
        labels.append(
            Label(
                frame=Frame.from_atoms(one, system="cu"),
                energy=float(one.get_potential_energy()),
                forces=one.get_forces(),
                stress=one.get_stress() if one.pbc.all() else None,
                split=split,
                round=0,
            )
        )
    return labels


def mixed_labels():
    """Different sizes, elements and periodicity."""
    gold = bulk("Au", cubic=True)
    alloy = bulk("Cu", cubic=True)
    alloy.symbols[0] = "Au"
    cluster = bulk("Cu", cubic=True).repeat((2, 1, 1))
    cluster.pbc = False
    return copper(2) + copper(2, atoms=gold) + copper(2, atoms=alloy) + copper(2, atoms=cluster)


def potential_for(labels, *, seed=0, settings=POTENTIAL, dtype=torch.float32):
    elements = sorted({int(z) for label in labels for z in label.frame.numbers})
    potential = GMNN(settings, elements, FeatureSpec(), torch.Generator().manual_seed(seed)).to(dtype)
    potential.offsets, potential.unit_energy = potential.offsets.double(), potential.unit_energy.double()
    offsets = torch.from_numpy(composition_offsets(labels, potential.elements))
    potential.set_energy_scale(offsets_eV=offsets, unit_eV=energy_unit(labels))
    return potential


def trained(labels, validation, *, settings=QUICK, epochs=40, seed=0):
    potential = potential_for(labels, seed=seed)
    sets = LabelSet(labels, potential), LabelSet(validation, potential) if validation else None
    rows = []
    trainer = Trainer(potential, *sets, settings=settings, seed=5, report=rows.append)
    return potential, trainer.run(Schedule(epochs=epochs, rate=1.0)), rows


def test_minibatches_give_the_energies_forces_and_virials_of_the_general_path():
    labels = mixed_labels()
    potential = potential_for(labels, dtype=torch.float64)
    chosen = np.array([5, 0, 7, 2])
    batch = make_batch([labels[k].frame for k in chosen], potential.cutoff_A)
    expected = differentiate(potential, batch, virial=True)
    for cache_bytes in (2**30, 0):
        minibatch = LabelSet(labels, potential, cache_bytes).minibatch(chosen)
        found = differentiate_fixed(potential, minibatch.geometry, virial=True)
        torch.testing.assert_close(found.energies, expected.energies, rtol=1e-12, atol=1e-10)
        torch.testing.assert_close(found.forces, expected.forces, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(found.virials, expected.virials, rtol=1e-9, atol=1e-10)
        np.testing.assert_array_equal(minibatch.targets.energies, [labels[k].energy for k in chosen])
        np.testing.assert_array_equal(minibatch.targets.forces, np.concatenate([labels[k].forces for k in chosen]))


def test_constants_made_in_parts_are_those_made_at_once(monkeypatch):
    labels = mixed_labels()
    potential = potential_for(labels, dtype=torch.float64)
    at_once = LabelSet(labels, potential)
    parts = []
    monkeypatch.setattr(dataset, "TOGETHER_BYTES", 2 * at_once._constant_bytes() // len(labels))
    monkeypatch.setattr(dataset, "fix_geometry", lambda *args: parts.append(fixed := fix_geometry(*args)) or fixed)
    in_parts = LabelSet(labels, potential)
    assert len(parts) > 2
    assert max(len(part.n_atoms) for part in parts) > 1
    for chosen in (np.arange(len(labels)), np.array([5, 0, 7, 2])):
        one, other = (made.minibatch(chosen).geometry for made in (at_once, in_parts))
        # where nobody is, functions are zero, and the place does not matter
        here = one.radial.abs().sum(dim=1).unflatten(1, (2, -1)).sum(dim=1) > 0
        for field in fields(one):
            a, b = getattr(one, field.name), getattr(other, field.name)
            assert (a.shape, a.dtype, a.is_contiguous()) == (b.shape, b.dtype, b.is_contiguous())
            if field.name in ("edges", "unit"):
                a, b = a[:, here], b[:, here]
            elif field.name in ("moments", "moment_slope"):
                a, b = a * here.unsqueeze(1), b * here.unsqueeze(1)
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13, msg=lambda text, n=field.name: f"{n}: {text}")
        a, b = (differentiate_fixed(potential, geometry, virial=True) for geometry in (one, other))
        torch.testing.assert_close(a.forces, b.forces, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(a.virials, b.virials, rtol=1e-12, atol=1e-12)


class Threads(Ranks):
    """Threads of this process that tell each other what ranks do."""

    def __init__(self, rank, slots, barrier):
        super().__init__(rank, len(slots))
        self._slots, self._barrier = slots, barrier

    def gather(self, value):
        self._slots[self.rank] = value
        self._barrier.wait(60)
        found = list(self._slots)
        self._barrier.wait(60)
        return found

    def collect(self, value):
        found = self.gather(value)
        return found if self.first else []

    def broadcast(self, value, root=0):
        return self.gather(value)[root]

    def exchange(self, values):
        return [row[self.rank] for row in self.gather(values)]


@pytest.mark.parametrize("shares", [(1.5, 0.7), (0.7, 1.5), (0.7, 0.3), (3.0, 2.0)])
def test_ranks_with_unequal_memory_still_count_every_structure_once(shares, monkeypatch):
    labels = copper(8)
    potential = potential_for(labels)
    size = LabelSet(labels, potential)._constant_bytes()
    mine = threading.local()
    monkeypatch.setattr(dataset, "own_room", lambda device: mine.room)
    slots, barrier = [None, None], threading.Barrier(2)

    def energies(rank):
        mine.room = int(shares[rank] * size)
        part = LabelSet(labels, potential, ranks=Threads(rank, slots, barrier)).minibatch(np.array([5, 0, 7, 3, 1]))
        return [] if part is None else part.targets.energies.tolist()

    with ThreadPoolExecutor(2) as pool:
        found = [energy for part in pool.map(energies, range(2)) for energy in part]
    assert sorted(found) == sorted(labels[k].energy for k in (5, 0, 7, 3, 1))


def test_ranks_on_one_gpu_divide_what_is_free_and_keep_what_the_smallest_can(monkeypatch):
    places = [("a", "gpu 0"), ("a", "gpu 0"), ("b", "gpu 0")]
    free = [900, 900, 500]
    mine = threading.local()
    slots, barrier = [None] * 3, threading.Barrier(3)
    monkeypatch.setattr(dataset, "own_room", lambda device: free[mine.rank])
    monkeypatch.setattr(dataset, "gpus", lambda device, ranks: ranks.gather(places[ranks.rank]))

    def room(rank):
        mine.rank = rank
        return dataset.room(torch.device("cpu"), Threads(rank, slots, barrier))

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(room, range(3))) == [450, 450, 450]


@pytest.mark.parametrize("hidden", [(24, 24), (16,), (12, 8, 6)])
def test_weight_gradients_of_the_loss_are_those_of_automatic_differentiation(hidden):
    labels = mixed_labels()
    settings = POTENTIAL.model_copy(update={"hidden": hidden})
    potential = potential_for(labels, dtype=torch.float64, settings=settings)
    minibatch = LabelSet(labels, potential).minibatch(np.arange(len(labels)))
    batch = make_batch([label.frame for label in labels], potential.cutoff_A)
    general = loss(differentiate(potential, batch, virial=True, create_graph=True), minibatch.targets, LossSettings())
    expected = torch.autograd.grad(general, list(potential.parameters()))
    value = loss_gradient(Sweeps(potential), minibatch, LossSettings(), virial=True)
    assert float(value) == pytest.approx(float(general.detach()), rel=1e-12)
    for (name, parameter), gradient in zip(potential.named_parameters(), expected, strict=True):
        torch.testing.assert_close(
            parameter.grad, gradient, rtol=1e-9, atol=1e-11, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_a_step_of_training_asks_its_device_for_nothing():
    """On the meta device, which has no numbers, anything that would wait for one raises."""
    labels = mixed_labels()
    potential = potential_for(labels)
    sets = LabelSet(labels, potential, device="meta")
    potential.to("meta")
    sweeps = Sweeps(potential)
    value = loss_gradient(sweeps, sets.minibatch(np.array([5, 0, 7])), LossSettings(), virial=True)
    assert value.device.type == "meta"
    for parameter in potential.parameters():
        assert parameter.grad.device.type == "meta"
        assert parameter.grad.shape == parameter.shape


def test_loss_is_the_published_sum_of_squares():
    labels = mixed_labels()
    potential = potential_for(labels, dtype=torch.float64)
    minibatch = LabelSet(labels, potential).minibatch(np.arange(len(labels)))
    found = differentiate_fixed(potential, minibatch.geometry, virial=True)
    energies, forces, virials = (x.detach().numpy() for x in (found.energies, found.forces, found.virials))
    expected = 1.0 * sum((energies[k] - label.energy) ** 2 for k, label in enumerate(labels))
    expected += 4.0 * np.sum((forces - np.concatenate([label.forces for label in labels])) ** 2)
    for k, label in enumerate(labels):
        if label.stress is not None:
            w = virials[k]
            six = np.array([w[0, 0], w[1, 1], w[2, 2], w[1, 2], w[0, 2], w[0, 1]])
            expected += 0.01 * np.sum((six + abs(np.linalg.det(label.frame.cell)) * label.stress) ** 2)
    assert float(loss(found, minibatch.targets, LossSettings()).detach()) == pytest.approx(float(expected), rel=1e-10)


def test_stress_of_labels_without_stress_costs_nothing():
    labels = [replace(label, stress=None) for label in copper(2)]
    potential = potential_for(labels, dtype=torch.float64)
    minibatch = LabelSet(labels, potential).minibatch(np.arange(2))
    found = differentiate_fixed(potential, minibatch.geometry, virial=True)
    values = [float(loss(found, minibatch.targets, LossSettings(stress=s)).detach()) for s in (0.0, 1.0)]
    assert values[0] == values[1]


def test_offsets_are_the_mean_energy_per_atom_when_there_is_one_composition():
    labels = copper(4)
    mean = np.mean([label.energy / 4 for label in labels])
    np.testing.assert_allclose(composition_offsets(labels, [29]), [mean], rtol=1e-9)
    alloy = bulk("Cu", cubic=True)
    alloy.symbols[0] = "Au"
    labels = copper(4, atoms=alloy)
    mean = np.mean([label.energy / 4 for label in labels])
    np.testing.assert_allclose(composition_offsets(labels, [29, 79]), [mean, mean], rtol=1e-9)


def test_offsets_recover_energies_that_are_sums_over_elements():
    gold, alloy = bulk("Au", cubic=True), bulk("Cu", cubic=True)
    alloy.symbols[0] = "Au"
    labels = copper(3) + copper(3, atoms=gold) + copper(3, atoms=alloy)
    truth = {29: -1000.25, 79: -3.5}
    labels = [replace(label, energy=sum(truth[int(z)] for z in label.frame.numbers)) for label in labels]
    # a penalty of 1e-3 per label against counts of order 10
    np.testing.assert_allclose(composition_offsets(labels, [29, 79]), [-1000.25, -3.5], atol=0.5)


def test_training_fits_what_it_was_given_and_predicts_what_it_was_not():
    labels, validation, unseen = copper(24), copper(4, seed=1), copper(10, seed=2)
    potential, outcome, rows = trained(labels, validation, epochs=50)
    minibatch = LabelSet(unseen, potential).minibatch(np.arange(10))
    found = differentiate_fixed(potential, minibatch.geometry)
    error = float((found.forces - minibatch.targets.forces).detach().square().mean().sqrt())
    spread = float(minibatch.targets.forces.square().mean().sqrt())
    assert outcome.finite
    assert outcome.epochs == len(rows) == 50
    assert error < 0.1 * spread
    assert [row["epoch"] for row in outcome.history] == list(range(2, 51, 2))
    assert outcome.history[-1]["loss"] < 0.05 * outcome.history[0]["loss"]


def test_the_best_checkpoint_is_kept():
    labels, validation = copper(6), copper(3, seed=1, rattle_A=0.3)
    potential, outcome, _ = trained(labels, validation, epochs=30)
    minibatch = LabelSet(validation, potential).minibatch(np.arange(3))
    found = differentiate_fixed(potential, minibatch.geometry)
    energy = float((found.energies - minibatch.targets.energies).detach().abs().mean())
    force = float((found.forces - minibatch.targets.forces).detach().abs().mean())
    assert energy + force == pytest.approx(min(row["score"] for row in outcome.history), rel=1e-4)


def test_patience_ends_a_training_that_no_longer_improves():
    labels, validation = copper(4), copper(2, seed=1, rattle_A=0.4)
    _, outcome, _ = trained(labels, validation, settings=QUICK.model_copy(update={"patience": 4}), epochs=400)
    best = min(outcome.history, key=lambda row: row["score"])["epoch"]
    assert outcome.epochs < 400
    assert outcome.history[-1]["epoch"] == best + 4


def test_a_training_that_explodes_restarts_at_half_the_rates_and_then_gives_up():
    broken = [replace(label, energy=math.inf) for label in copper(3)]
    potential = potential_for(copper(3))
    trainer = Trainer(potential, LabelSet(broken, potential), None, settings=QUICK, seed=1, report=lambda row: None)
    outcome = trainer.run(Schedule(epochs=5, rate=1.0))
    assert outcome == Outcome(finite=False, epochs=2, history=())
    assert all(bool(torch.isfinite(p).all()) for p in potential.parameters())


@pytest.mark.parametrize("rate", [1e45, 1e30])
@pytest.mark.parametrize("epochs", [1, 3])
def test_weights_that_one_step_ruins_are_not_kept_though_no_label_validates(rate, epochs):
    """Infinite ones, and finite ones whose predictions are not."""
    labels = copper(3)
    potential = potential_for(labels)
    before = {name: tensor.clone() for name, tensor in potential.state_dict().items()}
    trainer = Trainer(potential, LabelSet(labels, potential), None, settings=QUICK, seed=1, report=lambda row: None)
    outcome = trainer.run(Schedule(epochs=epochs, rate=rate))
    assert (outcome.finite, outcome.history) == (False, ())
    assert all(torch.equal(before[name], tensor) for name, tensor in potential.state_dict().items())


def test_a_training_whose_first_step_was_too_large_starts_again_from_sound_weights():
    labels = copper(3)
    potential = potential_for(labels)
    trainer = Trainer(potential, LabelSet(labels, potential), None, settings=QUICK, seed=1, report=lambda row: None)
    descend, rates = trainer._descend, []

    def wild_at_first(schedule):
        rates.append(schedule.rate)
        return descend(replace(schedule, rate=1e30 if len(rates) == 1 else schedule.rate))

    trainer._descend = wild_at_first
    outcome = trainer.run(Schedule(epochs=1, rate=1.0))
    assert (outcome.finite, rates) == (True, [1.0, 0.5])
    assert all(bool(torch.isfinite(p).all()) for p in potential.parameters())
    assert [row["epoch"] for row in outcome.history] == [1.0]


def test_without_validation_labels_the_last_weights_are_kept():
    potential, outcome, _ = trained(copper(4), None, epochs=4)
    kept = {name: tensor.clone() for name, tensor in potential.state_dict().items()}
    longer, _, _ = trained(copper(4), None, epochs=4)
    assert all(torch.equal(kept[name], tensor) for name, tensor in longer.state_dict().items())
    assert not torch.allclose(kept["layers.0.weight"], potential_for(copper(4)).layers[0].weight)
    assert [set(row) for row in outcome.history] == [{"epoch", "loss"}] * 2


def test_a_deadline_ends_a_training_after_the_epoch_in_progress():
    labels = copper(4)
    potential = potential_for(labels)
    trainer = Trainer(potential, LabelSet(labels, potential), None, settings=QUICK, seed=1, report=lambda row: None)
    outcome = trainer.run(Schedule(epochs=1000, rate=1.0, deadline=time.time()))
    assert (outcome.finite, outcome.epochs) == (True, 1)


def test_learning_rates_reach_their_parameters():
    rates = LearningRates(species=1e-9, network=1e-9, scale=0.05, shift=1e-9)
    labels = copper(4)
    settings = QUICK.model_copy(update={"learning_rates": rates})
    before, (after, _, _) = potential_for(labels), trained(labels, None, settings=settings, epochs=3)
    assert not torch.allclose(before.scale, after.scale, atol=1e-3)
    torch.testing.assert_close(before.radial.table, after.radial.table, atol=1e-6, rtol=0)
    torch.testing.assert_close(before.layers[0].weight, after.layers[0].weight, atol=1e-6, rtol=0)


def split_labels(count, *, seed=0):
    """Every fifth label validates, every other fifth calibrates."""
    splits = [Split.TRAIN, Split.TRAIN, Split.VALIDATION, Split.TRAIN, Split.CALIBRATION]
    return [replace(label, split=splits[k % 5]) for k, label in enumerate(copper(count, seed=seed))]


def task_for(directory, labels, *, name="t1", parent=None, fresh=(), **changes):
    shard = write_labels(directory / f"{name}.h5", labels)
    fields = {
        "task": name,
        "version": 1,
        "parent": parent,
        "labels": (shard,),
        "fresh": tuple(label.frame.identity for label in fresh),
        "potential": POTENTIAL,
        "uncertainty": FeatureUncertaintySettings(),
        "settings": QUICK,
        "output": str(directory / f"{name}.pt"),
        "progress": str(directory / f"{name}.json"),
        "seed": 11,
        "threads": 1,
        "walkers": WalkerSettings(),
    }
    return TrainTask(**(fields | changes))


def test_a_train_task_gives_the_same_model_every_time(tmp_path):
    labels = split_labels(10)
    first, second = (run_train(task_for(tmp_path, labels, name=name)) for name in ("a", "b"))
    other = run_train(task_for(tmp_path, labels, name="c", seed=12))
    states = [load(result.file.path).state_dict() for result in (first, second, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])
    assert first.validation == second.validation


def test_a_train_task_reports_scores_factors_and_progress(tmp_path):
    labels = split_labels(10)
    result = run_train(task_for(tmp_path, labels))
    model = load(result.file.path, result.file.sha256)
    assert result.status is Status.DONE
    assert (result.train.count, result.validation.count, result.fresh) == (6, 2, None)
    assert result.train.coverage_total is None
    assert result.validation == score(model, [label for label in labels if label.split is Split.VALIDATION])
    assert result.factors == model.estimator.calibration.factors
    assert [(one.quantity, one.group, one.count, one.structures, one.exact, one.own) for one in result.factors] == [
        ("total", "all", 2, 2, False, True),
        ("total", "cu", 2, 2, False, False),
        ("atomic", "all", 8, 2, False, True),
        ("atomic", "Cu", 8, 2, False, False),
    ]
    assert float(model.estimator.total_factor) == result.factors[0].value
    assert float(model.estimator.atomic_factor[29]) == result.factors[3].value == result.factors[2].value
    assert json.loads((tmp_path / "t1.json").read_text())["epochs"] == QUICK.epochs == result.epochs


def test_calibration_labels_neither_train_nor_pick_the_epoch(tmp_path):
    labels = split_labels(10)
    moved = [
        replace(label, energy=label.energy + 3.0, forces=2.0 * label.forces)
        if label.split is Split.CALIBRATION
        else label
        for label in labels
    ]
    plain, other = run_train(task_for(tmp_path, labels, name="a")), run_train(task_for(tmp_path, moved, name="b"))
    a, b = load(plain.file.path), load(other.file.path)
    for key, value in a.first.state_dict().items():
        assert torch.equal(value, b.first.state_dict()[key]), key
    assert plain.factors[0].value < other.factors[0].value


def test_a_warm_start_goes_on_from_the_parent_and_scores_it_on_fresh_labels(tmp_path):
    labels, fresh = split_labels(10), split_labels(5, seed=3)
    first = run_train(task_for(tmp_path, labels))
    parent = ModelRef(version=1, file=first.file)
    still = TrainingSettings(warm_epochs=1, warm_rate=1e-9)
    second = run_train(
        task_for(tmp_path, labels + fresh, name="t2", version=2, parent=parent, fresh=fresh, settings=still, seed=99)
    )
    old, new = load(first.file.path), load(second.file.path)
    torch.testing.assert_close(new.first.layers[0].weight, old.first.layers[0].weight, atol=1e-6, rtol=0)
    assert torch.equal(new.first.offsets, old.first.offsets)
    assert (new.version, second.epochs) == (2, 1)
    assert second.fresh == score(old, fresh)


def test_a_new_element_or_architecture_starts_from_scratch(tmp_path):
    first = run_train(task_for(tmp_path, split_labels(5)))
    parent = ModelRef(version=1, file=first.file)
    gold = [replace(label, split=Split.TRAIN) for label in copper(3, atoms=bulk("Au", cubic=True))]
    second = run_train(task_for(tmp_path, split_labels(5) + gold, name="t2", parent=parent, fresh=gold))
    assert load(second.file.path).elements == (29, 79)
    # the parent cannot be scored on an element it does not know
    assert (second.epochs, second.fresh) == (QUICK.epochs, None)
    wider = POTENTIAL.model_copy(update={"hidden": (32,)})
    assert (
        run_train(task_for(tmp_path, split_labels(5), name="t3", parent=parent, potential=wider)).epochs == QUICK.epochs
    )


def test_members_of_a_committee_differ_and_are_calibrated_together(tmp_path):
    result = run_train(
        task_for(
            tmp_path,
            split_labels(10),
            potential=POTENTIAL.model_copy(update={"members": 3}),
            uncertainty=CommitteeUncertaintySettings(),
        )
    )
    model = load(result.file.path)
    weights = [member.layers[0].weight for member in model.members]
    assert len(weights) == 3
    assert not torch.allclose(weights[0], weights[1])
    assert model.estimator.needs_forces
    assert float(model.estimator.total_factor) == result.factors[0].value
    assert float(model.estimator.atomic_factor[29]) == result.factors[2].value


@pytest.mark.parametrize("kind", ["posterior", "distance"])
@pytest.mark.parametrize("features", ["last_layer", "sketched"])
def test_every_kind_of_uncertainty_grows_away_from_the_training_set(tmp_path, kind, features):
    settings = FeatureUncertaintySettings(kind=kind, features=features, sketch_dimension=64)
    result = run_train(task_for(tmp_path, split_labels(10), uncertainty=settings))
    model = load(result.file.path)
    near, far = (model.evaluate([label.frame for label in copper(4, seed=8, rattle_A=r)]) for r in (0.1, 0.5))
    assert far.total_uncertainty.mean() > 1.5 * near.total_uncertainty.mean()
    assert far.atomic_uncertainty.mean() > 1.5 * near.atomic_uncertainty.mean()


def test_a_task_without_training_labels_fails_and_says_so(tmp_path):
    result = run_train(task_for(tmp_path, copper(2, split=Split.CALIBRATION)))
    assert result.status is Status.FAILED
    assert "No label to train on" in result.reason
    assert result.file is None


def test_a_single_label_is_enough_for_a_first_model(tmp_path):
    result = run_train(task_for(tmp_path, copper(1)))
    assert result.status is Status.DONE
    assert result.validation is None
    assert [(one.value, one.count) for one in result.factors] == [(1.0, 0), (1.0, 0)]
    assert load(result.file.path).estimator.calibration.factors == result.factors


def test_a_structure_of_isolated_atoms_can_be_trained_on():
    far = Frame(
        numbers=np.array([29, 29]),
        positions=np.array([[0.0, 0, 0], [50.0, 0, 0]]),
        cell=np.zeros((3, 3)),
        pbc=np.zeros(3, dtype=bool),
        system="cu",
    )
    alone = Label(frame=far, energy=1.0, forces=np.zeros((2, 3)), stress=None, split=Split.TRAIN, round=0)
    _, outcome, _ = trained([alone, *copper(3)], [alone], epochs=10)
    assert outcome.finite


def test_a_model_that_cannot_be_written_is_a_failure_that_names_the_place_before_any_training(tmp_path):
    (tmp_path / "out").write_text("in the way")
    result = run_train(task_for(tmp_path, split_labels(5), output=str(tmp_path / "out" / "model.pt"), progress=""))
    assert result.status is Status.FAILED
    assert str(tmp_path / "out") in result.reason
    assert result.epochs == 0


def test_a_training_goes_on_when_its_progress_cannot_be_written(tmp_path):
    result = run_train(task_for(tmp_path, split_labels(5), progress=str(tmp_path / "nowhere" / "progress.json")))
    assert result.status is Status.DONE
