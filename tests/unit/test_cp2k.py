"""CP2K's input: from settings, structures and measures, and from templates."""

import re
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from pipeline.errors import SettingsError
from pipeline.frames import Frame
from pipeline.records import Cause, Measure
from pipeline.references.base import CalculationFailed
from pipeline.references.build import ready_reference, reference_digest, supported_elements
from pipeline.references.cp2k import CP2KLabeler, cp2k_facts
from pipeline.references.cp2k_geometry import place
from pipeline.references.cp2k_input import ask_for, insert_structure, preset, read_template
from pipeline.references.cp2k_scf import smear_widely, take_measures
from pipeline.references.cp2k_tree import Section, read_tree
from pipeline.settings.dft import CP2KReference, KPoints, Smearing

WATER = Frame.from_atoms(
    Atoms("OHH", positions=[[1 / 3, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], cell=[6, 6, 6], pbc=True), system="water"
)


def text_of(frame: Frame, *measures: Measure, **settings: object) -> str:
    reference = CP2KReference(**{"preset": "pbe", **settings})
    geometry = place(frame)
    tree = preset(reference, geometry, electrons=int(frame.numbers.sum()))
    take_measures(tree.at("FORCE_EVAL", "DFT"), measures)
    insert_structure(tree, geometry, template=False)
    ask_for(tree, forces=True, stress=bool(frame.pbc.all()), populations=True)
    return tree.text()


def values(text: str, key: str) -> list[str]:
    return [match.strip() for match in re.findall(rf"^ *{key}\b(.*)$", text, re.MULTILINE)]


# what is asked for


def test_numbers_reach_cp2k_with_all_their_digits() -> None:
    assert values(text_of(WATER), "O")[0].split() == ["0.3333333333333333", "0.0", "0.0"]


def test_d3_is_the_only_difference_between_the_presets() -> None:
    plain, d3 = text_of(WATER).splitlines(), text_of(WATER, preset="pbe-d3").splitlines()
    added = [line for line in d3 if line not in plain]
    assert [line for line in plain if line not in d3] == []
    assert any("DFTD3(BJ)" in line for line in added)


def test_a_basis_set_of_some_valence_brings_its_pseudopotential() -> None:
    text = text_of(WATER, basis_of={"O": "DZVP-MOLOPT-SR-GTH-q6"})
    assert values(text, "POTENTIAL") == ["GTH-PBE-q6", "GTH-PBE"]
    assert values(text_of(WATER, potential_of={"O": "MINE"}), "POTENTIAL") == ["MINE", "GTH-PBE"]


def test_spin_is_unrestricted_only_where_it_is_asked_for() -> None:
    assert "UKS" not in text_of(WATER)
    assert values(text_of(WATER, multiplicity=3), "MULTIPLICITY") == ["3"]


@pytest.mark.parametrize(
    ("moment", "charge", "multiplicity"), [(1.0, 0, "3"), (0.8, 1, "2"), (-1.0, 0, "3"), (0.1, 0, "1")]
)
def test_starting_moments_without_multiplicity_start_at_the_nearest_possible_one(
    moment: float, charge: int, multiplicity: str
) -> None:
    o2 = Frame.from_atoms(Atoms("O2", positions=[[0, 0, 0], [0, 0, 1.2]], cell=[5, 5, 5], pbc=True), system="o2")
    text = text_of(o2, magnetization={"O": moment}, charge=charge)
    assert values(text, "MULTIPLICITY") == [multiplicity]
    assert values(text, "MAGNETIZATION") == [repr(moment)]


def test_fixed_occupations_at_gamma_are_minimised_and_others_diagonalised() -> None:
    assert "&OT" in text_of(WATER)
    assert "&DIAGONALIZATION" in text_of(WATER, solver="diagonalization")
    for extra in ({"smearing": Smearing(width_eV=0.1)}, {"kpoints": KPoints(mesh=(2, 1, 1))}):
        assert "&OT" not in text_of(WATER, **extra)


def test_the_width_of_the_smearing_becomes_a_temperature() -> None:
    text = text_of(WATER, smearing=Smearing(width_eV=0.02585))
    assert float(values(text, "ELECTRONIC_TEMPERATURE")[0]) == pytest.approx(300, rel=1e-3)


def test_meshes_are_around_gamma_unless_they_are_shifted() -> None:
    def scheme(**kpoints: object) -> str:
        return values(text_of(WATER, kpoints=KPoints(**kpoints)), "SCHEME")[0]

    assert scheme(mesh=(3, 1, 1)) == "MONKHORST-PACK 3 1 1"  # odd: has Γ
    assert scheme(mesh=(2, 3, 1)) == "MACDONALD 2 3 1 0.25 0.0 0.0"  # even: moved onto Γ
    assert scheme(mesh=(2, 2, 2), shifted=True) == "MONKHORST-PACK 2 2 2"  # even: off Γ by itself
    assert "KPOINTS" not in text_of(WATER, kpoints=KPoints(mesh=(1, 1, 1)))


def test_a_spacing_of_kpoints_gives_a_longer_cell_fewer_and_a_surface_one_across() -> None:
    atoms = Atoms("Si", positions=[[0, 0, 0]], cell=[3.0, 6.0, 9.0], pbc=True)
    spacing = KPoints(spacing_per_A=0.4)
    text = text_of(Frame.from_atoms(atoms, system="s"), kpoints=spacing)
    assert values(text, "SCHEME")[0].split()[1:4] == ["6", "3", "2"]
    atoms.pbc = (True, True, False)
    assert values(text_of(Frame.from_atoms(atoms, system="s"), kpoints=spacing), "SCHEME")[0].split()[1:4] == [
        "6",
        "3",
        "1",
    ]


def test_a_molecule_is_put_in_the_middle_of_a_cube_whose_size_forgets_where_it_was() -> None:
    atoms = Atoms("H2", positions=[[50, 0, 0], [50, 0, 0.75]])
    geometry = place(Frame.from_atoms(atoms, system="h"))
    assert (geometry.periodic, geometry.solver) == ("NONE", "WAVELET")
    assert np.array_equal(geometry.cell, np.eye(3) * 11)
    assert np.allclose((geometry.positions.min(axis=0) + geometry.positions.max(axis=0)) / 2, 5.5)
    atoms.positions += 7.5
    assert np.allclose(place(Frame.from_atoms(atoms, system="h")).positions, geometry.positions)
    assert "STRESS_TENSOR ANALYTICAL" not in text_of(Frame.from_atoms(atoms, system="h"))


def test_slabs_and_wires_keep_their_periodic_vectors() -> None:
    atoms = Atoms("H2", positions=[[0, 0, 4], [0, 0, 4.75]], cell=[[3, 0, 0], [1.5, 2.6, 0], [0, 0, 0]], pbc=(1, 1, 0))
    slab = place(Frame.from_atoms(atoms, system="h"))
    assert (slab.periodic, slab.solver) == ("XY", "MT")
    assert np.array_equal(slab.cell, [[3, 0, 0], [1.5, 2.6, 0], [0, 0, 14]])
    assert np.allclose(slab.positions[:, :2], 0)
    atoms.pbc = (0, 1, 0)
    with pytest.raises(CalculationFailed, match="leave these directions") as failed:
        place(Frame.from_atoms(atoms, system="h"))
    assert failed.value.cause is Cause.BAD_GEOMETRY


# measures


def test_no_measure_touches_anything_but_the_way_to_the_result() -> None:
    """Basis, grid, functional, k-points, occupations, spin and the accuracy (or a better one) stay."""
    for settings in ({}, {"smearing": Smearing(width_eV=0.1), "kpoints": KPoints(mesh=(2, 1, 1)), "multiplicity": 3}):
        plain = text_of(WATER, **settings)
        for measure in Measure:
            other = text_of(WATER, measure, **settings)
            for key in (
                "BASIS_SET",
                "POTENTIAL",
                "CUTOFF",
                "EPS_DEFAULT",
                "SCHEME",
                "MULTIPLICITY",
                "ELECTRONIC_TEMPERATURE",
            ):
                assert values(other, key) == values(plain, key), measure
            assert float(values(other, "EPS_SCF")[-1]) <= float(values(plain, "EPS_SCF")[-1])


def test_every_measure_of_the_scf_changes_the_input_and_they_add_up() -> None:
    for settings in ({}, {"smearing": Smearing(width_eV=0.1)}, {"solver": "diagonalization"}):
        texts = {text_of(WATER, **settings)}
        taken: tuple[Measure, ...] = ()
        for measure in (Measure.MORE_STEPS, Measure.GENTLE_MIXING, Measure.OTHER_SOLVER):
            taken += (measure,)
            texts.add(text_of(WATER, *taken, **settings))
        assert len(texts) == 4


def test_more_steps_are_three_times_as_many() -> None:
    def steps(text: str) -> int:
        counts = [int(value) for value in values(text, "MAX_SCF")]
        return counts[0] if len(counts) == 1 else (min(counts) + 1) * max(counts)

    assert steps(text_of(WATER, max_steps=1)) == 1
    assert steps(text_of(WATER)) == 100
    assert steps(text_of(WATER, Measure.MORE_STEPS)) == 300
    assert steps(text_of(WATER, Measure.OTHER_SOLVER)) == 100


def test_a_smeared_start_is_wide_and_ends_with_the_moment_it_was_given() -> None:
    reference = CP2KReference(preset="pbe", multiplicity=3)
    dft = preset(reference, place(WATER), 10).at("FORCE_EVAL", "DFT")
    smear_widely(dft)
    text = dft.text()
    assert float(values(text, "ELECTRONIC_TEMPERATURE")[0]) > 3000
    assert values(text, "FIXED_MAGNETIC_MOMENT") == ["2"]
    assert values(text, "ADDED_MOS") == ["-1 -1"]


# templates

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
    insert_structure(tree, place(frame), template=True)
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


def test_the_level_of_theory_of_a_preset_is_in_its_settings_and_in_files_of_the_users(tmp_path: Path) -> None:
    own = tmp_path / "basis"
    own.write_text("one")
    settings = CP2KReference(preset="pbe", basis_files=(str(own),))
    digest = reference_digest(settings)
    same = {"max_steps": 7, "guess": "nearest", "charges": True, "magnetic_moments": True}
    assert reference_digest(settings.model_copy(update=same)) == digest
    assert reference_digest(settings.model_copy(update={"cutoff_Ry": 401.0})) != digest
    own.rename(tmp_path / "elsewhere")
    assert reference_digest(settings.model_copy(update={"basis_files": (str(tmp_path / "elsewhere"),)})) == digest
    (tmp_path / "elsewhere").write_text("two")
    assert reference_digest(settings.model_copy(update={"basis_files": (str(tmp_path / "elsewhere"),)})) != digest


def test_a_worker_sees_that_files_changed_between_two_labels(tmp_path: Path) -> None:
    own = tmp_path / "basis"
    own.write_text("one")
    settings = CP2KReference(preset="pbe", basis_files=(str(own),))
    assert ready_reference(settings)[1] == reference_digest(settings)
    own.write_text("two")
    assert ready_reference(settings)[1] == reference_digest(settings)


def test_a_file_of_the_users_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"potential_files.*nowhere"):
        CP2KLabeler(CP2KReference(preset="pbe", potential_files=(str(tmp_path / "nowhere"),)))


def test_sections_are_written_as_they_were_read(tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_text("&A x\n  KEY [unit] 1 2\n  &B\n  &END\n  KEY 3\n&END A\n")
    tree: Section = read_tree(path)
    assert tree.text() == "&A x\n  KEY [unit] 1 2\n  &B\n  &END B\n  KEY 3\n&END A\n"
    assert tree.at("A").values("KEY") == ["[unit] 1 2", "3"]
