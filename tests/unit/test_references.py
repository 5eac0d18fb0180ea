"""References against independent checks: finite differences, ASE, and each other's contracts."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import read

from pipeline.errors import SettingsError, TaskError
from pipeline.frames import Frame
from pipeline.references import Calculation, Labeler, build_reference, reference_digest, supported_elements
from pipeline.settings.labels import ASEReference, EMTReference, OpenMMReference, Reference

TEMPLATE = Path(__file__).parents[2] / "apps" / "templates" / "alanine-dipeptide"
FINITE_DIFFERENCE_EV_PER_A = 2e-5


def peptide(std_A: float = 0.05, seed: int = 0) -> Frame:
    atoms = read(TEMPLATE / "alanine-dipeptide.extxyz")
    atoms.positions += np.random.default_rng(seed).normal(scale=std_A, size=(22, 3))
    return Frame.from_atoms(atoms, system="ala")


def copper(std_A: float = 0.1, seed: int = 0) -> Frame:
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.positions += np.random.default_rng(seed).normal(scale=std_A, size=(8, 3))
    return Frame.from_atoms(atoms, system="cu")


def openmm_reference() -> OpenMMReference:
    return OpenMMReference(topology=str(TEMPLATE / "alanine-dipeptide.pdb"))


REFERENCES: list[tuple[Reference, Frame]] = [
    (openmm_reference(), peptide()),
    (EMTReference(), copper()),
    (ASEReference(calculator="lj", arguments={"sigma": 2.3, "epsilon": 0.1, "rc": 5.0, "smooth": True}), copper()),
]


def moved(frame: Frame, positions: np.ndarray, cell: np.ndarray | None = None) -> Frame:
    return Frame(
        numbers=frame.numbers,
        positions=positions,
        cell=frame.cell if cell is None else cell,
        pbc=frame.pbc,
        system=frame.system,
    )


def energy(labeler: Labeler, frame: Frame, directory: Path) -> float:
    return labeler.label(frame, Calculation(directory=directory)).energy


@pytest.mark.parametrize(("settings", "frame"), REFERENCES, ids=["openmm", "emt", "lj"])
def test_forces_are_minus_the_gradient_of_the_energy(settings: Reference, frame: Frame, tmp_path: Path) -> None:
    labeler = build_reference(settings)
    forces = labeler.label(frame, Calculation(directory=tmp_path)).forces
    rng = np.random.default_rng(1)
    for _ in range(5):
        direction = rng.normal(size=frame.positions.shape)
        direction /= np.linalg.norm(direction)
        step_A = 1e-4
        up, down = (energy(labeler, moved(frame, frame.positions + s * direction), tmp_path) for s in (step_A, -step_A))
        slope = (up - down) / (2 * step_A)
        assert slope == pytest.approx(-np.sum(forces * direction), abs=FINITE_DIFFERENCE_EV_PER_A)


@pytest.mark.parametrize(("settings", "frame"), REFERENCES[1:], ids=["emt", "lj"])
def test_stress_is_the_strain_derivative_of_the_energy_per_volume(
    settings: Reference, frame: Frame, tmp_path: Path
) -> None:
    labeler = build_reference(settings)
    stress = labeler.label(frame, Calculation(directory=tmp_path)).stress
    assert labeler.provides_stress
    assert stress is not None
    volume = abs(np.linalg.det(frame.cell))
    for k, (i, j) in enumerate(((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))):
        energies = []
        for size in (1e-5, -1e-5):
            strain = np.eye(3)
            strain[i, j] += size / 2
            strain[j, i] += size / 2
            energies.append(
                energy(labeler, moved(frame, frame.positions @ strain, frame.cell @ strain), tmp_path) / volume
            )
        assert (energies[0] - energies[1]) / 2e-5 == pytest.approx(stress[k], abs=1e-6)


@pytest.mark.parametrize(("settings", "frame"), REFERENCES, ids=["openmm", "emt", "lj"])
def test_labels_do_not_depend_on_what_was_labelled_before(settings: Reference, frame: Frame, tmp_path: Path) -> None:
    used = build_reference(settings)
    for seed in range(3):
        used.label(peptide(seed=seed) if len(frame) == 22 else copper(seed=seed), Calculation(directory=tmp_path))
    late, fresh = (
        used.label(frame, Calculation(directory=tmp_path)),
        build_reference(settings).label(frame, Calculation(directory=tmp_path)),
    )
    assert late.energy == fresh.energy
    np.testing.assert_array_equal(late.forces, fresh.forces)


def test_emt_labels_are_those_of_ase(tmp_path: Path) -> None:
    frame = copper()
    atoms = frame.to_atoms()
    atoms.calc = EMT()
    properties = build_reference(EMTReference()).label(frame, Calculation(directory=tmp_path))
    assert properties.energy == atoms.get_potential_energy()
    np.testing.assert_array_equal(properties.forces, atoms.get_forces())
    np.testing.assert_array_equal(properties.stress, atoms.get_stress())


def test_an_ase_name_and_an_import_path_mean_the_same_calculator(tmp_path: Path) -> None:
    by_name = build_reference(ASEReference(calculator="emt")).label(copper(), Calculation(directory=tmp_path))
    settings = ASEReference(calculator="ase.calculators.emt.EMT", reuse=True)
    by_path = build_reference(settings).label(copper(), Calculation(directory=tmp_path))
    assert by_name.energy == by_path.energy


def test_a_molecule_has_no_stress(tmp_path: Path) -> None:
    frame = copper()
    cluster = Frame(
        numbers=frame.numbers, positions=frame.positions, cell=np.zeros((3, 3)), pbc=np.zeros(3, bool), system="cu"
    )
    assert build_reference(EMTReference()).label(cluster, Calculation(directory=tmp_path)).stress is None


def test_openmm_refuses_other_atoms_and_periodic_structures(tmp_path: Path) -> None:
    labeler = build_reference(openmm_reference())
    frame = peptide()
    swapped = Frame(
        numbers=frame.numbers[::-1].copy(),
        positions=frame.positions,
        cell=frame.cell,
        pbc=frame.pbc,
        system="ala",
    )
    with pytest.raises(TaskError, match="same order"):
        labeler.label(swapped, Calculation(directory=tmp_path))
    with pytest.raises(TaskError, match="periodic"):
        labeler.label(copper(), Calculation(directory=tmp_path))


def test_emt_names_the_elements_it_does_not_know(tmp_path: Path) -> None:
    silicon = Frame.from_atoms(bulk("Si"), system="si")
    with pytest.raises(TaskError, match="Si"):
        build_reference(EMTReference()).label(silicon, Calculation(directory=tmp_path))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (ASEReference(calculator="nosuchcode"), "labels.reference.calculator"),
        (ASEReference(calculator="no.such.module.Code"), "labels.reference.calculator"),
        (ASEReference(calculator="os.system", arguments={"command": "true"}), "labels.reference.calculator"),
        (ASEReference(calculator="ase.Atoms"), "labels.reference.calculator"),
        (ASEReference(calculator="tip3p", arguments={"colour": 1}), "labels.reference.arguments"),
        (OpenMMReference(topology="/nowhere.pdb"), "labels.reference.topology"),
        (
            OpenMMReference(topology=str(TEMPLATE / "alanine-dipeptide.pdb"), force_field=("nosuch.xml",)),
            "labels.reference.force_field",
        ),
        (
            OpenMMReference(topology=str(TEMPLATE / "alanine-dipeptide.pdb"), force_field=("amber19/tip3p.xml",)),
            "labels.reference.topology",
        ),
    ],
)
def test_a_wrong_reference_names_its_key(settings: Reference, key: str) -> None:
    with pytest.raises(SettingsError) as caught:
        build_reference(settings)
    assert caught.value.message.startswith(key)
    assert caught.value.remedy


def test_the_digest_follows_file_contents_not_places(tmp_path: Path) -> None:
    first = reference_digest(openmm_reference())
    text = (TEMPLATE / "alanine-dipeptide.pdb").read_text()
    copy = tmp_path / "elsewhere.pdb"
    copy.write_text(text)
    assert reference_digest(OpenMMReference(topology=str(copy))) == first
    copy.write_text(text.replace("REMARK   1", "REMARK   2"))
    assert reference_digest(OpenMMReference(topology=str(copy))) != first
    assert len(first) == 16
    assert first != hashlib.sha256(b"").hexdigest()[:16]


def test_the_digest_follows_arguments() -> None:
    digests = {reference_digest(ASEReference(calculator="lj", arguments={"sigma": s})) for s in (1.0, 1.0, 2.0)}
    assert len(digests) == 2


def test_supported_elements_are_those_of_the_method() -> None:
    assert supported_elements(openmm_reference()) == {1, 6, 7, 8}
    assert 29 in (supported_elements(EMTReference()) or ())
    assert supported_elements(ASEReference(calculator="lj")) is None
