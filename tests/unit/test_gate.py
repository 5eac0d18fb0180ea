"""The gate: what is not worse passes, what is worse is refused with its numbers, and chance refuses nobody."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import bulk
from test_training import copper, split_labels, task_for

from pipeline.batching import make_batch
from pipeline.potentials import load
from pipeline.potentials.base import Potential, Prediction
from pipeline.potentials.model import Model
from pipeline.records import ModelRef, Split, Status
from pipeline.settings.training import GateSettings, TrainingSettings
from pipeline.settings.walkers import BarostatSettings, BiasSettings, StopSettings, WalkerSettings
from pipeline.train import run_train
from pipeline.training.gate import gate, is_worse, lost_more
from pipeline.training.scoring import residuals
from pipeline.training.short_walks import newest_starts, unsound_walks

SHORT = GateSettings(walkers=4, steps=20)
SCORED = GateSettings(walkers=0)
SETTINGS = TrainingSettings(epochs=30, warm_epochs=5, warm_rate=0.01, batch=4, gate=SHORT)
LABELS = split_labels(20)
VALIDATION = [label for label in LABELS if label.split is Split.VALIDATION]


class Holed(Potential):
    """Another potential with a hole in its repulsive wall: atoms closer than ``reach_A`` fall into each other."""

    def __init__(self, inner, reach_A, depth_eV):
        super().__init__()
        self.inner, self.reach_A, self.depth_eV = inner, reach_A, depth_eV
        self.elements, self.cutoff_A, self.feature_dimension = inner.elements, inner.cutoff_A, inner.feature_dimension

    def forward(self, batch, *, strain=None, features=False):
        sound = self.inner(batch, strain=strain, features=features)
        distances = torch.linalg.vector_norm(batch.edges(), dim=-1)
        depths = -self.depth_eV * torch.clamp(1.0 - distances / self.reach_A, min=0.0).square().sum(1, keepdim=True)
        return Prediction(sound.energies + batch.sum_atoms(depths).squeeze(1), sound.atomic_energies, sound.features)


def holed(model, reach_A, depth_eV=3000.0):
    return Model([Holed(model.first, reach_A, depth_eV)], model.estimator, model.version + 1)


def noised(model, scale, seed=0):
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in other.first.layers.parameters():
            weights.add_(scale * torch.randn(weights.shape, generator=generator))
    return other


def shortest(label):
    """The shortest distance of a structure, Å."""
    return float(torch.linalg.vector_norm(make_batch([label.frame], 4.0).edges(), dim=-1).min())


def relabelled(labels, model):
    """The same structures with what a model says of them for the truth."""
    said = residuals(model, labels).evaluation
    parts = np.split(said.forces, np.cumsum([len(label.frame) for label in labels])[:-1])
    return [
        replace(label, energy=float(energy), forces=forces)
        for label, energy, forces in zip(labels, said.energies, parts, strict=True)
    ]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("gate")


@pytest.fixture(scope="module")
def first(home):
    """The first model, trained well."""
    return run_train(task_for(home, LABELS, name="first", settings=SETTINGS))


@pytest.fixture(scope="module")
def parent(first):
    return load(first.file.path)


@pytest.fixture(scope="module")
def task(home):
    return task_for(home, LABELS, name="asked")


def next_task(home, first, labels=LABELS, *, name, **changes):
    fields = {"settings": SETTINGS, "version": 2, "seed": 21, "parent": ModelRef(version=1, file=first.file)}
    return task_for(home, labels, name=name, **(fields | changes))


def test_models_as_good_as_their_parent_and_each_other_pass(home, first, parent, task):
    results = [run_train(next_task(home, first, name=f"again{seed}", seed=seed)) for seed in (21, 22)]
    for result in results:
        assert (result.gate.passed, result.gate.reason) == (True, "")
        assert (result.gate.walks, result.gate.parent_unsound, result.gate.model_unsound) == (4, 0, 0)
        assert result.gate.parent.force_rmse == pytest.approx(first.validation.force_rmse)
        assert result.gate.model.energy_rmse == pytest.approx(result.validation.energy_rmse)
    siblings = [load(result.file.path) for result in results]
    assert not torch.equal(siblings[0].first.layers[0].weight, siblings[1].first.layers[0].weight)
    assert all(gate(one, other, LABELS, task, SHORT).passed for one, other in (siblings, siblings[::-1]))


def test_a_model_of_shuffled_forces_is_refused_with_numbers_and_written_all_the_same(home, first):
    rng = np.random.default_rng(0)
    labels = [
        replace(label, forces=rng.permutation(label.forces)) if label.split is Split.TRAIN else label
        for label in LABELS
    ]
    fast = SETTINGS.model_copy(update={"warm_rate": 1.0, "warm_epochs": 10})
    result = run_train(next_task(home, first, labels, name="shuffled", settings=fast))
    report = result.gate
    assert (result.status, report.passed) == (Status.DONE, False)
    assert f"force RMSE {report.model.force_rmse:.3g} eV/Å on 4 validation labels, " in report.reason
    assert f"{report.parent.force_rmse:.3g} with the running model" in report.reason
    assert report.model.force_rmse > 1.1 * report.parent.force_rmse
    assert load(result.file.path, result.file.sha256).version == 2


def test_equal_tasks_give_equal_reports(home, first):
    one, other = (run_train(next_task(home, first, name=name)).gate for name in ("one", "other"))
    assert one == other


def test_noise_on_the_weights_is_refused_from_where_it_matters_on(parent, task):
    small, large = (gate(parent, noised(parent, scale), LABELS, task, SCORED) for scale in (0.001, 1.0))
    assert small.passed
    assert not large.passed
    assert large.walks == 0


def test_a_model_that_explodes_is_refused_though_it_is_better_on_labels(home, parent):
    poor = load(
        run_train(task_for(home, LABELS, name="poor", settings=SETTINGS.model_copy(update={"epochs": 12}))).file.path
    )
    hole = holed(parent, min(map(shortest, VALIDATION)) - 0.01)
    hot = task_for(home, LABELS, name="hot", walkers=WalkerSettings(timestep_fs=2.0, temperatures_K=(300.0, 4000.0)))
    report = gate(poor, hole, LABELS, hot, GateSettings(walkers=8, steps=100))
    assert report.model.force_rmse < report.parent.force_rmse
    assert not report.passed
    assert report.reason.startswith(f"{report.model_unsound} of 8 short walks ended")
    assert report.model_unsound >= 3 > report.parent_unsound == 0
    # the same hole is out of reach of colder walks
    cold = replace(hot, walkers=WalkerSettings(temperatures_K=(300.0,)))
    assert gate(poor, hole, LABELS, cold, SHORT).passed


def test_one_validation_structure_gone_wrong_refuses_nobody(parent, task):
    nearest = sorted(map(shortest, VALIDATION))
    hole = holed(parent, (nearest[0] + nearest[1]) / 2)
    report = gate(parent, hole, LABELS, task, SCORED)
    assert report.model.force_rmse > 2 * report.parent.force_rmse
    assert report.passed


@pytest.mark.parametrize("count", [2, 3, 10, 50])
def test_worse_is_what_is_worse_on_most_structures(count):
    errors = np.random.default_rng(count).lognormal(sigma=0.3, size=count)
    alone = errors.copy()
    alone[0] *= 1e4
    assert not is_worse(errors, alone)
    assert not is_worse(errors, errors)
    assert not is_worse(1.3 * errors, errors)
    assert is_worse(errors, 1.3 * errors)


def test_equally_good_models_are_rarely_called_worse():
    rng = np.random.default_rng(5)
    for count, share in ((2, 0.15), (5, 0.07), (20, 0.04)):
        shared = rng.lognormal(sigma=0.5, size=(4000, count))
        old, new = (np.abs(shared * rng.normal(size=shared.shape)) for _ in range(2))
        worse = [is_worse(a, b) and (b**2).mean() > 1.21 * (a**2).mean() for a, b in zip(old, new, strict=True)]
        assert np.mean(worse) < share


def test_errors_below_what_matters_refuse_nobody_also_where_the_parent_is_exact(parent, task):
    truth = relabelled(LABELS, parent)
    tiny, large = (gate(parent, noised(parent, scale), truth, task, SCORED) for scale in (1e-4, 1.0))
    assert tiny.parent.force_rmse < 1e-4 * large.model.force_rmse
    assert tiny.model.force_rmse > 3 * tiny.parent.force_rmse
    assert tiny.passed
    assert not large.passed


def test_a_single_validation_label_takes_twice_the_force_error(parent, task):
    labels = [label for label in LABELS if label.split is Split.TRAIN] + VALIDATION[:1]
    before = gate(parent, parent, labels, task, SCORED)
    assert (before.passed, before.parent.count) == (True, 1)
    found = [gate(parent, noised(parent, scale), labels, task, SCORED) for scale in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)]
    for report in found:
        force = report.model.force_rmse > 2 * max(report.parent.force_rmse, 0.005)
        energy = report.model.energy_rmse > 10 * max(report.parent.energy_rmse, 0.001)
        assert report.passed is not (force or energy)
    assert {report.passed for report in found} == {True, False}
    assert "on 1 validation label," in next(report.reason for report in found if not report.passed)


def test_no_numbers_are_refused_without_a_walk(parent, task):
    broken = copy.deepcopy(parent)
    with torch.no_grad():
        broken.first.layers[0].weight[0, 0] = torch.nan
    report = gate(parent, broken, LABELS, task, SHORT)
    assert not report.passed
    assert "4 of 4 validation labels are no finite numbers" in report.reason
    assert report.walks == 0


def test_labels_with_elements_the_parent_does_not_know_are_left_out(parent, task):
    gold = copper(3, atoms=bulk("Au", cubic=True), split=Split.VALIDATION)
    assert gate(parent, parent, LABELS + gold, task, SHORT).parent.count == len(VALIDATION)
    nothing = gate(parent, parent, gold, task, SHORT)
    assert (nothing.passed, nothing.parent, nothing.model, nothing.walks) == (True, None, None, 0)


def test_walks_are_unbiased_in_a_fixed_cell_and_end_for_nothing_but_the_impossible(parent):
    starts = [label.frame for label in LABELS[:3]]
    stop = StopSettings(uncertainty_eV_per_A=1e-6, bond_graph=True, bond_fraction=1.05)
    eager = WalkerSettings(
        bias=BiasSettings(tau=5.0),
        stop=stop,
        barostat=BarostatSettings(kind="flexible"),
        pressures_MPa=(1e5,),
        max_steps=1,
    )
    assert unsound_walks(parent, starts, settings=eager, steps=23, seed=1) == 0
    strict = eager.model_copy(update={"stop": stop.model_copy(update={"max_force_eV_per_A": 1e-3})})
    assert unsound_walks(parent, starts, settings=strict, steps=23, seed=1) == 3


@pytest.mark.parametrize(
    ("walks", "parent_unsound", "model_unsound", "expected"),
    [
        (0, 0, 0, False),
        (1, 0, 1, True),
        (1, 1, 1, False),
        (2, 0, 1, False),
        (2, 0, 2, True),
        (8, 0, 2, False),
        (8, 0, 3, True),
        (8, 6, 8, False),
        (8, 8, 0, False),
        (64, 0, 16, False),
        (64, 0, 17, True),
    ],
)
def test_walks_lost_beyond_chance(walks, parent_unsound, model_unsound, expected):
    assert lost_more(walks, parent_unsound, model_unsound) is expected


def test_walks_start_from_the_newest_of_every_system():
    old, new = copper(3), copper(3, seed=1)
    other = [replace(label, frame=replace(label.frame, system="other")) for label in copper(1, seed=2)]
    labels = [*other, *old, *new]
    assert newest_starts(labels, 3) == [new[2].frame, other[0].frame, new[1].frame]
    assert newest_starts(labels, 1) == newest_starts(labels, 2) == [new[2].frame, other[0].frame]
    everyone = [label.frame for label in (new[2], other[0], new[1], new[0], *old[::-1])]
    assert newest_starts(labels, 9) == [*everyone, *everyone[:2]]
    assert newest_starts(labels, 0) == newest_starts([], 4) == []


def test_a_second_attempt_trains_from_scratch_with_other_numbers(home, first, parent):
    settings = SETTINGS.model_copy(update={"epochs": 3, "gate": SCORED})
    warm, again = (
        run_train(next_task(home, first, name=f"try{attempt}", attempt=attempt, settings=settings, fresh=LABELS[:2]))
        for attempt in (0, 1)
    )
    scratch = run_train(next_task(home, first, name="alone", settings=settings, parent=None))
    assert (warm.epochs, again.epochs, scratch.epochs) == (5, 3, 3)
    weights = [load(result.file.path).first.layers[0].weight for result in (warm, again, scratch)]
    assert (weights[0] - parent.first.layers[0].weight).abs().max() < 0.5
    assert not torch.allclose(weights[1], weights[2], atol=0.1)
    assert again.fresh == warm.fresh is not None
    assert again.gate.parent == warm.gate.parent
    assert not again.gate.passed


def test_without_a_parent_or_a_gate_there_is_no_report(home, first):
    assert first.gate is None
    open_gate = SETTINGS.model_copy(update={"gate": None, "warm_epochs": 1})
    assert run_train(next_task(home, first, name="open", settings=open_gate)).gate is None
