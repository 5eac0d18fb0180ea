"""Inputs of pw.x: what the settings, a template, a structure and the measures of a try make of them."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io.espresso import read_espresso_in

from pipeline.errors import SettingsError
from pipeline.frames import Frame
from pipeline.records import Cause, Measure
from pipeline.references import build_reference, supported_elements
from pipeline.references.base import Calculation, CalculationFailed
from pipeline.references.espresso_box import TAIL_A, placed
from pipeline.references.espresso_input import Sent, base_input, frame_input, mesh_of
from pipeline.references.espresso_measures import loses_moments, pools, smeared_start, with_measures
from pipeline.references.espresso_text import PwInput, read_input
from pipeline.settings.dft import KPoints, QuantumEspressoReference
from pipeline.settings.launch import LaunchSettings, ProgramSettings
from pipeline.units import RYDBERG

HEADER = '<PP_HEADER element="{}" pseudo_type="NC" z_valence="{}" wfc_cutoff="20" rho_cutoff="80"/>\n'
TEMPLATE = """! a comment, don't read it
&control calculation = 'relax', pseudo_dir='/a/b', title="x/y! nat=4", restart_mode='restart' /
&SYSTEM
 ibrav=2, celldm(1) =10.2, nat=  2  ! comment, 'quoted
 ntyp=2, ecutwfc=30.d0 starting_magnetization ( 2 ) = -0.3,
 nspin = 2, occupations='smearing', degauss=1d-2
/
&electrons
 conv_thr=1d-8, mixing_beta = 0.2, startingpot='file'
/
&ions
/
ATOMIC_SPECIES
 Si1 28.0 Si.upf
 Si2 28.0 Si.upf
# comment
K_POINTS {automatic}
 2 2 2 1 1 1
ATOMIC_POSITIONS (alat)
Si1 0 0 0
Si2 1/4 1/4 1/4
"""


@pytest.fixture
def family(tmp_path: Path) -> Path:
    for element, valence in (("Si", 4), ("O", 6), ("H", 1), ("Fe", 16)):
        (tmp_path / f"{element}.upf").write_text(HEADER.format(element, valence))
    return tmp_path


def silicon() -> Frame:
    atoms = bulk("Si", a=5.43)
    atoms.positions[1] += [0.1, -0.02, 1e-9]
    return Frame.from_atoms(atoms, system="si")


def water(cell: float = 0.0, *, pbc: bool = False) -> Frame:
    atoms = molecule("H2O", cell=[cell] * 3, pbc=pbc)
    return Frame.from_atoms(atoms, system="h2o")


def made(family: Path, frame: Frame, **changes: object) -> tuple[PwInput, Sent]:
    settings = QuantumEspressoReference(pseudopotentials=str(family), **changes)
    base, members = base_input(settings)
    return frame_input(base, settings, members, frame)


def template_input(family: Path, text: str, frame: Frame) -> PwInput:
    (family / "my.in").write_text(text)
    return made(family, frame, template=str(family / "my.in"))[0]


def test_ase_reads_the_structure_that_was_written(family: Path) -> None:
    for frame in (silicon(), water(7.0, pbc=True)):
        text, _ = made(family, frame)
        (family / "pw.in").write_text(text.to_text())
        with (family / "pw.in").open() as stream:
            atoms = read_espresso_in(stream)
        np.testing.assert_array_equal(atoms.numbers, frame.numbers)
        np.testing.assert_allclose(atoms.positions, frame.positions, atol=1e-13)
        np.testing.assert_allclose(atoms.cell.array, frame.cell, atol=1e-13)


def test_the_settings_reach_the_input_in_its_units(family: Path) -> None:
    text, sent = made(
        family,
        silicon(),
        cutoff_Ry=25.0,
        charge=-1,
        smearing={"kind": "cold", "width_eV": RYDBERG / 100},
        magnetization={"Si": 2.0},
        dispersion="d3",
        scf_convergence_eV_per_atom=1e-6,
        max_steps=44,
        kpoints={"mesh": (2, 3, 4), "shifted": True},
    )
    system = {key: text.value("system", key) for key in text.namelists["system"]}
    assert system["smearing"] == "marzari-vanderbilt"
    assert float(system["degauss"]) == pytest.approx(0.01)
    assert (system["ecutwfc"], system["ecutrho"], system["tot_charge"]) == ("25.0", "100.0", "-1")
    assert (system["nspin"], system["starting_magnetization(1)"]) == ("2", "0.5")
    assert (system["vdw_corr"], system["dftd3_version"]) == ("grimme-d3", "4")
    assert text.number("electrons", "conv_thr") == pytest.approx(2e-6 / RYDBERG)
    assert text.value("electrons", "electron_maxstep") == "44"
    assert text.cards["K_POINTS"] == ("automatic", ("2 3 4 1 1 1",))
    assert text.flag("control", "tprnfor")
    assert text.flag("control", "tstress")
    assert sent.stress
    assert sent.spin


def test_symmetry_is_never_used_and_convergence_always_needed(family: Path) -> None:
    text, _ = made(family, silicon())
    assert text.flag("system", "nosym")
    assert "scf_must_converge" not in text.to_text()
    assert text.value("system", "occupations") == "fixed"
    assert text.cards["K_POINTS"] == ("gamma", ())


def test_a_multiplicity_fixes_the_moment(family: Path) -> None:
    text, sent = made(family, water(), multiplicity=3)
    assert text.value("system", "tot_magnetization") == "2"
    assert sent.spin
    with pytest.raises(SettingsError, match=r"labels.reference.magnetization"):
        made(family, water(), magnetization={"O": 1.0})


def test_a_spacing_gives_cells_meshes_of_the_same_density() -> None:
    cell = np.diag([2 * np.pi, 4 * np.pi, 1.0])
    spacing = KPoints(spacing_per_A=0.25)
    assert mesh_of(spacing, cell, (True, True, False)) == (4, 2, 1)
    assert mesh_of(spacing, cell * 2, (True, True, True)) == (2, 1, 13)
    # a length that rounding makes a little longer than a multiple of the spacing
    assert mesh_of(spacing, cell * (1 - 1e-12), (True, True, True))[:2] == (4, 2)
    assert mesh_of(KPoints(mesh=(3, 3, 3)), cell, (True, False, False)) == (3, 1, 1)
    assert mesh_of(None, cell, (True, True, True)) == (1, 1, 1)


def test_a_molecule_is_alone_in_a_box_twice_its_size_wherever_it_lies(family: Path) -> None:
    frame = water()
    text, sent = made(family, frame)
    assert text.value("system", "assume_isolated") == "martyna-tuckerman"
    assert not text.flag("control", "tstress")
    sides = np.diag(sent.cell)
    assert (sides >= 2 * (np.ptp(frame.positions, axis=0) + 2 * TAIL_A)).all()
    np.testing.assert_allclose(sent.positions.mean(axis=0), sides / 2)
    far = Frame(numbers=frame.numbers, positions=frame.positions + 31.0, cell=frame.cell, pbc=frame.pbc, system="h2o")
    np.testing.assert_allclose(made(family, far)[1].positions, sent.positions, atol=1e-12)


def test_a_molecules_own_cell_is_its_box_where_it_is_large_enough() -> None:
    assert placed(water(15.0))[0][0, 0] == 15.0
    assert placed(water(5.0))[0][0, 0] > 5.0


def test_a_slab_keeps_its_vectors_and_gets_vacuum_where_it_has_none() -> None:
    atoms = Atoms("Si2", positions=[[0, 0, 0], [1, 1, 2.0]], cell=[[3, 0, 0], [1, 3, 0], [0, 0, 0]], pbc=[1, 1, 0])
    cell, positions = placed(Frame.from_atoms(atoms, system="slab"))
    np.testing.assert_allclose(cell, [[3, 0, 0], [1, 3, 0], [0, 0, 12.0]])
    np.testing.assert_array_equal(positions, atoms.positions)
    atoms.cell[2] = [0.0, 0.5, 20.0]
    np.testing.assert_allclose(placed(Frame.from_atoms(atoms, system="slab"))[0], atoms.cell.array)


def test_an_element_without_a_pseudopotential_is_a_missing_file(family: Path) -> None:
    gold = Frame.from_atoms(bulk("Au"), system="au")
    with pytest.raises(CalculationFailed, match="no file for Au") as caught:
        made(family, gold)
    assert caught.value.cause is Cause.MISSING_FILE
    assert supported_elements(QuantumEspressoReference(pseudopotentials=str(family))) == {14, 8, 1, 26}


def test_a_pseudopotential_that_is_gone_is_a_missing_file(family: Path) -> None:
    settings = QuantumEspressoReference(pseudopotentials=str(family))
    base, members = base_input(settings)
    (family / "Si.upf").unlink()
    with pytest.raises(CalculationFailed, match=r"Si\.upf is not there") as caught:
        frame_input(base, settings, members, silicon())
    assert caught.value.cause is Cause.MISSING_FILE


def test_in_a_template_only_the_structure_is_replaced(family: Path) -> None:
    text = template_input(family, TEMPLATE, silicon())
    system = {key: text.value("system", key) for key in text.namelists["system"]}
    assert system == {
        "ntyp": "2",
        "nat": "2",
        "ibrav": "0",
        "ecutwfc": "30.d0",
        "starting_magnetization(2)": "-0.3",
        "nspin": "2",
        "occupations": "smearing",
        "degauss": "1d-2",
    }
    assert dict(text.namelists["electrons"]) == {"conv_thr": "1d-8", "mixing_beta": "0.2"}
    assert text.value("control", "calculation") == "scf"
    assert text.value("control", "title") == "x/y! nat=4"
    assert text.value("control", "pseudo_dir") == str(family)
    assert "restart_mode" not in text.namelists["control"]
    assert text.cards["K_POINTS"] == ("automatic", ("2 2 2 1 1 1",))
    assert text.cards["ATOMIC_SPECIES"][1] == ("Si1 28.0 Si.upf", "Si2 28.0 Si.upf")
    assert [row.split()[0] for row in text.cards["ATOMIC_POSITIONS"][1]] == ["Si1", "Si2"]
    assert read_input(text.to_text()) == text


def test_several_species_of_an_element_need_the_templates_own_atoms(family: Path) -> None:
    with pytest.raises(CalculationFailed, match="several species of Si") as caught:
        template_input(family, TEMPLATE, Frame.from_atoms(bulk("Si", cubic=True), system="si"))
    assert caught.value.cause is Cause.BAD_GEOMETRY


def test_elements_a_template_does_not_name_come_behind_those_it_names(family: Path) -> None:
    one = TEMPLATE.replace(" Si2 28.0 Si.upf\n", "").replace("Si1", "Si")
    atoms = Atoms("OSiH", positions=[[0, 0, 0], [0, 0, 1.6], [0, 1, 0]], cell=[6, 6, 6], pbc=True)
    text = template_input(family, one, Frame.from_atoms(atoms, system="x"))
    assert [row.split()[0] for row in text.cards["ATOMIC_SPECIES"][1]] == ["Si", "H", "O"]
    assert [row.split()[0] for row in text.cards["ATOMIC_POSITIONS"][1]] == ["O", "Si", "H"]
    assert text.value("system", "ntyp") == "3"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ATOMIC_SPECIES\nSi 28 Si.upf\n", "no &SYSTEM"),
        ("&system nat=2 /\n", "no ecutwfc"),
        (TEMPLATE.replace("mixing_beta = 0.2", "scf_must_converge=.false."), "scf_must_converge"),
        (TEMPLATE.replace("Si1 28.0 Si.upf", "Xx 28.0 Si.upf"), "Xx is no species"),
        (TEMPLATE.replace("Si1 28.0 Si.upf", "Au 28.0 Au.upf"), "no file for Au"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_at_once(family: Path, text: str, words: str) -> None:
    (family / "my.in").write_text(text)
    with pytest.raises(SettingsError, match=words):
        build_reference(QuantumEspressoReference(pseudopotentials=str(family), template=str(family / "my.in")))
    with pytest.raises(SettingsError, match=r"labels.reference.template: .* cannot be read"):
        build_reference(QuantumEspressoReference(pseudopotentials=str(family), template=str(family / "no.in")))


def test_measures_change_the_way_and_not_the_level_of_theory(family: Path) -> None:
    planned, _ = made(family, silicon(), smearing={"width_eV": 0.1})
    tried = with_measures(planned, tuple(Measure), time_s=100.0)
    assert tried.namelists["system"] == planned.namelists["system"]
    assert tried.cards == planned.cards
    changed = {
        key for key, value in tried.namelists["electrons"].items() if planned.namelists["electrons"].get(key) != value
    }
    assert changed == {"electron_maxstep", "mixing_beta", "mixing_ndim", "mixing_mode", "diagonalization"}
    assert tried.number("control", "max_seconds") == pytest.approx(89.0)


def test_measures_start_from_what_a_template_says(family: Path) -> None:
    planned = template_input(family, TEMPLATE, silicon())
    twice = with_measures(planned, (Measure.GENTLE_MIXING, Measure.MORE_STEPS, Measure.GENTLE_MIXING), time_s=1.0)
    assert twice.number("electrons", "mixing_beta") == pytest.approx(0.2 * 0.16)
    assert twice.value("electrons", "electron_maxstep") == "300"
    other = with_measures(
        planned.with_values("electrons", {"diagonalization": "cg"}), (Measure.OTHER_SOLVER,), time_s=1.0
    )
    assert other.value("electrons", "diagonalization") == "david"


def test_a_smeared_start_is_wider_than_the_settings_and_leaves_them_alone(family: Path) -> None:
    planned, _ = made(family, silicon(), smearing={"width_eV": RYDBERG})
    start = smeared_start(planned.with_values("system", {"nbnd": 4}))
    assert start.number("system", "degauss") == pytest.approx(3.0)
    assert "nbnd" not in start.namelists["system"]
    assert planned.number("system", "degauss") == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("changes", "loses"),
    [
        ({}, False),
        ({"magnetization": {"Si": 0.6}}, True),
        ({"multiplicity": 1}, True),
        ({"multiplicity": 3}, False),
    ],
)
def test_wide_smearing_comes_first_only_where_no_moment_can_be_lost(family: Path, changes, loses: bool) -> None:
    settings = QuantumEspressoReference(pseudopotentials=str(family), smearing={"width_eV": 0.1}, **changes)
    (family / "run").mkdir()
    calculation = Calculation(
        directory=family / "run",
        measures=(Measure.MORE_STEPS, Measure.SMEARED_START),
        launch=LaunchSettings(programs=ProgramSettings(pw="false")),  # its first input is all that is made
    )
    with pytest.raises(CalculationFailed):
        build_reference(settings).label(silicon(), calculation)
    (written,) = (family / "run").glob("*.in")
    text = read_input(written.read_text())
    assert written.name == ("pw.in" if loses else "pw-start.in")
    assert text.value("electrons", "electron_maxstep") == "300"
    assert text.value("electrons", "startingpot") == ""
    assert text.number("system", "tot_magnetization") == {1: 0, 3: 2}.get(changes.get("multiplicity"))


def test_a_template_may_leave_moments_free_too(family: Path) -> None:
    free = template_input(family, TEMPLATE, silicon())
    assert loses_moments(free)
    assert loses_moments(free.with_values("system", {"tot_magnetization": -1}))
    assert loses_moments(free.with_values("system", {"tot_magnetization": -10000}))
    assert not loses_moments(free.with_values("system", {"tot_magnetization": 1.5}))
    assert loses_moments(free.without("system", ["nspin"]).with_values("system", {"noncolin": True}))
    assert not loses_moments(free.with_values("system", {"nspin": 1}))


@pytest.mark.parametrize(("isolated", "stress"), [("none", True), ("makov-payne", True), ("mt", False), ("esm", False)])
def test_no_stress_is_asked_for_where_a_template_isolates_the_structure(
    family: Path, isolated: str, stress: bool
) -> None:
    (family / "my.in").write_text(TEMPLATE.replace("ibrav=2", f"assume_isolated='{isolated}'"))
    changes = {"template": str(family / "my.in")}
    text, sent = made(family, silicon(), **changes)
    assert text.flag("control", "tstress") == sent.stress == stress
    settings = QuantumEspressoReference(pseudopotentials=str(family), **changes)
    assert build_reference(settings).provides_stress == stress


@pytest.mark.parametrize(
    ("mesh", "ranks", "expected"), [((2, 2, 2), 4, 4), ((2, 2, 2), 8, 4), ((3, 1, 1), 4, 2), ((1, 1, 1), 4, 1)]
)
def test_ranks_share_the_k_points_as_far_as_there_are_some(
    family: Path, mesh: tuple[int, int, int], ranks: int, expected: int
) -> None:
    planned, _ = made(family, silicon(), kpoints={"mesh": mesh})
    assert pools(planned, (), ranks) == expected
    assert pools(planned, (Measure.MORE_MEMORY,), ranks) == 1
