"""Families of pseudopotentials: files by element, ambiguity, recommended cutoffs."""

import hashlib
import json
from pathlib import Path

import pytest
from ase.build import bulk
from ase.data import atomic_numbers

from pipeline.errors import SettingsError
from pipeline.frames import Frame
from pipeline.references import build_reference, reference_digest, supported_elements
from pipeline.references.espresso_pseudos import Family, settings_family
from pipeline.settings.dft import QuantumEspressoReference
from pipeline.structures import reference_problems

UPF_2 = """<UPF version="2.0.1">
<PP_INFO>
Suggested minimum cutoff for wavefunctions:  99. Ry
</PP_INFO>
<PP_HEADER
element="{element}"
pseudo_type="{kind}"
z_valence="{valence}"
wfc_cutoff="{wfc}"
rho_cutoff="{rho}"/>
<PP_MESH>
"""
UPF_1 = """<PP_INFO>
</PP_INFO>
<PP_HEADER>
   0                   Version Number
  {element}                   Element
   {kind}                  Ultrasoft pseudopotential
    T                  Nonlinear Core Correction
 SLA  PW   PBX  PBC    PBE  Exchange-Correlation functional
   {valence}      Z valence
  -90.30524855311      Total energy
     {wfc}    {rho} Suggested cutoff for wfc and rho
</PP_HEADER>
"""
GTH = "{element} GTH-PBE-q6\n8 6 0\n10 11 1 2 2001 0\n0.24 2 -16.6 2.4\n"


def put(
    directory: Path,
    name: str,
    *,
    text: str = UPF_2,
    element: str = "Si",
    kind: str = "NC",
    valence: str = "4.0",
    wfc: str = "0.0",
    rho: str = "0.0",
) -> str:
    content = text.format(element=element, kind=kind, valence=valence, wfc=wfc, rho=rho)
    (directory / name).write_text(content)
    return content


def settings(directory: Path, **changes: object) -> QuantumEspressoReference:
    return QuantumEspressoReference(pseudopotentials=str(directory), **changes)


def family(directory: Path, **changes: object) -> Family:
    return settings_family(settings(directory, **changes))


@pytest.mark.parametrize(
    ("name", "text", "element"),
    [
        ("Si.pbe-rrkj.UPF", UPF_2, "Si"),
        ("si_pbe_v1.uspp.F.UPF", UPF_2, " si "),
        ("whatever.upf", UPF_2, "O "),
        ("ni_old.UPF", UPF_1, "Ni"),
        ("O.gth", GTH, "O"),
    ],
)
def test_an_element_is_that_of_the_header(name: str, text: str, element: str, tmp_path: Path) -> None:
    put(tmp_path, name, text=text, element=element)
    (tmp_path / "README.txt").write_text("C.UPF is elsewhere")
    (tmp_path / "torn.UPF").write_text("<UPF version=")
    assert family(tmp_path).elements == {element.strip().capitalize()}


def test_valence_and_kind_are_read_from_both_versions_and_gth(tmp_path: Path) -> None:
    put(tmp_path, "Si.UPF", kind="PAW", valence="4.0", wfc="4.5E+001", rho="2.0E+002")
    put(tmp_path, "Ni.UPF", text=UPF_1, element="Ni", kind="US", valence="10.0", wfc="23.557", rho="371.902")
    put(tmp_path, "O.gth", text=GTH, element="O")
    silicon, nickel, oxygen = (family(tmp_path).members[element] for element in ("Si", "Ni", "O"))
    assert [member.valence for member in (silicon, nickel, oxygen)] == [4.0, 10.0, 6.0]
    assert [member.norm_conserving for member in (silicon, nickel, oxygen)] == [False, False, True]
    assert (silicon.cutoff_Ry, silicon.density_cutoff_Ry) == (45.0, 200.0)
    assert (nickel.cutoff_Ry, nickel.density_cutoff_Ry) == (23.557, 371.902)
    assert oxygen.cutoff_Ry is None
    assert [member.gives_stress for member in (silicon, nickel, oxygen)] == [True, True, False]


def test_several_files_of_an_element_must_be_chosen_from(tmp_path: Path) -> None:
    put(tmp_path, "Si.pbe.UPF")
    put(tmp_path, "Si.lda.UPF")
    put(tmp_path, "O.UPF", element="O")
    found = family(tmp_path)
    assert found.elements == {"Si", "O"}
    assert set(found.choose(["O"])) == {"O"}
    with pytest.raises(SettingsError, match=r"Si.lda.UPF, Si.pbe.UPF.*labels.reference.pseudopotential_of"):
        found.choose(["Si", "O"])
    with pytest.raises(SettingsError, match="no file for C"):
        found.choose(["C"])


def test_a_campaign_that_must_choose_is_told_so_before_it_starts(tmp_path: Path) -> None:
    put(tmp_path, "Si.pbe.UPF", wfc="30", rho="120")
    put(tmp_path, "Si.lda.UPF")
    put(tmp_path, "O.UPF", element="O", wfc="30", rho="120")
    frames = {"si": (Frame.from_atoms(bulk("Si"), system="si"),)}
    (problem,) = reference_problems(settings(tmp_path), frames, tmp_path)
    assert "Si.lda.UPF, Si.pbe.UPF" in problem
    assert not reference_problems(settings(tmp_path, pseudopotential_of={"Si": "Si.pbe.UPF"}), frames, tmp_path)


def test_named_files_are_the_whole_family(tmp_path: Path) -> None:
    put(tmp_path, "Si.pbe.UPF", wfc="30", rho="120")
    put(tmp_path, "Si.lda.UPF", wfc="20", rho="80")
    put(tmp_path, "O.UPF", element="O", wfc="90", rho="900")
    chosen = settings(tmp_path, pseudopotential_of={"Si": "Si.pbe.UPF"})
    assert supported_elements(chosen) == {atomic_numbers["Si"]}
    assert settings_family(chosen).cutoffs_Ry(chosen) == (30.0, 120.0)


@pytest.mark.parametrize(
    ("name", "words"),
    [("Ge.UPF", "not in"), ("O.UPF", "of O, not of Si"), ("old.van", "neither UPF nor GTH")],
)
def test_a_wrong_choice_is_refused_by_name(name: str, words: str, tmp_path: Path) -> None:
    put(tmp_path, "O.UPF", element="O")
    (tmp_path / "old.van").write_text("binary of the nineties")
    with pytest.raises(SettingsError, match=words) as caught:
        family(tmp_path, pseudopotential_of={"Si": name})
    assert "labels.reference.pseudopotential_of" in str(caught.value)


def test_cutoffs_are_the_largest_of_the_family_unless_the_settings_say(tmp_path: Path) -> None:
    put(tmp_path, "Si.UPF", wfc="30", rho="120")
    put(tmp_path, "O.UPF", element="O", kind="US", wfc="45", rho="300")
    for changes, expected in (
        ({}, (45.0, 300.0)),
        ({"cutoff_Ry": 60.0}, (60.0, 300.0)),
        ({"cutoff_Ry": 90.0}, (90.0, 360.0)),
        ({"cutoff_Ry": 60.0, "density_cutoff_Ry": 480.0}, (60.0, 480.0)),
    ):
        reference = settings(tmp_path, **changes)
        assert settings_family(reference).cutoffs_Ry(reference) == expected


@pytest.mark.parametrize(("kind", "dual"), [("NC", 4), ("US", 8), ("PAW", 8)])
def test_the_density_cutoff_follows_the_kind_where_nothing_says_it(kind: str, dual: int, tmp_path: Path) -> None:
    put(tmp_path, "Si.UPF", kind=kind)
    reference = settings(tmp_path, cutoff_Ry=25.0)
    assert settings_family(reference).cutoffs_Ry(reference) == (25.0, 25.0 * dual)


def test_a_family_without_recommendations_needs_a_cutoff(tmp_path: Path) -> None:
    put(tmp_path, "Si.UPF")
    with pytest.raises(SettingsError, match=r"labels.reference.cutoff_Ry is not given, and Si.UPF"):
        build_reference(settings(tmp_path))


@pytest.mark.parametrize("table", ["cutoffs.json", "SSSP_1.3.0_PBE_efficiency.json"])
def test_a_table_chooses_files_and_cutoffs_and_knows_their_content(table: str, tmp_path: Path) -> None:
    content = put(tmp_path, "Si.pbe.UPF", wfc="10", rho="40")
    put(tmp_path, "Si.lda.UPF")
    row = {
        "filename": "Si.pbe.UPF",
        "md5": hashlib.md5(content.encode()).hexdigest(),
        "pseudopotential": "100US",
        "cutoff_wfc": 30.0,
        "cutoff_rho": 240.0,
    }
    elsewhere = {"filename": "O.pbe.UPF", "md5": "0" * 32, "cutoff_wfc": 75.0, "cutoff_rho": 600.0}
    (tmp_path / table).write_text(json.dumps({"Si": row, "O": elsewhere}))
    reference = settings(tmp_path)
    assert settings_family(reference).elements == {"Si"}
    assert settings_family(reference).cutoffs_Ry(reference) == (30.0, 240.0)
    (tmp_path / "Si.pbe.UPF").write_text(content + " ")
    with pytest.raises(SettingsError, match="md5"):
        settings_family(reference)


def test_a_table_of_another_kind_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "Si.UPF")
    (tmp_path / "cutoffs.json").write_text("[30, 240]")
    with pytest.raises(SettingsError, match="not a table of cutoffs"):
        family(tmp_path)


def test_a_missing_directory_names_its_key(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"labels.reference.pseudopotentials: .*is not a directory"):
        build_reference(settings(tmp_path / "nowhere"))


def test_the_digest_is_of_the_level_of_theory_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for directory in (first, second):
        directory.mkdir()
        put(directory, "Si.pbe.UPF", wfc="30", rho="120")
        put(directory, "Si.lda.UPF")
    named = {"pseudopotential_of": {"Si": "Si.pbe.UPF"}}
    digest = reference_digest(settings(first, **named))
    assert reference_digest(settings(second, **named)) == digest
    assert reference_digest(settings(first, **named, cutoff_Ry=30.0, density_cutoff_Ry=120.0)) == digest
    for free in ({"max_steps": 7}, {"guess": "nearest"}, {"magnetic_moments": True}):
        assert reference_digest(settings(first, **named, **free)) == digest
    for physics in (
        {"pseudopotential_of": {"Si": "Si.lda.UPF"}, "cutoff_Ry": 30.0, "density_cutoff_Ry": 120.0},
        named | {"cutoff_Ry": 40.0},
        named | {"charge": 1},
        named | {"kpoints": {"mesh": (2, 2, 2)}},
        named | {"dispersion": "d3"},
        named | {"smearing": {"width_eV": 0.1}},
        named | {"scf_convergence_eV_per_atom": 1e-6},
    ):
        assert reference_digest(settings(first, **physics)) != digest
    (second / "Si.pbe.UPF").write_text((second / "Si.pbe.UPF").read_text() + "\n")
    assert reference_digest(settings(second, **named)) != digest
