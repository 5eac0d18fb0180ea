"""pw.x for real: labels against finite differences and hand-written inputs, other ways to the same result, failures."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from gth import write_gth

from pipeline.frames import FloatArray, Frame
from pipeline.records import Cause, Measure
from pipeline.references import Calculation, CalculationFailed, Properties, build_reference
from pipeline.references.espresso_output import VOIGT
from pipeline.settings.dft import QuantumEspressoReference
from pipeline.settings.launch import LaunchSettings
from pipeline.units import BOHR, RYDBERG

PSEUDO = "/usr/share/espresso/pseudo"
STEP_A, STRAIN = 0.005, 0.002
FORCE_EV_PER_A, STRESS_EV_PER_A3 = 5e-4, 2e-4
"""Of finite differences; the stress also has the plane waves that a cell of another size takes at the same cutoff."""
SAME_EV, SAME_EV_PER_A, SAME_EV_PER_A3 = 1e-6, 2e-4, 2e-5
"""Between two ways to the same result, at the SCF convergence below."""

Label = Callable[..., Properties]


def silicon_settings(**changes: object) -> QuantumEspressoReference:
    plain: dict[str, object] = {
        "pseudopotentials": PSEUDO,
        "pseudopotential_of": {"Si": "Si.pbe-rrkj.UPF"},
        "cutoff_Ry": 16.0,
        "kpoints": {"mesh": (2, 2, 1)},
        "scf_convergence_eV_per_atom": 1e-9,
    }
    return QuantumEspressoReference(**{**plain, **changes})


def converged_silicon() -> QuantumEspressoReference:
    return silicon_settings(cutoff_Ry=40.0, kpoints={"mesh": (2, 2, 2)}, scf_convergence_eV_per_atom=1e-10)


def water_settings() -> QuantumEspressoReference:
    return QuantumEspressoReference(
        pseudopotentials=PSEUDO,
        pseudopotential_of={"O": "O.pbe-rrkjus.UPF", "H": "H.pbe-kjpaw.UPF"},
        cutoff_Ry=25.0,
        density_cutoff_Ry=200.0,
        scf_convergence_eV_per_atom=1e-9,
    )


@pytest.fixture(scope="session")
def label(launch: LaunchSettings, tmp_path_factory: pytest.TempPathFactory) -> Label:
    """Labels; the same calculation is made once, unless it is asked for with more than settings and frame."""
    known: dict[tuple[str, str], Properties] = {}

    def compute(settings: QuantumEspressoReference, frame: Frame, **how: object) -> Properties:
        key = (settings.model_dump_json(), frame.identity)
        if how or key not in known:
            where = {"directory": tmp_path_factory.mktemp("pw"), "launch": launch, "time_s": 120.0}
            found = build_reference(settings).label(frame, Calculation(**{**where, **how}))
            if how:
                return found
            known[key] = found
        return known[key]

    return compute


def slope(label: Label, settings: QuantumEspressoReference, frame: Frame, direction: FloatArray) -> float:
    """Central finite difference of the energy along a displacement of all atoms, eV/Å."""
    up, down = (
        label(settings, replace(frame, positions=frame.positions + s * direction)).energy for s in (STEP_A, -STEP_A)
    )
    return (up - down) / (2 * STEP_A)


def strain_slope(label: Label, settings: QuantumEspressoReference, frame: Frame, strain: FloatArray) -> float:
    """Central finite difference of the energy along a strain, per volume, eV/Å³."""
    energies = []
    for s in (STRAIN, -STRAIN):
        deformed = np.eye(3) + s * strain
        energies.append(
            label(settings, replace(frame, positions=frame.positions @ deformed, cell=frame.cell @ deformed)).energy
        )
    return (energies[0] - energies[1]) / (2 * STRAIN) / abs(np.linalg.det(frame.cell))


def direction_of(frame: Frame, seed: int = 1) -> FloatArray:
    """A random displacement of all atoms without a net one, of length one."""
    direction = np.random.default_rng(seed).normal(size=frame.positions.shape)
    direction -= direction.mean(axis=0)
    return direction / np.linalg.norm(direction)


def symmetric(values: Sequence[float]) -> FloatArray:
    tensor = np.zeros((3, 3))
    for value, (i, j) in zip(values, VOIGT, strict=True):
        tensor[i, j] = tensor[j, i] = value
    return tensor


def same(one: Properties, other: Properties) -> None:
    assert one.energy == pytest.approx(other.energy, abs=SAME_EV)
    np.testing.assert_allclose(one.forces, other.forces, atol=SAME_EV_PER_A)
    assert one.stress is not None
    assert other.stress is not None
    np.testing.assert_allclose(one.stress, other.stress, atol=SAME_EV_PER_A3)


def check_derivatives(label: Label, settings: QuantumEspressoReference, frame: Frame, *, stress: bool = True) -> None:
    properties = label(settings, frame)
    direction = direction_of(frame)
    expected = -np.sum(properties.forces * direction)
    assert slope(label, settings, frame, direction) == pytest.approx(expected, abs=FORCE_EV_PER_A)
    if stress:
        assert properties.stress is not None
        strain = symmetric([0.5, -0.3, 0.4, 0.35, -0.25, 0.3])
        expected = np.sum(symmetric(properties.stress) * strain)
        assert strain_slope(label, settings, frame, strain) == pytest.approx(expected, abs=STRESS_EV_PER_A3)


def test_silicon_forces_and_stress_are_derivatives_of_the_energy(label: Label, silicon: Frame) -> None:
    check_derivatives(label, converged_silicon(), silicon)


def test_water_forces_and_stress_are_derivatives_of_the_energy(label: Label, water: Frame) -> None:
    check_derivatives(label, water_settings(), water)


def test_silicon_is_what_a_hand_written_input_gives(label: Label, silicon: Frame) -> None:
    properties = label(converged_silicon(), silicon)
    assert properties.energy == pytest.approx(-15.542134815 * RYDBERG, abs=1e-5)
    force = np.array([0.08873386, -0.05768715, 0.04801598]) * RYDBERG / BOHR
    np.testing.assert_allclose(properties.forces, [force, -force], atol=1e-4)
    kbar = np.array([78.89, 107.79, 78.01, -65.84, 38.43, -46.56])
    np.testing.assert_allclose(properties.stress, -kbar * 0.1 / 160.21766208, atol=1e-5)


def test_water_is_what_a_hand_written_input_gives(label: Label, water: Frame) -> None:
    properties = label(water_settings(), water)
    assert properties.energy == pytest.approx(-34.244518686 * RYDBERG, abs=1e-5)
    forces = [
        [0.00353187, 0.06371261, -0.00260496],
        [-0.00152090, -0.04332887, -0.02263119],
        [-0.00201097, -0.02038374, 0.02523615],
    ]
    np.testing.assert_allclose(properties.forces, np.array(forces) * RYDBERG / BOHR, atol=5e-4)
    kbar = np.array([-13.14, -15.23, -12.62, -7.18, -0.36, 0.12])
    np.testing.assert_allclose(properties.stress, -kbar * 0.1 / 160.21766208, atol=2e-5)


def test_the_hand_written_inputs_as_templates_give_the_same(label: Label, silicon: Frame) -> None:
    template = Path(__file__).parent / "espresso" / "hand-silicon.in"
    settings = QuantumEspressoReference(pseudopotentials=PSEUDO, template=str(template))
    plain = label(converged_silicon(), silicon)
    same(label(settings, silicon), plain)
    same(label(settings, silicon, measures=(Measure.SMEARED_START, Measure.GENTLE_MIXING)), plain)


def test_two_ranks_give_what_one_gives(label: Label, silicon: Frame, launch: LaunchSettings) -> None:
    alone = label(silicon_settings(), silicon)
    same(label(silicon_settings(), silicon, ranks=2), alone)  # a k-point each
    same(label(silicon_settings(), silicon, ranks=2, measures=(Measure.FEWER_RANKS,)), alone)  # plane waves shared


@pytest.mark.parametrize("measure", sorted(Measure))
def test_each_measure_leads_to_the_plain_result(label: Label, silicon: Frame, measure: Measure) -> None:
    same(label(silicon_settings(), silicon, measures=(measure,)), label(silicon_settings(), silicon))


def test_all_measures_together_lead_to_the_plain_result_of_a_metal(label: Label, silicon: Frame) -> None:
    settings = silicon_settings(smearing={"kind": "cold", "width_eV": 0.5})
    same(label(settings, silicon, measures=tuple(Measure)), label(settings, silicon))


def test_a_weak_ferromagnet_keeps_its_moment_in_every_way(label: Label) -> None:
    nickel = Frame.from_atoms(bulk("Ni", a=3.52), system="ni")
    settings = silicon_settings(
        pseudopotential_of={"Ni": "Ni.pbe-nd-rrkjus.UPF"},
        cutoff_Ry=24.0,
        density_cutoff_Ry=240.0,
        kpoints={"mesh": (4, 4, 4)},
        smearing={"kind": "cold", "width_eV": 0.136},
        magnetization={"Ni": 2.0},
        magnetic_moments=True,
        scf_convergence_eV_per_atom=1e-6,
    )
    plain = label(settings, nickel)
    assert plain.magnetic_moments is not None
    assert plain.magnetic_moments[0] > 0.4
    smeared = label(settings, nickel, measures=(Measure.SMEARED_START,))
    assert smeared.energy == pytest.approx(plain.energy, abs=1e-5)  # without a moment it is 0.1 eV higher


def test_more_steps_go_on_from_a_density_that_had_not_converged(label: Label, silicon: Frame, tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    settings = silicon_settings(max_steps=5)
    with pytest.raises(CalculationFailed, match="did not converge in 5 steps") as caught:
        label(settings, silicon, directory=first)
    assert caught.value.cause is Cause.NOT_CONVERGED
    more = label(settings, silicon, directory=second, measures=(Measure.MORE_STEPS,), previous=first)
    same(more, label(silicon_settings(), silicon))
    assert "The initial density is read from file" in (second / "pw.out").read_text()


def test_a_nearby_density_saves_steps_and_another_composition_is_no_guess(
    label: Label, silicon: Frame, hydrogen: Frame, tmp_path: Path
) -> None:
    directories = [tmp_path / name for name in ("first", "near", "other")]
    for directory in directories:
        directory.mkdir()
    first, near, other = directories
    label(silicon_settings(), silicon, directory=first)
    squeezed = replace(silicon, cell=silicon.cell * 0.99, positions=silicon.positions * 0.99)
    guessed = label(silicon_settings(), squeezed, directory=near, guess=first)
    same(guessed, label(silicon_settings(), squeezed))
    assert "The initial density is read from file" in (near / "pw.out").read_text()
    light = water_settings().model_copy(update={"cutoff_Ry": 15.0, "density_cutoff_Ry": 60.0})
    label(light, hydrogen, directory=other, guess=first)
    assert "Initial potential from superposition of free atoms" in (other / "pw.out").read_text()


def test_the_guess_survives_the_copy_of_its_restart_files_alone(label: Label, silicon: Frame, tmp_path: Path) -> None:
    first, kept, second = (tmp_path / name for name in ("first", "kept", "second"))
    for directory in (first, kept, second):
        directory.mkdir()
    label(silicon_settings(), silicon, directory=first)
    for pattern in build_reference(silicon_settings()).restart_files:
        for path in first.glob(pattern):
            target = kept / path.relative_to(first)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    same(label(silicon_settings(), silicon, directory=second, guess=kept), label(silicon_settings(), silicon))
    assert "The initial density is read from file" in (second / "pw.out").read_text()
    assert not list(first.rglob("wfc*")), "wave functions are not kept"


def test_forces_and_stress_of_a_metal_derive_from_the_free_energy(label: Label) -> None:
    atoms = Atoms("Al2", cell=np.diag([4.05 / np.sqrt(2), 4.05 / np.sqrt(2), 4.05]), pbc=True)
    atoms.positions[1] = atoms.cell.array.sum(axis=0) / 2 + [0.15, -0.1, 0.2]
    settings = QuantumEspressoReference(
        pseudopotentials=PSEUDO,
        pseudopotential_of={"Al": "Al.pz-vbc.UPF"},
        cutoff_Ry=20.0,
        smearing={"kind": "fermi", "width_eV": 0.5},
        kpoints={"mesh": (3, 3, 2), "shifted": True},
        scf_convergence_eV_per_atom=1e-9,
    )
    check_derivatives(label, settings, Frame.from_atoms(atoms, system="aluminium"))


def test_dispersion_is_part_of_energy_forces_and_stress(label: Label, silicon: Frame) -> None:
    settings = converged_silicon().model_copy(update={"dispersion": "d3"})
    assert label(settings, silicon).energy < label(converged_silicon(), silicon).energy - 0.1
    check_derivatives(label, settings, silicon)


def test_oxygen_is_a_triplet_with_moments(label: Label) -> None:
    atoms = Atoms("OO", positions=[[1, 1, 1], [1.2, 1.8, 1.85]], cell=[4.5, 4.5, 4.5], pbc=True)
    frame = Frame.from_atoms(atoms, system="oxygen")
    triplet = QuantumEspressoReference(
        pseudopotentials=PSEUDO,
        pseudopotential_of={"O": "O.pbe-rrkjus.UPF"},
        cutoff_Ry=20.0,
        density_cutoff_Ry=160.0,
        multiplicity=3,
        magnetization={"O": 1.0},
        magnetic_moments=True,
        scf_convergence_eV_per_atom=1e-8,
    )
    properties = label(triplet, frame)
    assert properties.magnetic_moments is not None
    assert (properties.magnetic_moments > 0.4).all()
    assert label(triplet.model_copy(update={"multiplicity": 1, "magnetization": {}}), frame).energy > properties.energy
    check_derivatives(label, triplet, frame, stress=False)


def test_a_molecule_does_not_feel_its_box(label: Label, tmp_path: Path) -> None:
    write_gth("H", "GTH-PBE-q1", tmp_path)
    settings = QuantumEspressoReference(
        pseudopotentials=str(tmp_path), cutoff_Ry=40.0, scf_convergence_eV_per_atom=1e-9
    )
    frame = Frame.from_atoms(Atoms("HH", positions=[[0, 0, 0], [0.1, 0.2, 0.8]]), system="h2")
    properties = label(settings, frame)
    assert properties.stress is None
    check_derivatives(label, settings, frame, stress=False)
    larger = label(settings, replace(frame, cell=np.diag([10.0, 10.0, 11.0])))
    assert larger.energy == pytest.approx(properties.energy, abs=0.01)
    np.testing.assert_allclose(larger.forces, properties.forces, atol=0.02)


def test_gth_pseudopotentials_give_forces_and_no_stress(label: Label, silicon: Frame, tmp_path: Path) -> None:
    write_gth("Si", "GTH-PBE-q4", tmp_path)
    settings = QuantumEspressoReference(
        pseudopotentials=str(tmp_path), cutoff_Ry=16.0, scf_convergence_eV_per_atom=1e-9
    )
    assert not build_reference(settings).provides_stress
    assert label(settings, silicon).stress is None
    check_derivatives(label, settings, silicon, stress=False)


def test_what_pw_refuses_is_said_in_its_own_words(label: Label, silicon: Frame) -> None:
    with pytest.raises(CalculationFailed, match=r"smearing is needed.*labels.reference.smearing") as caught:
        label(silicon_settings(charge=1), silicon, time_s=60.0)
    assert caught.value.cause is Cause.BAD_INPUT


def test_a_short_time_ends_with_a_density_to_go_on_from(label: Label, silicon: Frame, tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    # many quick steps that lead nowhere: pw.x ends by itself between two of them, before its time is up
    text = (Path(__file__).parent / "espresso" / "hand-silicon.in").read_text()
    for usual, other in (
        ("ecutwfc = 40.0", "ecutwfc = 12.0"),
        ("ecutrho = 160.0", "ecutrho = 48.0"),
        ("mixing_beta = 0.5", "mixing_beta = 1e-6"),
        ("conv_thr", "electron_maxstep = 9999, conv_thr"),
    ):
        text = text.replace(usual, other)
    (tmp_path / "slow.in").write_text(text)
    slow = QuantumEspressoReference(pseudopotentials=PSEUDO, template=str(tmp_path / "slow.in"))
    with pytest.raises(CalculationFailed, match="stopped before its time limit") as caught:
        label(slow, silicon, directory=first, time_s=6.0)
    assert caught.value.cause is Cause.TIME_LIMIT
    same(
        label(silicon_settings(), silicon, directory=second, measures=(Measure.MORE_TIME,), previous=first),
        label(silicon_settings(), silicon),
    )
    assert "The initial density is read from file" in (second / "pw.out").read_text()
