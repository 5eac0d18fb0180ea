"""Models and batches away from the CPU: what runs under the guard waits for nobody on a GPU."""

import pytest
import torch
from engine import crystal, ethanol, model, slab, water, zoo
from one_device import META, OneDevice

from pipeline.batching import bare_batch, make_batch
from pipeline.neighbors import neighbor_table
from pipeline.potentials.model import Model
from pipeline.uncertainty.distance import Distance, farthest_points
from pipeline.uncertainty.estimator import Estimator
from pipeline.uncertainty.posterior import Posterior

KINDS = [
    ("posterior", "last_layer"),
    ("posterior", "sketched"),
    ("distance", "last_layer"),
    ("committee", "last_layer"),
]


def tensors(module: torch.nn.Module):
    return [*module.parameters(), *module.buffers()]


@pytest.mark.parametrize(("kind", "features"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_energies_uncertainties_and_all_their_gradients_are_computed_without_asking_the_device(kind, features, dtype):
    subject = model(kind, features=features, dtype=dtype).to(META)
    assert subject.device == META
    assert all(tensor.device == META for tensor in tensors(subject))
    for frames in (zoo(), [water(0), water(1)]):
        batch = make_batch(frames, subject.cutoff_A, META)
        with OneDevice():
            positions, strain = batch.positions.requires_grad_(True), torch.zeros_like(batch.cells).requires_grad_(True)
            here = batch.with_geometry(positions, batch.cells)
            outcome = subject(here, strain=strain)
            total, atomic = subject.total_uncertainty(outcome, here), subject.atomic_uncertainty(outcome, here)
            forces, virial = torch.autograd.grad(outcome.energies.sum(), [positions, strain], retain_graph=True)
            torch.autograd.grad(total.sum(), [positions, strain], retain_graph=True)
            if kind != "committee":
                torch.autograd.grad(batch.sum_atoms(atomic).sum(), [positions, strain])
        assert (len(total), len(atomic)) == (len(frames), len(batch.numbers))
        assert (forces.shape, virial.shape) == (positions.shape, strain.shape)


def test_a_batch_moves_with_all_it_has():
    batch = make_batch([ethanol(), slab(), crystal()], 4.0)
    there = batch.to(META)
    for name in batch.__slots__:
        value, moved = getattr(batch, name), getattr(there, name)
        if isinstance(value, torch.Tensor):
            assert (moved.device, moved.shape, moved.dtype) == (META, value.shape, value.dtype)
        else:
            assert moved == value
    assert there.device == META
    assert there.volumes.shape == (3,)


def test_single_precision_copies_follow_the_model_and_what_is_loaded_into_it():
    generator = torch.Generator().manual_seed(0)
    first, second = (Posterior.fit(torch.randn((20, 6), generator=generator), sigma=0.1) for _ in range(2))
    assert first.to(META).single.device == META
    again = Posterior(torch.empty_like(second.transform))
    again.load_state_dict(second.state_dict())
    torch.testing.assert_close(again.single, second.transform.to(torch.float32), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["posterior", "distance", "committee"])
def test_an_estimator_is_made_where_its_features_are(kind, monkeypatch):
    # what is read from the device while fitting is a number of the features, for which any will do here
    monkeypatch.setattr(torch.Tensor, "__float__", lambda self: 1.0)
    features = torch.empty((20, 6), device=META)
    subject = Estimator.fit(kind, features, torch.empty((50, 6), device=META), sigma=0.1, max_references=10)
    assert all(tensor.device == META for tensor in tensors(subject))
    assert subject.kernel(features).device == META


def test_farthest_points_and_distances_need_no_number_from_the_device():
    features = torch.empty((20, 6), device=META)
    subject = Distance(features[:4], torch.ones((), device=META))
    with OneDevice():
        assert farthest_points(features, 5).shape == (5,)
        assert subject(features).shape == (20,)


def test_a_model_says_the_same_whoever_built_the_rows():
    subject: Model = model()
    frames = zoo()
    said = subject.evaluate(frames, stress=True)
    bare = bare_batch(frames)
    sizes = [len(frame) for frame in frames]
    rows = neighbor_table(bare.positions, bare.cells, bare.pbc, sizes, subject.cutoff_A, by_torch=True)
    again = subject.evaluate_batch(bare.with_rows(rows), stress=True)
    for name in ("energies", "forces", "stress", "total_uncertainty", "atomic_uncertainty"):
        torch.testing.assert_close(
            torch.from_numpy(getattr(again, name)),
            torch.from_numpy(getattr(said, name)),
            rtol=0,
            atol=0,
            equal_nan=True,
        )


def test_the_guard_refuses_a_tensor_made_elsewhere_and_a_number_asked_for():
    there = torch.ones(3, device=META)
    with OneDevice():
        with pytest.raises(AssertionError, match="cpu"):
            there + torch.ones(3)
        with pytest.raises(AssertionError, match="cpu"):
            torch.ones(3).to(META)
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            bool((there > 0).any())
