from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from engine import ELEMENTS, crystal, ethanol, gmnn, model, slab, water, zoo
from potential_contract import LAWS, equal, relative_error, slope

from pipeline.batching import make_batch
from pipeline.errors import ModelError
from pipeline.frames import Frame
from pipeline.potentials import load, save
from pipeline.potentials.base import differentiate
from pipeline.potentials.geometry import differentiate_fixed, fix_geometry
from pipeline.potentials.moments import feature_count

KINDS = ("last_layer", "sketched")


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("channels", [5, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_gmnn_obeys(law, channels, kind):
    law(gmnn(channels=channels, kind=kind))


def test_feature_counts_are_those_of_the_paper():
    assert feature_count(5) == 360
    assert feature_count(7) == 910
    for channels in (5, 7):
        assert gmnn(channels=channels).layers[0].weight.shape[1] == feature_count(channels)


def linear_gradients(potential, batch, layers):
    """∂E_i/∂[weight; bias] of layers by autograd, one atom at a time: (A, n_out, n_in + 1) each."""
    atomic = potential(batch).atomic_energies
    rows = []
    for energy in atomic:
        gradients = torch.autograd.grad(
            energy, [p for layer in layers for p in (layer.weight, layer.bias)], retain_graph=True
        )
        pairs = zip(gradients[::2], gradients[1::2], strict=True)
        rows.append([torch.cat([weight, bias.unsqueeze(1)], dim=1) for weight, bias in pairs])
    return [torch.stack([row[k] for row in rows]) for k in range(len(layers))]


def test_last_layer_features_are_the_gradient_of_the_atomic_energy():
    potential = gmnn()
    batch = make_batch([ethanol(), crystal()], potential.cutoff_A)
    (gradients,) = linear_gradients(potential, batch, [potential.layers[-1]])
    equal(potential(batch, features=True).features, gradients.squeeze(1))


def test_gaussian_sketches_are_the_projected_gradient_over_all_layers():
    potential = gmnn(kind="sketched", projection="gaussian")
    batch = make_batch([ethanol(), crystal()], potential.cutoff_A)
    gradients = linear_gradients(potential, batch, potential.linear_layers)
    sketch = potential.sketch
    expected = sum(
        torch.einsum("aoi,ip,op->ap", g, sketch.get_buffer(f"left_{k}"), sketch.get_buffer(f"right_{k}"))
        for k, g in enumerate(gradients)
    )
    equal(potential(batch, features=True).features, expected)


def test_structured_sketches_are_signed_sums_of_the_gradient_over_all_layers():
    potential = gmnn(kind="sketched")
    batch = make_batch([ethanol(), crystal()], potential.cutoff_A)
    gradients = linear_gradients(potential, batch, potential.linear_layers)
    expected = torch.zeros(len(batch.numbers), 32, dtype=torch.float64)
    for k, gradient in enumerate(gradients):
        left, constant, right = potential.sketch.signs(k, torch.float64)
        signs = torch.cat([left.sign(), constant.sign().view(1)])
        m = (torch.arange(len(right)).unsqueeze(1) + torch.arange(len(signs))) % 32
        signed = gradient * right.unsqueeze(1) * signs
        expected.index_add_(1, m.reshape(-1), signed.flatten(1))
    equal(potential(batch, features=True).features, expected)


def test_an_element_the_model_was_not_made_for_is_named():
    xenon = Frame.from_atoms(Atoms("CXe", positions=[[0, 0, 0], [0, 0, 2]]), system="test")
    with pytest.raises(ModelError, match="54"):
        gmnn()(make_batch([xenon], 4.0))


def test_training_on_fixed_geometry_gives_the_same_derivatives():
    potential = gmnn()
    batch = make_batch(zoo(), potential.cutoff_A)
    expected = differentiate(potential, batch, virial=True)
    found = differentiate_fixed(potential, fix_geometry(potential, batch), virial=True)
    equal(found.energies, expected.energies)
    equal(found.forces, expected.forces)
    symmetric = 0.5 * (expected.virials + expected.virials.transpose(1, 2))
    equal(found.virials, symmetric)


def test_float32_forces_are_those_of_float64_to_its_precision():
    batch = make_batch(zoo(), 4.0)
    double = differentiate(gmnn(), batch)
    copied = gmnn(dtype=torch.float32)
    copied.load_state_dict(gmnn().state_dict())
    single = differentiate(copied, batch)
    assert relative_error(single.forces.numpy(), double.forces.numpy()) < 1e-4
    # offsets of tens of thousands of eV are summed in float64
    assert (single.energies - double.energies).abs().max().item() < 1e-3


@pytest.mark.parametrize(
    ("kind", "features"),
    [("posterior", "last_layer"), ("posterior", "sketched"), ("distance", "sketched"), ("committee", "last_layer")],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_loaded_model_predicts_the_same_bits(tmp_path, kind, features, dtype):
    saved = model(kind, features=features, dtype=dtype)
    ref = save(saved, tmp_path / "v0003.pt", {"commit": "abc"})
    loaded = load(ref.path, ref.sha256)
    assert (loaded.version, loaded.elements, loaded.cutoff_A) == (saved.version, ELEMENTS, saved.cutoff_A)
    before, after = saved.evaluate(zoo(), stress=True), loaded.evaluate(zoo(), stress=True)
    for name in ("energies", "forces", "stress", "total_uncertainty", "atomic_uncertainty"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    np.testing.assert_array_equal(loaded.kernel_features(zoo()), saved.kernel_features(zoo()))


def test_a_model_file_from_before_there_was_a_choice_has_gaussian_projections(tmp_path):
    ref = save(model(features="sketched"), tmp_path / "v0003.pt")
    payload = torch.load(ref.path, weights_only=True)
    assert payload["features"].pop("projection") == "structured"
    torch.save(payload, tmp_path / "old.pt")
    assert load(ref.path).first.feature_spec.projection == "structured"
    assert load(tmp_path / "old.pt").first.feature_spec.projection == "gaussian"


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return save(model(dtype=torch.float32), tmp_path_factory.mktemp("models") / "v0001.pt")


def test_a_model_file_with_another_digest_is_refused(stored):
    with pytest.raises(ModelError, match="sha256"):
        load(stored.path, "0" * 64)


def test_a_missing_model_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"nowhere\.pt"):
        load(tmp_path / "nowhere.pt")


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_torn_model_file_is_refused(tmp_path, stored, keep):
    data = Path(stored.path).read_bytes()
    torn = tmp_path / "torn.pt"
    torn.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(ModelError):
        load(torn)


@pytest.mark.parametrize("content", [b"", b"energy = 3\n", b"\x80\x02K\x01.", b"PK\x03\x04" + bytes(64)])
def test_a_file_that_is_no_model_is_refused(tmp_path, content):
    other = tmp_path / "other.pt"
    other.write_bytes(content)
    with pytest.raises(ModelError):
        load(other)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 99},
        {"format": "something else"},
        {"members": []},
        {"settings": {"kind": "gmnn", "wheels": 4}},
        {"estimator": {"config": {"kind": "posterior"}, "state": {}}},
        {"elements": [1]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_model_of_another_schema_or_with_parts_that_do_not_fit_is_refused(tmp_path, stored, change):
    payload = torch.load(stored.path, weights_only=True)
    torch.save({**payload, **change}, tmp_path / "changed.pt")
    with pytest.raises(ModelError):
        load(tmp_path / "changed.pt")


def test_a_model_file_without_a_schema_is_refused(tmp_path, stored):
    payload = torch.load(stored.path, weights_only=True)
    del payload["schema"]
    torch.save(payload, tmp_path / "changed.pt")
    with pytest.raises(ModelError):
        load(tmp_path / "changed.pt")


def test_the_calculator_equals_evaluate():
    subject = model()
    for frame in zoo():
        atoms = frame.to_atoms()
        atoms.calc = subject.calculator()
        expected = subject.evaluate([frame], stress=True)
        assert atoms.get_potential_energy() == pytest.approx(expected.energies[0], rel=1e-12)
        np.testing.assert_allclose(atoms.get_forces(), expected.forces, rtol=1e-9, atol=1e-10)
        results = atoms.calc.results
        assert results["free_energy"] == results["energy"]
        assert results["uncertainty"] == pytest.approx(expected.total_uncertainty[0])
        np.testing.assert_allclose(results["uncertainties"], expected.atomic_uncertainty, rtol=1e-8)
        assert ("stress" in results) == bool(frame.pbc.all())
        if frame.pbc.all():
            np.testing.assert_allclose(atoms.get_stress(), expected.stress[0], rtol=1e-8, atol=1e-11)


def test_the_calculator_follows_moved_atoms_another_cell_and_other_atoms():
    subject = model()
    calculator = subject.calculator()
    for frame in (crystal(0), crystal(1), slab(0), water(0)):
        atoms = frame.to_atoms()
        atoms.calc = calculator
        atoms.get_potential_energy()
        atoms.positions[0] += 0.3
        here = Frame.from_atoms(atoms, system="test")
        assert atoms.get_potential_energy() == pytest.approx(subject.evaluate([here]).energies[0], rel=1e-12)
        if frame.pbc.all():
            atoms.set_cell(atoms.cell.array * 1.05, scale_atoms=True)
            here = Frame.from_atoms(atoms, system="test")
            assert atoms.get_potential_energy() == pytest.approx(subject.evaluate([here]).energies[0], rel=1e-12)


def test_stress_is_positive_when_energy_grows_with_strain():
    subject = model()
    atoms = crystal().to_atoms()
    atoms.calc = subject.calculator()
    cell, volume = atoms.cell.array.copy(), atoms.get_volume()
    stress = atoms.get_stress()
    for component, (i, j) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):

        def energy(h, i=i, j=j):
            grow = np.eye(3)
            grow[i, j] += 0.5 * h
            grow[j, i] += 0.5 * h
            strained = crystal().to_atoms()
            strained.set_cell(cell @ grow, scale_atoms=True)
            strained.calc = subject.calculator()
            return strained.get_potential_energy()

        assert stress[component] == pytest.approx(
            slope(energy, 2e-4) / volume, rel=1e-4, abs=1e-6 * np.abs(stress).max()
        )


def test_stress_is_not_a_number_where_there_is_no_volume():
    stress = model().evaluate(zoo(), stress=True).stress
    assert np.isnan(stress[:3]).all()
    assert np.isfinite(stress[3]).all()


def test_kernel_features_give_the_uncertainty_up_to_its_calibration():
    subject = model()
    x = subject.kernel_features(zoo(5))
    u = subject.evaluate(zoo(5)).total_uncertainty
    np.testing.assert_allclose(1.7 * np.sqrt((x**2).sum(axis=1)), u, rtol=1e-9)


def test_evaluation_does_not_depend_on_the_batch_size():
    subject = model()
    frames = [frame for seed in range(3) for frame in zoo(seed)]
    whole, parts = subject.evaluate(frames), subject.evaluate(frames, batch_size=5)
    for name in ("energies", "forces", "total_uncertainty", "atomic_uncertainty"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(parts.system, whole.system)
