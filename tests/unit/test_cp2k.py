"""CP2K's input: from settings, structures and measures."""

import re
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from pipeline.errors import SettingsError
from pipeline.frames import Frame
from pipeline.records import Cause, Measure
from pipeline.references.base import CalculationFailed
from pipeline.references.build import ready_reference, reference_digest
from pipeline.references.cp2k import CP2KLabeler
from pipeline.references.cp2k_geometry import place
from pipeline.references.cp2k_input import ask_for, insert_structure, preset
from pipeline.references.cp2k_scf import smear_widely, take_measures
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


O2 = Frame.from_atoms(Atoms("O2", positions=[[0, 0, 0], [0, 0, 1.2]], cell=[5, 5, 5], pbc=True), system="o2")


@pytest.mark.parametrize(
    ("moment", "charge", "multiplicity"), [(1.0, 0, "3"), (0.5, 0, "3"), (0.8, 1, "2"), (-1.0, 0, "3"), (0.1, 0, "1")]
)
def test_starting_moments_without_multiplicity_start_at_the_nearest_possible_one(
    moment: float, charge: int, multiplicity: str
) -> None:
    text = text_of(O2, magnetization={"O": moment}, charge=charge)
    assert values(text, "MULTIPLICITY") == [multiplicity]
    assert values(text, "MAGNETIZATION") == [repr(moment)]


@pytest.mark.parametrize(
    ("moment", "charge", "multiplicity"), [(0.5, 0, "3"), (0.01, 0, "3"), (1.2, 0, "5"), (0.1, 1, "2"), (0.9, 1, "4")]
)
def test_with_smearing_a_small_moment_starts_as_a_larger_one_and_never_as_none(
    moment: float, charge: int, multiplicity: str
) -> None:
    text = text_of(O2, magnetization={"O": moment}, charge=charge, smearing=Smearing(width_eV=0.1))
    assert values(text, "MULTIPLICITY") == [multiplicity]


def test_moments_that_cancel_start_without_a_total_one_with_smearing_too() -> None:
    water = text_of(WATER, magnetization={"O": 0.2, "H": -0.1}, smearing=Smearing(width_eV=0.1))
    assert values(water, "MULTIPLICITY") == ["1"]


def test_a_fixed_moment_with_smearing_and_kpoints_is_refused_with_the_remedy() -> None:
    both = {"preset": "pbe", "smearing": Smearing(width_eV=0.1), "kpoints": KPoints(mesh=(2, 1, 1))}
    with pytest.raises(ValueError, match=r"multiplicity is 3.*give magnetization"):
        CP2KReference(multiplicity=3, **both)
    CP2KReference(magnetization={"O": 1.0}, **both)


def test_a_grid_of_the_functional_is_asked_for_only_where_it_is_not_cp2ks_own() -> None:
    assert "XC_GRID" not in text_of(WATER)
    smooth, fine = (text_of(WATER, xc_grid=grid) for grid in ("smooth", "fine"))
    assert (values(smooth, "XC_SMOOTH_RHO"), values(smooth, "XC_DERIV")) == (["NN50"], ["NN50_SMOOTH"])
    assert values(fine, "USE_FINER_GRID") == ["T"]
    with pytest.raises(ValueError, match="xc_grid cannot be given beside template"):
        CP2KReference(template="mine.inp", xc_grid="fine")


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
    metal = {"smearing": Smearing(width_eV=0.1), "kpoints": KPoints(mesh=(2, 1, 1)), "magnetization": {"O": 1.0}}
    for settings in ({}, metal):
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
    assert smear_widely(dft)
    text = dft.text()
    assert float(values(text, "ELECTRONIC_TEMPERATURE")[0]) > 3000
    assert values(text, "FIXED_MAGNETIC_MOMENT") == ["2"]
    assert values(text, "ADDED_MOS") == ["-1 -1"]


@pytest.mark.parametrize(
    ("settings", "moment"),
    [
        ({}, []),
        ({"smearing": Smearing(width_eV=0.1), "magnetization": {"O": 1.5}}, ["2"]),
        ({"multiplicity": 1}, None),
        ({"smearing": Smearing(width_eV=0.1), "magnetization": {"O": 0.2, "H": -0.1}}, None),
        (
            {"smearing": Smearing(width_eV=0.1), "kpoints": KPoints(mesh=(2, 1, 1)), "magnetization": {"O": 1.5}},
            None,
        ),
    ],
    ids=["paired", "relaxing", "singlet", "cancelling", "k-points"],
)
def test_a_smeared_start_holds_the_starting_moment_or_is_none(
    settings: dict[str, object], moment: list[str] | None
) -> None:
    dft = preset(CP2KReference(preset="pbe", **settings), place(WATER), 10).at("FORCE_EVAL", "DFT")
    plain = dft.text()
    assert smear_widely(dft) is (moment is not None)
    if moment is None:
        assert dft.text() == plain
    else:
        assert values(dft.text(), "FIXED_MAGNETIC_MOMENT") == moment


# level of theory


def test_the_level_of_theory_of_a_preset_is_in_its_settings_and_in_files_of_the_users(tmp_path: Path) -> None:
    own = tmp_path / "basis"
    own.write_text("one")
    settings = CP2KReference(preset="pbe", basis_files=(str(own),))
    digest = reference_digest(settings)
    same = {"max_steps": 7, "guess": "nearest", "charges": True, "magnetic_moments": True}
    assert reference_digest(settings.model_copy(update=same)) == digest
    for other in ({"cutoff_Ry": 401.0}, {"xc_grid": "smooth"}):
        assert reference_digest(settings.model_copy(update=other)) != digest
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
