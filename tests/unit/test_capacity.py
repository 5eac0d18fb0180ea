import json

import numpy as np
import pytest
import torch
from engine import ethanol, model, water, zoo
from test_walkers import batch_of, newborn, same_bits, settings_of

from pipeline.batching import make_batch
from pipeline.dynamics import capacity
from pipeline.dynamics.capacity import Capacity, peak_bytes, saved_bytes, shares

CPU = torch.device("cpu")
SIZES = np.array([9, 9, 3, 2, 9])


def test_shares_hold_every_walker_once_and_about_as_many_atoms_each():
    rng = np.random.default_rng(1)
    for walkers in (1, 2, 7, 50):
        sizes = rng.integers(1, 30, size=walkers)
        for parts in (1, 2, 5, 64):
            found = shares(sizes, parts)
            assert 1 <= len(found) <= min(parts, walkers)
            who = np.concatenate([np.arange(walkers)[share.walkers] for share in found])
            np.testing.assert_array_equal(who, np.arange(walkers))
            for share in found:
                atoms = share.atoms.stop - share.atoms.start
                assert atoms == sizes[share.walkers].sum() < sizes.sum() / parts + sizes.max()


@pytest.mark.parametrize(
    ("sizes", "parts", "largest"),
    [
        ([999, 1001], 2, 1001),
        ([10, 10, 10, 100], 4, 100),
        ([1, 100], 4, 100),
        ([10, 10, 10, 100], 2, 100),
        ([1, 2, 3, 4, 5, 6, 7, 8], 4, 11),
        ([8, 7, 6, 5, 4, 3, 2, 1], 4, 11),
        ([9] * 8, 4, 18),
        ([100, 1, 1, 1, 100], 2, 102),
    ],
)
def test_the_largest_share_of_unequal_walkers_is_as_small_as_can_be(sizes, parts, largest):
    found = shares(np.array(sizes), parts)
    assert len(found) <= parts
    assert max(share.atoms.stop - share.atoms.start for share in found) == largest


def test_as_many_parts_as_walkers_are_one_by_one():
    for parts in (4, 5, 64):
        assert [share.atoms for share in shares(np.array([10, 10, 10, 100]), parts)] == [
            slice(0, 10),
            slice(10, 20),
            slice(20, 30),
            slice(30, 130),
        ]


def test_a_share_is_the_batch_of_its_walkers():
    frames, subject = zoo(30), model()
    whole = make_batch(frames, subject.cutoff_A)
    sizes = np.array([len(frame) for frame in frames])
    expected = subject.evaluate(frames)
    for share in shares(sizes, 3):
        part = share.of(whole, sizes)
        found = subject.evaluate_batch(part)
        np.testing.assert_allclose(found.energies, expected.energies[share.walkers], rtol=1e-12)
        np.testing.assert_allclose(found.forces, expected.forces[share.atoms], atol=1e-12)


def test_what_is_saved_for_the_backward_pass_is_counted_once():
    weights, x = torch.ones(100, 100), torch.ones(50, 100, requires_grad=True)

    def run():
        y = x @ weights  # saves the weights
        z = y * y  # saves y twice
        return z.exp()  # saves its result

    per_row = 50 * 100 * 4
    assert saved_bytes(run, [weights]) == 2 * per_row
    assert saved_bytes(run, []) == 2 * per_row + weights.numel() * 4
    assert peak_bytes(run, [weights], CPU) == capacity.PEAK * 2 * per_row


def plan(subject, frames, monkeypatch, *, free, per_entry=1000.0, cache=None):
    monkeypatch.setattr(capacity, "UNMEASURED", 0)
    monkeypatch.setattr(capacity, "free_bytes", lambda device: free)
    batch = make_batch(frames, 4.0)
    measured = []

    def measure(share):
        measured.append(share.atoms.stop)
        return per_entry * share.atoms.stop * batch.neighbors.shape[1]

    subject.plan(batch, np.array([len(frame) for frame in frames]), measure)
    return batch.neighbors.numel(), measured


def test_as_few_parts_as_fit_are_made_a_power_of_two_at_most_one_for_each_walker(monkeypatch):
    frames = [ethanol(k) for k in range(8)]
    for share, parts in ((2.0, 1), (0.9, 2), (0.3, 4), (0.2, 8), (1e-9, 8)):
        subject = Capacity(CPU, "d")
        entries = make_batch(frames, 4.0).neighbors.numel()
        free = (share * 1000.0 + 8 * capacity.TABLES) * entries
        plan(subject, frames, monkeypatch, free=free / capacity.SHARE["cpu"])
        assert subject.parts == parts


def test_a_measurement_is_kept_on_the_node_for_each_model_and_composition(monkeypatch, tmp_path):
    cache = tmp_path / "cache"
    frames = [ethanol(k) for k in range(4)]
    assert plan(Capacity(CPU, "d", cache), frames, monkeypatch, free=1e12)[1] == [18]
    assert plan(Capacity(CPU, "d", cache), frames, monkeypatch, free=1e12)[1] == []
    assert plan(Capacity(CPU, "e", cache), frames, monkeypatch, free=1e12)[1] == [18]
    assert plan(Capacity(CPU, "d", cache), [water(1), *frames], monkeypatch, free=1e12)[1] == [12]
    known = json.loads((cache / "walk-memory.json").read_text())
    assert len(known) == 3
    assert set(known.values()) == {1000.0}
    assert [path.name for path in cache.iterdir()] == ["walk-memory.json"]
    (cache / "walk-memory.json").write_text("{ torn")
    assert plan(Capacity(CPU, "d", cache), frames, monkeypatch, free=1e12)[1] == [18]
    (tmp_path / "file").touch()
    assert plan(Capacity(CPU, "d", tmp_path / "file"), frames, monkeypatch, free=1e12)[1] == [18]


def test_a_batch_that_does_not_fit_is_evaluated_in_twice_as_many_parts_from_then_on():
    subject, asked = Capacity(CPU, "d"), []

    def one(share):
        atoms = share.atoms.stop - share.atoms.start
        asked.append(atoms)
        if atoms > 12:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return atoms

    assert sum(subject.evaluate(SIZES, one)) == SIZES.sum()
    assert max(asked) == SIZES.sum()
    asked.clear()
    assert sum(subject.evaluate(SIZES, one)) == SIZES.sum()
    assert max(asked) <= 12
    with pytest.raises(torch.OutOfMemoryError):
        subject.evaluate(np.array([13, 2]), one)
    assert subject.evaluate(np.array([2, 12]), one) == [2, 12]


def test_a_library_without_memory_counts_and_any_other_error_does_not():
    def cublas(share):
        if share.walkers.stop - share.walkers.start > 2:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return 1

    def broken(share):
        raise RuntimeError("shapes do not match")

    assert sum(Capacity(CPU, "d").evaluate(SIZES, cublas)) == 4
    with pytest.raises(RuntimeError, match="shapes"):
        Capacity(CPU, "d").evaluate(SIZES, broken)


def test_one_walker_is_measured_where_two_do_not_fit(monkeypatch):
    monkeypatch.setattr(capacity, "UNMEASURED", 0)
    monkeypatch.setattr(capacity, "free_bytes", lambda device: 1e6)
    frames = [ethanol(k) for k in range(4)]
    batch, measured, subject = make_batch(frames, 4.0), [], Capacity(CPU, "d")

    def measure(share):
        measured.append(share.atoms.stop)
        if share.atoms.stop > 9:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1000.0 * share.atoms.stop * batch.neighbors.shape[1]

    subject.plan(batch, np.array([9] * 4), measure)
    assert (measured, subject._per_entry) == ([18, 9], 1000.0)


def test_memory_is_left_for_what_is_not_made_in_parts(monkeypatch):
    frames = [ethanol(k) for k in range(8)]
    entries = make_batch(frames, 4.0).neighbors.numel()
    besides = 8 * capacity.TABLES * entries
    for free, parts in ((1000.0 * entries + besides + 1, 1), (1000.0 * entries, 2), (besides, 8)):
        subject = Capacity(CPU, "d")
        plan(subject, frames, monkeypatch, free=free / capacity.SHARE["cpu"])
        assert subject.parts == parts


def test_walkers_that_are_measured_make_the_same_steps(monkeypatch, tmp_path):
    subject, settings = model(), settings_of()
    start = [newborn(frame, seed=k) for k, frame in enumerate(zoo(30))]
    plain = batch_of(subject, settings, start).run(6)
    monkeypatch.setattr(capacity, "UNMEASURED", 0)
    measured = batch_of(subject, settings, start)
    assert 50 < measured._capacity._per_entry < 1e6
    same_bits(measured.run(6).walkers, plain.walkers)


def test_free_memory_is_what_the_machine_and_every_control_group_leave(tmp_path, monkeypatch):
    found = capacity.free_bytes(CPU)
    assert 1e7 < found < 1e14
    root, group = tmp_path / "groups", tmp_path / "groups" / "job" / "step"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("1000\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 300\n")
    for name, text in (("max", "5000"), ("current", "2000"), ("stat", "inactive_file 700\n")):
        (root / "job" / f"memory.{name}").write_text(text)
    old = root / "memory" / "job"
    old.mkdir(parents=True)
    for name, text in (("limit_in_bytes", "4000"), ("usage_in_bytes", "100"), ("stat", "total_inactive_file 50")):
        (old / f"memory.{name}").write_text(text)
    membership = tmp_path / "cgroup"
    membership.write_text("0::/job/step\n4:cpu:/job\n7:memory:/job\n")
    assert sorted(capacity._left_in_groups(membership, root)) == [3700.0, 3950.0]
    assert list(capacity._left_in_groups(tmp_path / "nothing", root)) == []
