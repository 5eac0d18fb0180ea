"""CP2K for real: labels against finite differences, against inputs written by hand, and against themselves on other ways.

Shapes: N atoms. Units: eV, Å, eV/Å³.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units

from pipeline.frames import Frame
from pipeline.records import Cause, Measure
from pipeline.references.base import Calculation, CalculationFailed, Properties
from pipeline.references.cp2k import CP2KLabeler
from pipeline.settings.dft import CP2KReference, KPoints, Smearing
from pipeline.settings.launch import LaunchSettings

SMALL = CP2KReference(preset="pbe", basis="SZV-MOLOPT-SR-GTH", cutoff_Ry=200, rel_cutoff_Ry=40)
WATER = SMALL.model_copy(update={"preset": "pbe-d3", "cutoff_Ry": 250.0})
METAL = SMALL.model_copy(update={"smearing": Smearing(width_eV=0.1), "kpoints": KPoints(mesh=(2, 1, 1))})
COARSE = METAL.model_copy(update={"cutoff_Ry": 120.0})
RESTARTS = "label-RESTART.wfn"

Label = Callable[..., tuple[Properties, Path]]


@pytest.fixture(scope="session")
def label(tmp_path_factory: pytest.TempPathFactory, launch: LaunchSettings) -> Label:
    """A real calculation in a directory of its own: its label and the directory; the same question is asked once."""
    known: dict[str, tuple[Properties, Path]] = {}

    def compute(frame: Frame, settings: CP2KReference, *measures: Measure, **more: object) -> tuple[Properties, Path]:
        question = repr((frame.identity, settings, measures, more))
        if question not in known:
            directory = tmp_path_factory.mktemp("cp2k")
            calculation = Calculation(directory=directory, measures=measures, launch=launch, time_s=120, **more)
            known[question] = CP2KLabeler(settings).label(frame, calculation), directory
        return known[question]

    return compute


@pytest.fixture(scope="session")
def plain(label: Label, hydrogen: Frame) -> tuple[Properties, Path]:
    """The label of H2 as the settings say, and where it was made."""
    return label(hydrogen, SMALL)


def displaced(frame: Frame, displacement: np.ndarray) -> Frame:
    return replace(frame, positions=frame.positions + displacement)


def strained(frame: Frame, strain: np.ndarray) -> Frame:
    deformation = np.eye(3) + strain
    return replace(frame, positions=frame.positions @ deformation, cell=frame.cell @ deformation)


def assert_derivatives(label: Label, frame: Frame, settings: CP2KReference, *, forces: float, stress: float) -> None:
    """Forces and stress along a random direction against central differences of the energy."""
    right, _ = label(frame, settings)
    generator = np.random.default_rng(5)
    way = generator.normal(size=frame.positions.shape)
    way /= np.linalg.norm(way)
    high, low = (label(displaced(frame, sign * 0.01 * way), settings)[0].energy for sign in (1, -1))
    assert (high - low) / 0.02 == pytest.approx(-float((right.forces * way).sum()), abs=forces)
    if right.stress is None:
        return
    shear = generator.normal(size=(3, 3))
    shear = (shear + shear.T) / np.linalg.norm(shear + shear.T)
    high, low = (label(strained(frame, sign * 0.004 * shear), settings)[0].energy for sign in (1, -1))
    xx, yy, zz, yz, xz, xy = right.stress
    tensor = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    volume = abs(np.linalg.det(frame.cell))
    assert (high - low) / 0.008 / volume == pytest.approx(float((tensor * shear).sum()), abs=stress)


def test_forces_and_stress_of_water_are_derivatives_of_its_energy(label: Label, water: Frame) -> None:
    assert_derivatives(label, water, WATER, forces=5e-3, stress=2e-4)


def test_forces_on_a_smooth_grid_are_derivatives_of_its_energy(label: Label, water: Frame) -> None:
    """Two components, on oxygen and on hydrogen."""
    smooth = WATER.model_copy(update={"cutoff_Ry": 300.0, "xc_grid": "smooth"})
    right, _ = label(water, smooth)
    for atom, axis in ((0, 2), (1, 1)):
        way = np.zeros((3, 3))
        way[atom, axis] = 0.01
        high, low = (label(displaced(water, sign * way), smooth)[0].energy for sign in (1, -1))
        assert (high - low) / 0.02 == pytest.approx(-right.forces[atom, axis], abs=5e-3)


def test_forces_and_stress_of_silicon_are_derivatives_of_its_free_energy(label: Label, silicon: Frame) -> None:
    assert_derivatives(label, silicon, COARSE, forces=5e-3, stress=2e-4)


def test_forces_of_a_molecule_without_periodicity_are_derivatives_of_its_energy(label: Label) -> None:
    """P2: soft pseudopotentials do with a coarse grid."""
    molecule = Frame.from_atoms(Atoms("PP", positions=[[20.0, 0.1, 0.2], [20.3, 0.5, 2.0]]), system="phosphorus")
    settings = SMALL.model_copy(update={"cutoff_Ry": 100.0})
    assert_derivatives(label, molecule, settings, forces=5e-3, stress=0)


@pytest.mark.parametrize(
    ("name", "settings", "energy", "forces", "stress"),
    [
        (
            "water",
            WATER,
            -17.137488891589214,
            [
                [0.0025106448, 0.0452810625, -0.0755499354],
                [0.0008244247, 0.0259876964, 0.0206100359],
                [-0.0047542875, -0.0723692922, 0.0514304520],
            ],
            [0.0565135062250, 3.02409491151, 1.52264740275, -0.919643607505, -0.0856023685579, 0.157714236850],
        ),
        (
            "silicon",
            METAL,
            -7.401404050183586,
            [[0.0846356327, -0.0503517879, 0.0462677324], [-0.0846360519, 0.0503518263, -0.0462681242]],
            [34.4406285329, 35.5444291015, 35.3169230073, -23.0242195675, 17.1854686678, 0.115233941361],
        ),
    ],
)
def test_labels_are_those_of_inputs_written_by_hand(
    label: Label,
    request: pytest.FixtureRequest,
    name: str,
    settings: CP2KReference,
    energy: float,
    forces: list[list[float]],
    stress: list[float],
) -> None:
    """CP2K 2023.1 printed these numbers (hartree, bohr, GPa) for tests/dft/cp2k/by_hand: other keywords, the same physics."""
    result, _ = label(request.getfixturevalue(name), settings)
    assert result.energy == pytest.approx(energy * units.Hartree, abs=1e-5)
    assert result.forces == pytest.approx(np.array(forces) * units.Hartree / units.Bohr, abs=2e-4)
    assert result.stress == pytest.approx(-np.array(stress) * units.GPa, abs=2e-6)
    assert result.program.startswith("CP2K ")


def assert_same(one: Properties, other: Properties, *, tolerance: float = 2e-5) -> None:
    assert one.energy == pytest.approx(other.energy, abs=1e-7)
    assert one.forces == pytest.approx(other.forces, abs=tolerance)
    assert one.stress == pytest.approx(other.stress, abs=tolerance / 10)


def test_two_ranks_give_what_one_gives(label: Label, hydrogen: Frame, plain: tuple[Properties, Path]) -> None:
    assert_same(label(hydrogen, SMALL, ranks=2)[0], plain[0])


@pytest.mark.parametrize(
    "measures",
    [
        (Measure.FRESH_START,),
        (Measure.GENTLE_MIXING,),
        (Measure.OTHER_SOLVER,),
        (Measure.SMEARED_START,),
        (Measure.MORE_STEPS, Measure.GENTLE_MIXING, Measure.OTHER_SOLVER, Measure.SMEARED_START),
    ],
    ids=lambda measures: "+".join(measures),
)
def test_a_measure_gives_the_plain_result(
    label: Label, hydrogen: Frame, plain: tuple[Properties, Path], measures: tuple[Measure, ...]
) -> None:
    assert_same(label(hydrogen, SMALL, *measures)[0], plain[0])


@pytest.mark.parametrize("measure", [Measure.GENTLE_MIXING, Measure.OTHER_SOLVER, Measure.SMEARED_START])
def test_a_measure_gives_the_plain_result_for_a_metal_too(label: Label, silicon: Frame, measure: Measure) -> None:
    assert_same(label(silicon, COARSE, measure)[0], label(silicon, COARSE)[0])


def test_more_steps_go_on_where_the_try_before_ended(
    label: Label, hydrogen: Frame, plain: tuple[Properties, Path], tmp_path: Path, launch: LaunchSettings
) -> None:
    short = SMALL.model_copy(update={"max_steps": 3})
    with pytest.raises(CalculationFailed) as failed:
        CP2KLabeler(short).label(hydrogen, Calculation(directory=tmp_path, launch=launch))
    assert failed.value.cause is Cause.NOT_CONVERGED
    assert (tmp_path / RESTARTS).is_file()
    result, directory = label(hydrogen, short, Measure.MORE_STEPS, previous=tmp_path)
    assert_same(result, plain[0])
    assert "Density guess:                                   RESTART" in (directory / "label.out").read_text()


def test_a_nearby_wave_function_saves_steps_and_one_of_other_atoms_does_no_harm(
    label: Label, hydrogen: Frame, water: Frame, plain: tuple[Properties, Path]
) -> None:
    result, directory = label(hydrogen, SMALL, guess=plain[1])
    assert_same(result, plain[0])

    def steps(where: Path) -> int:
        return (where / "label.out").read_text().count(" OT DIIS ")

    assert steps(directory) < steps(plain[1])
    with_guess = label(water, SMALL, guess=plain[1])[0]
    assert with_guess.energy < -400


def test_oxygen_is_a_triplet_with_a_moment_on_each_atom(label: Label) -> None:
    atoms = Atoms("OO", positions=[[2.5, 2.5, 1.9], [2.5, 2.5, 3.13]], cell=[5, 5, 5], pbc=True)
    settings = SMALL.model_copy(update={"multiplicity": 3, "charges": True, "magnetic_moments": True})
    result, _ = label(Frame.from_atoms(atoms, system="oxygen"), settings)
    assert result.magnetic_moments == pytest.approx([1, 1], abs=0.01)
    assert result.charges == pytest.approx([0, 0], abs=0.01)


def test_a_template_gives_the_label_of_the_preset_it_spells_out(
    label: Label, hydrogen: Frame, plain: tuple[Properties, Path], tmp_path: Path
) -> None:
    """With a basis set of the user's beside it, with the structure of another calculation in it, and with measures."""
    basis = Path("/usr/share/cp2k/BASIS_MOLOPT").read_text()
    (tmp_path / "my basis").write_text(basis)
    by_hand = (Path(__file__).parent / "cp2k" / "by_hand" / "water.inp").read_text()
    text = by_hand.replace("BASIS_MOLOPT", '"my basis"').replace("[eV] 3401.423", "200").replace("1.0E-13", "1.0E-12")
    head, _, rest = text.partition("      &VDW_POTENTIAL")
    (tmp_path / "mine.inp").write_text(head + rest.partition("&END VDW_POTENTIAL\n")[2])
    settings = CP2KReference(template=str(tmp_path / "mine.inp"), charges=True)
    result, _ = label(hydrogen, settings)
    assert_same(result, plain[0])
    assert result.charges is not None
    gentle = label(hydrogen, settings, Measure.MORE_STEPS, Measure.GENTLE_MIXING, Measure.OTHER_SOLVER)[0]
    assert_same(gentle, plain[0])


def test_kinds_of_one_element_and_the_box_of_a_slab_reach_cp2k(label: Label, hydrogen: Frame, tmp_path: Path) -> None:
    """Two hydrogen atoms far apart, one with spin up and one with spin down, as the template's own atoms say it."""
    atoms = hydrogen.to_atoms()
    atoms.pbc = (True, True, False)
    atoms.positions[1] = atoms.positions[0] + [0, 0, 2.4]
    text = (Path(__file__).parent / "cp2k" / "by_hand" / "water.inp").read_text()
    head, _, rest = text.partition("    &CELL")
    kinds = "".join(
        f"&KIND {name}\nELEMENT H\nMAGNETIZATION {moment}\nBASIS_SET SZV-MOLOPT-SR-GTH\nPOTENTIAL GTH-PBE\n&END\n"
        for name, moment in (("H1", 1), ("H2", -1))
    )
    subsys = f"&CELL\nABC 5 5 9\n&END\n&COORD\nH1 0 0 0\nH2 0 0 3\n&END\n{kinds}"
    dft = rest.partition("  &END SUBSYS\n")[2].replace("&DFT", "&DFT\nUKS\nMULTIPLICITY 1", 1)
    (tmp_path / "mine.inp").write_text(f"{head}{subsys}&END SUBSYS\n{dft}")
    settings = CP2KReference(template=str(tmp_path / "mine.inp"), magnetic_moments=True)
    result, directory = label(Frame.from_atoms(atoms, system="slab"), settings, Measure.SMEARED_START)
    assert result.magnetic_moments is not None
    assert result.magnetic_moments[0] > 0.5
    assert result.magnetic_moments.sum() == pytest.approx(0, abs=1e-3)
    assert result.stress is None
    assert not (directory / "smeared.inp").exists()
    assert "9.0" in (directory / "label.inp").read_text().partition("&CELL")[2].partition("&END")[0]


@pytest.mark.parametrize(
    ("changes", "cause", "words"),
    [
        ({"max_steps": 1}, Cause.NOT_CONVERGED, "did not converge"),
        ({"basis": "DZVP-NOWHERE"}, Cause.MISSING_FILE, "DZVP-NOWHERE"),
        ({"potential_files": ("NOWHERE",)}, Cause.MISSING_FILE, "NOWHERE"),
        ({"multiplicity": 2}, Cause.BAD_INPUT, "multiplicity"),
    ],
)
def test_failures_are_named(
    label: Label, hydrogen: Frame, changes: dict[str, object], cause: Cause, words: str
) -> None:
    with pytest.raises(CalculationFailed, match=words) as failed:
        label(hydrogen, SMALL.model_copy(update=changes))
    assert failed.value.cause is cause
