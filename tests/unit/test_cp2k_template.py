"""Inputs of the user's own for CP2K: read as CP2K reads them, and given other structures."""

import re
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from pipeline.errors import SettingsError
from pipeline.frames import Frame
from pipeline.records import Cause, Measure
from pipeline.references.base import CalculationFailed
from pipeline.references.build import supported_elements
from pipeline.references.cp2k import CP2KLabeler, cp2k_facts, cp2k_problems
from pipeline.references.cp2k_input import ask_for, insert_structure
from pipeline.references.cp2k_scf import smear_widely, take_measures
from pipeline.references.cp2k_template import place_in, read_template
from pipeline.references.cp2k_tree import Section, number, read_tree
from pipeline.settings.dft import CP2KReference

WATER = Frame.from_atoms(
    Atoms("OHH", positions=[[1 / 3, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], cell=[6, 6, 6], pbc=True), system="water"
)
SLAB = Frame.from_atoms(
    Atoms("OHH", positions=[[0, 0, 8], [1, 0, 8], [0, 1, 9]], cell=[4, 5, 20], pbc=(True, True, False)), system="slab"
)


def values(text: str, key: str) -> list[str]:
    return [match.strip() for match in re.findall(rf"^ *{key}\b(.*)$", text, re.MULTILINE)]


TEMPLATE = """! made by hand
@SET BASIS SZV-MOLOPT-SR-GTH
@SET D3 0
&GLOBAL
  PROJECT mine
  RUN_TYPE GEO_OPT   # replaced
&END
&MOTION
  &CONSTRAINT
    &FIXED_ATOMS
      LIST 1
    &END
  &END
&END MOTION
&force_eval
  METHOD Quickstep
  &DFT
    BASIS_SET_FILE_NAME  ./my_basis
    POTENTIAL_FILE_NAME GTH_POTENTIALS
    &SCF
      EPS_SCF 1.0E-8
      MAX_SCF 30
@IF ${D3}
      THIS IS NOT READ
@ENDIF
    &END SCF
    &XC
      &XC_FUNCTIONAL BLYP
      &END
    &END XC
  &END DFT
  &SUBSYS
    &CELL
      ABC [bohr] 10 10 10
    &END
    &COORD
      H 0 0 0
    &END
@INCLUDE kinds.inc
  &END SUBSYS
&END FORCE_EVAL
"""
KINDS = r"""&KIND O
  BASIS_SET $BASIS
  POTENTIAL \
    GTH-BLYP
&END
&KIND H
  BASIS_SET ${BASIS}
  POTENTIAL ${POT-GTH-BLYP}
&END
"""


@pytest.fixture
def template(tmp_path: Path) -> Path:
    (tmp_path / "kinds.inc").write_text(KINDS)
    (tmp_path / "my_basis").write_text("a basis")
    path = tmp_path / "mine.inp"
    path.write_text(TEMPLATE)
    return path


def filled(template: Path, frame: Frame) -> str:
    tree = read_template(template)
    insert_structure(tree, place_in(tree, frame), template=True)
    ask_for(tree, forces=True, stress=True, populations=False)
    return tree.text()


def test_a_template_keeps_everything_but_the_structure_and_what_moves_it(template: Path) -> None:
    text = filled(template, WATER)
    assert "&XC_FUNCTIONAL BLYP" in text
    assert values(text, "EPS_SCF") == ["1.0E-8"]
    assert values(text, "BASIS_SET") == ["SZV-MOLOPT-SR-GTH"] * 2
    assert values(text, "POTENTIAL") == ["GTH-BLYP"] * 2
    assert values(text, "RUN_TYPE") == ["ENERGY_FORCE"]
    assert values(text, "[ABC]") == ["6.0 0.0 0.0", "0.0 6.0 0.0", "0.0 0.0 6.0"]
    assert len(values(text, "H")) == 2
    for gone in ("FIXED_ATOMS", "bohr", "NOT READ", "@", "$"):
        assert gone not in text


def test_a_molecule_stays_in_the_box_of_the_template(template: Path) -> None:
    molecule = Frame.from_atoms(Atoms("OH2", positions=WATER.positions), system="m")
    text = filled(template, molecule)
    assert values(text, "ABC") == ["[bohr] 10 10 10"]
    assert "&CENTER_COORDINATES" in text


def test_a_template_without_an_element_of_the_structure_is_refused_by_name(template: Path) -> None:
    copper = Frame.from_atoms(Atoms("Cu", cell=[4, 4, 4], pbc=True), system="cu")
    with pytest.raises(CalculationFailed, match="no &KIND Cu") as failed:
        filled(template, copper)
    assert failed.value.cause is Cause.BAD_INPUT


def test_a_template_says_which_elements_it_takes(template: Path) -> None:
    settings = CP2KReference(template=str(template))
    assert supported_elements(settings) == {1, 8}
    (template.parent / "kinds.inc").write_text(KINDS + "&KIND DEFAULT\n&END\n")
    assert supported_elements(settings) is None
    assert supported_elements(CP2KReference(preset="pbe")) is None


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text.replace("&END DFT", "&END SCF"), "closes nothing"),
        (lambda text: text.replace("&END FORCE_EVAL", ""), "is not closed"),
        (lambda text: text.replace("&force_eval", "&FORCES_EVAL").replace("END FORCE_EVAL", "END"), "0 FORCE_EVAL"),
        (lambda text: text.replace("Quickstep", "FIST"), "METHOD is FIST"),
        (lambda text: text.replace("kinds.inc", "nowhere.inc"), "nowhere.inc"),
        (lambda text: text.replace("@SET BASIS", "@SET OTHER"), "is not set"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_when_it_is_read(template: Path, damage: object, words: str) -> None:
    template.write_text(damage(TEMPLATE))
    with pytest.raises(SettingsError, match=words):
        CP2KLabeler(CP2KReference(template=str(template)))


def test_the_level_of_theory_of_a_template_is_in_it_and_in_its_files(template: Path, tmp_path: Path) -> None:
    settings = CP2KReference(template=str(template))
    facts = cp2k_facts(settings)
    template.write_text(TEMPLATE.replace("MAX_SCF 30", "MAX_SCF 90").replace("! made", "! well made"))
    assert cp2k_facts(settings) == facts
    assert cp2k_facts(settings.model_copy(update={"charges": True, "guess": "nearest"})) == facts
    (tmp_path / "my_basis").write_text("another basis")
    assert cp2k_facts(settings) != facts
    template.write_text(TEMPLATE.replace("BLYP", "PBE"))
    assert cp2k_facts(settings) != facts


def test_sections_are_written_as_they_were_read(tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_text("&A x\n  KEY [unit] 1 2\n  &B\n  &END\n  KEY 3\n&END A\n")
    tree: Section = read_tree(path)
    assert tree.text() == "&A x\n  KEY [unit] 1 2\n  &B\n  &END B\n  KEY 3\n&END A\n"
    assert tree.at("A").values("KEY") == ["[unit] 1 2", "3"]


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("( ${A} == 1 )", True),
        ("(${A}==2)", False),
        ("( ${A} /= 2 )", True),
        ("${A} == 1", True),
        ("PBE == pbe", False),
        ("${A}", True),
        ("0", False),
    ],
)
def test_conditions_hold_where_cp2k_says_so(tmp_path: Path, condition: str, holds: bool) -> None:
    path = tmp_path / "input"
    path.write_text(f"@SET A 1\n@IF {condition}\nKEY 1\n@ENDIF\n")
    assert read_tree(path).values("KEY") == (["1"] if holds else [])


@pytest.mark.parametrize("condition", ["( 0 )", "( ( 1 == 1 ) )", "( 1 == 1", "(1) == (1)", "1 == 1 == 1", "1 =="])
def test_a_condition_that_cp2k_reads_otherwise_than_it_looks_is_refused_with_its_line(
    tmp_path: Path, condition: str
) -> None:
    path = tmp_path / "input"
    path.write_text(f"KEY 1\n@IF {condition}\n@ENDIF\n")
    with pytest.raises(SettingsError, match=r"input line 2: @IF .* is no condition"):
        read_tree(path)


def test_numbers_are_read_as_cp2k_reads_them() -> None:
    assert [number(text) for text in ("1.0D-6", "1.d0", "20", "1/4", ".5E1")] == [1e-6, 1.0, 20.0, 0.25, 5.0]
    assert number("[eV] 0.5", {"EV": 2.0}) == 1.0
    for wrong in ("[Ry] 1", "many", "1 2", ""):
        with pytest.raises(SettingsError, match=r"number"):
            number(wrong, {"EV": 2.0})


def test_measures_understand_numbers_as_fortran_writes_them(template: Path) -> None:
    smear = "&SMEAR\n METHOD FERMI_DIRAC\n ELECTRONIC_TEMPERATURE [K] 1.0D4\n &END\n"
    template.write_text(TEMPLATE.replace("EPS_SCF 1.0E-8", f"EPS_SCF 1.0D-4\n{smear}"))
    dft = read_template(template).at("FORCE_EVAL", "DFT")
    take_measures(dft, (Measure.MORE_STEPS, Measure.GENTLE_MIXING, Measure.OTHER_SOLVER))
    assert values(dft.text(), "MAX_SCF") == ["90"]
    assert smear_widely(dft)
    assert float(values(dft.text(), "ELECTRONIC_TEMPERATURE")[0]) == pytest.approx(3e4)
    assert float(values(dft.text(), "EPS_SCF")[0]) == 1e-4


# periodicity


def with_cell(template: Path, cell: str, poisson: str = "") -> None:
    text = TEMPLATE.replace("ABC [bohr] 10 10 10", cell)
    template.write_text(text.replace("    &SCF\n", f"    {poisson}\n    &SCF\n", 1))


@pytest.mark.parametrize("cell", ["ABC 4 5 24", "A 4 0 0\nB 0 5 0\nC [nm] 0 0 2.4", "ABC 4 5 24\nPERIODIC XY"])
def test_a_slab_keeps_the_vacuum_of_the_template_and_gets_a_solver_that_fits(template: Path, cell: str) -> None:
    with_cell(template, cell)
    tree = read_template(template)
    geometry = place_in(tree, SLAB)
    assert geometry.cell == pytest.approx(np.diag([4, 5, 24]))
    assert geometry.positions[:, 2] == pytest.approx([11.5, 11.5, 12.5])
    text = filled(template, SLAB)
    assert values(text, "PERIODIC") == ["XY", "XY"]
    assert values(text, "PSOLVER") == ["MT"]


def test_a_slab_keeps_the_solver_of_a_template_that_has_one(template: Path) -> None:
    with_cell(template, "ABC 4 5 24", "&POISSON\n PERIODIC XY\n PSOLVER ANALYTIC\n &END")
    assert values(filled(template, SLAB), "PSOLVER") == ["ANALYTIC"]


@pytest.mark.parametrize(
    ("cell", "poisson", "frame", "words"),
    [
        ("ABC 6 6 20\nPERIODIC XY", "", WATER, "periodic along XYZ, but &CELL .* PERIODIC XY"),
        ("ABC 6 6 20", "&POISSON\n PERIODIC XY\n&END", WATER, "but &POISSON .* PERIODIC XY.*pbc"),
        ("ABC 4 5 20", "&POISSON\n PERIODIC XZ\n&END", SLAB, "periodic along XY, but &POISSON"),
        ("ABC 4 5 1", "", SLAB, "extends over"),
        ("CELL_FILE_NAME other.cif", "", SLAB, "has no vectors"),
        ("A 4 0 0\nB 0 5 0\nC 0 3 20", "", SLAB, "has no vectors"),
    ],
)
def test_a_template_for_another_periodicity_or_box_is_refused_before_anything_is_computed(
    template: Path, cell: str, poisson: str, frame: Frame, words: str
) -> None:
    with_cell(template, cell, poisson)
    (problem,) = cp2k_problems(CP2KReference(template=str(template)), {"one": [frame], "none": []})
    assert re.search(f"labels.reference: system one: .*{words}", problem)


# several kinds of an element

TWO_KINDS = """&KIND O
&END
&KIND Up
  ELEMENT H
  MAGNETIZATION 1
&END
&KIND H2
  MAGNETIZATION -1
&END
"""


@pytest.fixture
def ordered(template: Path) -> Path:
    (template.parent / "kinds.inc").write_text(TWO_KINDS)
    template.write_text(
        TEMPLATE.replace("      H 0 0 0\n", "      UNIT bohr\n      O 0 0 0\n      up 1 0 0\n      H2 0 1 0\n")
    )
    return template


def test_atoms_keep_the_kinds_that_the_template_gives_them(ordered: Path) -> None:
    text = filled(ordered, WATER)
    assert [
        line.split()[0] for line in text.partition("&COORD\n")[2].partition("&END")[0].splitlines() if line.split()
    ] == [
        "O",
        "up",
        "H2",
    ]
    assert values(text, "up") == ["0.96 0.0 0.0"]
    assert supported_elements(CP2KReference(template=str(ordered))) == {1, 8}


def test_which_atom_is_of_which_kind_is_level_of_theory_and_where_it_lies_is_not(ordered: Path) -> None:
    settings = CP2KReference(template=str(ordered))
    facts, text = cp2k_facts(settings), ordered.read_text()
    ordered.write_text(text.replace("up 1 0 0", "up 2 0 0"))
    assert cp2k_facts(settings) == facts
    ordered.write_text(text.replace("up 1 0 0", "H2 1 0 0").replace("H2 0 1 0", "up 0 1 0"))
    assert cp2k_facts(settings) != facts


def test_kinds_of_other_atoms_are_refused(ordered: Path) -> None:
    turned = Frame.from_atoms(Atoms("HOH", positions=WATER.positions, cell=[6, 6, 6], pbc=True), system="w")
    (problem,) = cp2k_problems(CP2KReference(template=str(ordered)), {"w": [WATER, turned]})
    assert "kinds of its own in &COORD (O, up, H2)" in problem
    ordered.write_text(TEMPLATE.replace("&COORD\n      H 0 0 0\n    &END", ""))
    with pytest.raises(CalculationFailed, match=r"no &KIND H,.*list the atoms of the structures with their kinds"):
        filled(ordered, WATER)
