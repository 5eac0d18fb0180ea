"""CP2K's input as text, and labels from stored outputs: whole, of other versions, and damaged in hundreds of ways."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units

from pipeline.errors import SettingsError
from pipeline.frames import Frame
from pipeline.records import Cause, Measure
from pipeline.references.base import CalculationFailed, Properties
from pipeline.references.build import reference_digest
from pipeline.references.cp2k import CP2KLabeler, cp2k_facts
from pipeline.references.cp2k_failures import find_failure
from pipeline.references.cp2k_geometry import Geometry, place
from pipeline.references.cp2k_input import ask_for, insert_structure, preset, read_template
from pipeline.references.cp2k_output import Wanted, read_properties
from pipeline.references.cp2k_scf import smear_widely, take_measures
from pipeline.references.cp2k_tree import Section, read_tree
from pipeline.settings.dft import CP2KReference, KPoints, Smearing

STORED = Path(__file__).parents[1] / "dft" / "cp2k"
LABELLED = ("water", "silicon", "hydroxyl")
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


def stored(name: str) -> tuple[str, str, Wanted]:
    """Output, second file and question of a real calculation."""
    plain = json.loads((STORED / name / "frame.json").read_text())
    frame = Frame(
        numbers=np.array(plain["numbers"]),
        positions=np.array(plain["positions"]),
        cell=np.array(plain["cell"]),
        pbc=np.array(plain["pbc"]),
        system=plain["system"],
    )
    populations = name != "silicon"
    wanted = Wanted(geometry=place(frame), stress=True, charges=populations, magnetic_moments=populations)
    second = STORED / name / "label.scine"
    return (STORED / name / "label.out").read_text(), second.read_text() if second.is_file() else "", wanted


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


def test_a_file_of_the_users_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"potential_files.*nowhere"):
        CP2KLabeler(CP2KReference(preset="pbe", potential_files=(str(tmp_path / "nowhere"),)))


# outputs


@pytest.mark.parametrize("name", LABELLED)
def test_a_real_output_gives_the_label_that_stands_in_it(name: str) -> None:
    output, second, wanted = stored(name)
    assert find_failure(output, 0, "") is None
    label = read_properties(output, second, wanted)
    energy = float(re.search(r"ENERGY\| Total FORCE_EVAL .* (\S+)\n", output)[1])
    assert label.energy == pytest.approx(energy * units.Hartree, abs=1e-10)
    first = re.search(r"Element +X +Y +Z *\n +1 +1 +\w+ +(\S+) +(\S+) +(\S+)", output).groups()
    assert label.forces[0] == pytest.approx([float(x) * units.Hartree / units.Bohr for x in first], abs=1e-9)
    xz = re.search(r"STRESS\| +x +\S+ +\S+ +(\S+)\n", output)[1]
    assert label.stress[4] == pytest.approx(-float(xz) * units.GPa, abs=1e-12)
    assert label.program == "CP2K 2023.1"


def test_charges_and_moments_are_those_of_a_radical() -> None:
    label = read_properties(*stored("hydroxyl"))
    assert label.charges == pytest.approx([-0.375, 0.375], abs=0.001)
    assert label.magnetic_moments == pytest.approx([1.031, -0.031], abs=0.001)


@pytest.mark.parametrize(
    ("name", "code", "cause", "words"),
    [
        ("unconverged", 0, Cause.NOT_CONVERGED, "did not converge in 2 steps"),
        ("no-basis", 1, Cause.MISSING_FILE, "basis set <DZVP-NOWHERE> for element <H> was not found"),
        ("no-file", 1, Cause.MISSING_FILE, "file <NO_POTENTIALS> cannot be opened"),
        ("wrong-spin", 1, Cause.BAD_INPUT, "LSD: try to use a different multiplicity. "),
    ],
)
def test_a_failure_is_named_in_cp2ks_own_words(name: str, code: int, cause: Cause, words: str) -> None:
    failure = find_failure(stored(name)[0], code, "")
    assert failure is not None
    assert failure.cause is cause
    assert words in f"{failure} "


def test_a_run_that_breaks_off_is_a_crash_and_an_abort_in_the_midst_of_the_scf_too() -> None:
    output = stored("water")[0]
    torn = output[: output.index("Total energy:")]
    killed = find_failure(torn, 137, "signal 9")
    assert killed is not None
    assert killed.cause is Cause.CRASH
    assert "signal 9" in str(killed)
    box = re.search(r" \*{79}\n \*   ___.*?\n \*{79}\n", stored("wrong-spin")[0], re.DOTALL)[0]
    aborted = find_failure(torn + box, 1, "")
    assert aborted is not None
    assert aborted.cause is Cause.CRASH


def test_a_density_that_only_seems_converged_is_no_label() -> None:
    output, second, wanted = stored("silicon")
    total = re.search(r"  Total energy: +(-\d+\.\d+)", output)[1]
    with pytest.raises(CalculationFailed) as failed:
        read_properties(output.replace(total, f"{float(total) + 2e-5:.14f}"), second, wanted)
    assert failed.value.cause is Cause.NOT_CONVERGED


def as_in_2025(output: str) -> str:
    """The tables that CP2K 2025 prints otherwise, from the same numbers."""
    output = output.replace("energy [a.u.]: ", "energy [hartree] ").replace("[GPa]", "[bar]")
    output = re.sub(
        r"(STRESS\| +(?:[xyz]|1/3 Trace|Eigenvalues) )((?: +\S+E\S+)+)",
        lambda m: m[1] + " ".join(f" {float(x) * 1e4:18.11E}" for x in m[2].split()),
        output,
    )
    output = re.sub(r"(STRESS\| Determinant +)(\S+)", lambda m: f"{m[1]}{float(m[2]) * 1e12:.11E}", output)
    head, table, tail = re.split(r" ATOMIC FORCES in \[a\.u\.\]\n\n.*\n((?:.*\n)*?) SUM OF ATOMIC FORCES.*\n", output)
    forces = np.array([[float(x) for x in row.split()[3:]] for row in table.splitlines()])
    rows = [
        f" FORCES| {i:6d} " + " ".join(f"{x:19.12E}" for x in (*force, np.linalg.norm(force)))
        for i, force in enumerate(forces, start=1)
    ]
    total = forces.sum(axis=0)
    lines = [
        " FORCES| Atomic forces [hartree/bohr]",
        " FORCES|   Atom     x                   y                   z                   |f|",
        *rows,
        " FORCES| Sum    " + " ".join(f"{x:19.12E}" for x in total),
        f" FORCES| Total atomic force {np.linalg.norm(total):.12E}",
    ]
    return head + "\n".join(lines) + "\n" + tail


@pytest.mark.parametrize("name", LABELLED)
def test_the_tables_of_2025_give_the_same_label(name: str) -> None:
    output, second, wanted = stored(name)
    assert same(read_properties(as_in_2025(output), second, wanted), read_properties(output, second, wanted))


def test_an_unknown_format_is_refused() -> None:
    output, second, wanted = stored("water")
    for known, unknown in (
        ("[a.u.]", "[Ry]"),
        ("[GPa]", "[kbar]"),
        ("SUM OF ATOMIC FORCES", "TOTAL"),
        ("# Atom", "# No"),
    ):
        with pytest.raises(CalculationFailed) as failed:
            read_properties(output.replace(known, unknown), second, wanted)
        assert failed.value.cause is Cause.BAD_OUTPUT


def test_the_label_of_another_structure_is_refused() -> None:
    output, second, wanted = stored("water")
    geometry = wanted.geometry
    others: list[Geometry] = [
        replace(geometry, positions=geometry.positions + 1e-5),
        replace(geometry, positions=geometry.positions[[0, 2, 1]]),
        replace(geometry, cell=geometry.cell * (1 + 1e-6)),
        replace(geometry, symbols=("O", "H", "D")),
        replace(geometry, symbols=geometry.symbols[:2], positions=geometry.positions[:2]),
    ]
    for other in others:
        with pytest.raises(CalculationFailed):
            read_properties(output, second, replace(wanted, geometry=other))


# damaged outputs


def same(one: Properties, other: Properties) -> bool:
    """To the printed rounding: 12 decimals of atomic units, 12 digits of the stress, 6 decimals of populations."""
    scale = float(np.abs(other.stress).max())
    pairs = [
        (one.energy, other.energy, 2e-10),
        (one.forces, other.forces, 3e-10),
        (one.stress, other.stress, 2e-9 * scale),
        (one.charges, other.charges, 1e-5),
        (one.magnetic_moments, other.magnetic_moments, 1e-5),
    ]
    return all(a is b or np.abs(np.asarray(a) - np.asarray(b)).max() <= most for a, b, most in pairs)


def refused(output: bytes, second: bytes, wanted: Wanted, right: Properties) -> bool:
    """Whether damaged files give no label; a wrong one is an error here."""
    text = output.decode("utf-8", errors="replace")
    if find_failure(text, 0, "") is not None:
        return True
    try:
        label = read_properties(text, second.decode("utf-8", errors="replace"), wanted)
    except CalculationFailed:
        return True
    assert same(label, right), f"a wrong label: {label} instead of {right}"
    return False


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize("new_format", [False, True])
def test_no_truncation_gives_a_label(name: str, new_format: bool) -> None:
    output, second, wanted = stored(name)
    output = as_in_2025(output) if new_format else output
    right = read_properties(output, second, wanted)
    generator = np.random.default_rng(1)
    raw, raw2 = output.encode(), second.encode()
    lengths = generator.integers(0, output.index("PROGRAM STOPPED IN"), 200)
    assert all(refused(raw[:length], raw2, wanted, right) for length in lengths)
    assert all(refused(raw, raw2[:length], wanted, right) for length in generator.integers(0, len(raw2), 50))


@pytest.mark.parametrize("name", LABELLED)
def test_flipped_bytes_give_no_label_or_the_same(name: str) -> None:
    """Everywhere, and again where the numbers stand."""
    output, second, wanted = stored(name)
    right = read_properties(output, second, wanted)
    generator = np.random.default_rng(2)
    raw = output.encode()
    numbers = (raw.index(b" ENERGY| Total"), raw.index(b" STRESS|      z", raw.index(b"Eigenvalues")))
    places = [*generator.integers(0, len(raw), 200), *generator.integers(*numbers, 200)]
    shares = {}
    for where, chosen in (("anywhere", places[:200]), ("energy, forces and stress", places[200:])):
        stopped = 0
        for place_ in chosen:
            damaged = bytearray(raw)
            damaged[place_] ^= int(generator.integers(1, 256))
            stopped += refused(bytes(damaged), second.encode(), wanted, right)
        shares[where] = stopped / len(chosen)
    second_stopped = 0
    for place_ in generator.integers(0, len(second), 100):
        damaged = bytearray(second.encode())
        damaged[place_] ^= int(generator.integers(1, 256))
        second_stopped += refused(raw, bytes(damaged), wanted, right)
    shares["second file"] = second_stopped / 100
    assert shares["energy, forces and stress"] > 0.75, f"refused: {shares}"
    assert shares["second file"] > 0.9, f"refused: {shares}"


def test_every_digit_of_energy_forces_and_stress_is_guarded() -> None:
    """Each of them changed by one: refused, or below the printed rounding."""
    output, second, wanted = stored("silicon")
    right = read_properties(output, second, wanted)
    start, end = output.index(" ENERGY| Total"), output.index("STRESS| Eigenvectors")
    digits = [i for i in range(start, end) if output[i].isdigit()]
    stopped = 0
    for i in digits:
        changed = output[:i] + str((int(output[i]) + 1) % 10) + output[i + 1 :]
        stopped += refused(changed.encode(), second.encode(), wanted, right)
    assert stopped > 0.7 * len(digits), f"refused: {stopped} of {len(digits)}"


def test_two_outputs_in_one_file_give_no_label() -> None:
    outputs = {name: stored(name) for name in LABELLED}
    generator = np.random.default_rng(3)
    for name, (output, second, wanted) in outputs.items():
        right = read_properties(output, second, wanted)
        for other, _, _ in outputs.values():
            assert refused((output + other).encode(), second.encode(), wanted, right)
            assert refused((other + output).encode(), second.encode(), wanted, right)
            for _ in range(30):  # one over the end, or the beginning, of another
                cut, later = generator.integers(0, len(output)), generator.integers(0, len(other))
                mixed = output[:cut] + other[later:]
                if other is not output:
                    assert refused(mixed.encode(), second.encode(), wanted, right), (name, cut, later)
                else:
                    refused(mixed.encode(), second.encode(), wanted, right)


def test_sections_are_written_as_they_were_read(tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_text("&A x\n  KEY [unit] 1 2\n  &B\n  &END\n  KEY 3\n&END A\n")
    tree: Section = read_tree(path)
    assert tree.text() == "&A x\n  KEY [unit] 1 2\n  &B\n  &END B\n  KEY 3\n&END A\n"
    assert tree.at("A").values("KEY") == ["[unit] 1 2", "3"]
