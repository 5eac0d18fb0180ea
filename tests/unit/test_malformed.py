"""What a person can get wrong: each mistake ends in one clear message and exit code 2, and nothing is written."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write
from typer.testing import CliRunner

from apps.cli.application import application

Change = Callable[[dict[str, Any], Path], object]

ALANINE = Path("apps/templates/alanine-dipeptide/alanine-dipeptide.pdb")

CAMPAIGN: dict[str, Any] = {
    "name": "copper",
    "seed": 1,
    "systems": [{"name": "cu", "structures": ["cu.extxyz"]}],
    "labels": {"reference": {"kind": "emt"}, "budget": 64},
    "site": {"kind": "inline"},
}


def listing(directory: Path) -> dict[str, str]:
    """Every file below a directory with the digest of its bytes, and every directory."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "directory"
        for path in directory.rglob("*")
    }


def refused(directory: Path, *arguments: str) -> str:
    """Run the command, assert that it refuses properly, and return its message."""
    before = listing(directory)
    result = CliRunner().invoke(application, list(arguments))
    assert result.exit_code == 2, (result.output, result.exception)
    assert "Traceback" not in result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("error: ") == 1
    assert result.stdout == ""
    assert listing(directory) == before
    return result.stderr


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a right campaign file and its structure."""
    write(tmp_path / "cu.extxyz", bulk("Cu", cubic=True))
    (tmp_path / "campaign.yaml").write_text(yaml.safe_dump(CAMPAIGN))
    return tmp_path


def settings_with(directory: Path, change: Change) -> None:
    data = yaml.safe_load(yaml.safe_dump(CAMPAIGN))
    change(data, directory)
    (directory / "campaign.yaml").write_text(yaml.safe_dump(data, sort_keys=False))


def section(name: str, **values: object) -> Change:
    return lambda data, _: data.setdefault(name, {}).update(values)


def system(**values: object) -> Change:
    return lambda data, _: data["systems"][0].update(values)


def reference(**values: object) -> Change:
    return lambda data, _: data["labels"].update(reference=values)


def structure(name: str, content: Atoms | list[Atoms] | str, **more: object) -> Change:
    def change(data: dict[str, Any], directory: Path) -> None:
        if isinstance(content, str):
            (directory / name).write_text(content)
        else:
            write(directory / name, content)
        data["systems"][0].update(structures=[name], **more)

    return change


def together(*changes: Change) -> Change:
    def change(data: dict[str, Any], directory: Path) -> None:
        for one in changes:
            one(data, directory)

    return change


def moved(atoms: Atoms, position: tuple[float, float, float]) -> Atoms:
    atoms.positions[1] = position
    return atoms


def copied(source: Path, name: str) -> Change:
    return lambda _, directory: shutil.copy(source, directory / name)


def without(key: str) -> Change:
    return lambda data, _: data.pop(key)


NAN = "nan.xyz"
PDB = "ATOM      1  CU   CU A   1       0.000   0.000   0.000  1.00  0.00          CU  \nEND\n"

FILES: dict[str, tuple[Change, tuple[str, ...]]] = {
    "a misspelt section": (section("walkes", count=8), ("line", "walkes: unknown key", "did you mean walkers")),
    "a misspelt key": (section("walkers", cuont=8), ("walkers.cuont: unknown key", "did you mean count")),
    "a key in the wrong section": (section("walkers", tau=0.1), ("walkers.tau", "it belongs at walkers.bias.tau")),
    "a value with its unit": (
        section("walkers", timestep_fs="0.5 fs"),
        ("walkers.timestep_fs", "0.5 in the unit", "fs"),
    ),
    "a key with another unit": (section("walkers", timestep_ps=0.5), ("walkers.timestep_ps", "timestep_fs")),
    "a temperature of zero": (section("walkers", temperatures_K=[0]), ("walkers.temperatures_K", "0.0 K is not")),
    "a single temperature": (section("walkers", temperatures_K=300), ("walkers.temperatures_K: must be a list", "300")),
    "a negative tau": (
        section("walkers", bias={"tau": -0.1}),
        ("walkers.bias.tau", "-0.1", "greater than or equal to 0"),
    ),
    "an infinite number": (section("walkers", timestep_fs=float("inf")), ("walkers.timestep_fs", "inf")),
    "batches that do not fill": (section("walkers", count=10, batch=4), ("walkers.count (10)", "walkers.batch (4)")),
    "isolation beyond the cutoff": (section("walkers", stop={"isolation_A": 9}), ("isolation_A", "potential.cutoff_A")),
    "a weight of an unknown element": (section("walkers", bias={"species_weights": {"Xx": 0}}), ("'Xx'", "symbols")),
    "a weight of an absent element": (section("walkers", bias={"species_weights": {"H": 0}}), ("H", "one of Cu")),
    "weights that leave no force biased": (
        section("walkers", bias={"species_weights": {"Cu": 0}}),
        ("species_weights: Cu of system", "so no force there is biased; raise one"),
    ),
    "an unknown reference": (reference(kind="vasp"), ("labels.reference", "'vasp'", "emt, openmm, ase")),
    "a reference without kind": (reference(calculator="lj"), ("labels.reference: kind is missing", "emt, openmm, ase")),
    "a calculator that is not installed": (
        reference(kind="ase", calculator="nowhere.Calc"),
        ("nowhere", "Install its package"),
    ),
    "a calculator without that name": (reference(kind="ase", calculator="ase.calculators.emt.EMTT"), ("EMTT",)),
    "a misspelt ASE calculator": (reference(kind="ase", calculator="ljj"), ("labels.reference.calculator: ljj",)),
    "a calculator that is not a name": (
        reference(kind="ase", calculator="a b"),
        ("labels.reference.calculator", "'a b'"),
    ),
    "a budget below the first labels": (section("labels", budget=8), ("labels.initial (16)", "labels.budget (8)")),
    "too few first labels": (section("labels", initial=2), ("labels.initial is 2", "at least 4")),
    "a fractional budget": (section("labels", budget=64.5), ("labels.budget: not a whole number", "64.5")),
    "a truth value for a number": (section("walkers", count=True, batch=1), ("walkers.count: not a number", "true")),
    "a seed left out": (without("seed"), ("seed: missing",)),
    "labels left out": (without("labels"), ("labels: missing",)),
    "a name with a slash": (lambda data, _: data.update(name="a/b"), ("name", "'a/b'")),
    "two systems of one name": (lambda d, _: d["systems"].append(d["systems"][0]), ("two systems share a name",)),
    "an unknown site": (lambda d, _: d.update(site={"kind": "lsf"}), ("site", "'lsf'", "inline, local_threads")),
    "a committee of one": (section("uncertainty", kind="committee"), ("potential.members is 1", "2 or more")),
    "a missing structure file": (
        system(structures=["none.xyz"]),
        ("none.xyz", "no such file", "relative to the campaign"),
    ),
    "a directory as structure": (system(structures=["."]), ("is a directory",)),
    "an empty structure file": (structure("empty.xyz", ""), ("empty.xyz", "empty")),
    "an empty trajectory": (structure("none.extxyz", "\n"), ("none.extxyz",)),
    "a file in no known format": (structure("notes.foo", "dear diary\n"), ("notes.foo", "format")),
    "a truncated structure": (
        structure("cut.xyz", '4\nLattice="1 0 0 0 1 0 0 0 1"\nCu 0 0 0\n'),
        ("cut.xyz", "cannot be read"),
    ),
    "an unknown element in a file": (structure("x.xyz", "1\n\nXx 0 0 0\n"), ("x.xyz", "unknown element 'Xx'")),
    "a dummy atom": (structure("dummy.xyz", "1\n\nX 0 0 0\n"), ("dummy.xyz", "unknown element")),
    "positions that are not numbers": (structure(NAN, "2\n\nCu 0 0 0\nCu nan 0 0\n"), (NAN, "NaN")),
    "atoms on top of each other": (
        structure("near.xyz", moved(molecule("H2"), (0, 0, 0.4))),
        ("near.xyz, image 0", "atoms 0 (H) and 1 (H)", "Å apart"),
    ),
    "a periodic structure without a cell": (
        structure("open.xyz", '1\nProperties=species:S:1:pos:R:3 pbc="T T T"\nCu 0 0 0\n'),
        ("open.xyz", "periodic", "lattice vectors"),
    ),
    "a supercell of a molecule": (
        structure("m.xyz", Atoms("Cu"), repeat=[2, 1, 1]),
        ("repeat is [2, 1, 1]", "not periodic"),
    ),
    "a supercell of nothing": (system(repeat=[0, 1, 1]), ("systems[0].repeat[0]", "greater than 0")),
    "an index beyond the trajectory": (system(index="7"), ("index 7 is out of range", "1 structure")),
    "an index that picks nothing": (system(index="5:"), ("'5:' picks no structure",)),
    "an index that is none": (system(index="first"), ("systems[0].index", "'first'")),
    "a variable with atoms that are not there": (
        system(variables=[{"kind": "dihedral", "name": "phi", "atoms": [0, 1, 2, 9]}]),
        ("variables[0].atoms", "[0, 1, 2, 9]", "4 atoms"),
    ),
    "a dihedral of three atoms": (
        system(variables=[{"kind": "dihedral", "name": "phi", "atoms": [0, 1, 2]}]),
        ("systems[0].variables[0].atoms[3]: missing",),
    ),
    "an element EMT does not know": (structure("si.xyz", bulk("Si", cubic=True)), ("emt does not know Si", "Cu")),
    "a topology that is missing": (reference(kind="openmm", topology="x.pdb"), ("labels.reference.topology", "x.pdb")),
    "a topology of another molecule": (
        together(reference(kind="openmm", topology="one.pdb"), copied(ALANINE, "one.pdb")),
        ("one.pdb", "C6H12N2O2 (22 atoms) in the topology", "Cu4 (4 atoms)", "cu is periodic"),
    ),
    "a residue the force field does not know": (
        together(reference(kind="openmm", topology="one.pdb"), lambda _, place: (place / "one.pdb").write_text(PDB)),
        ("labels.reference.topology", "one.pdb", "residue"),
    ),
    "a force field that is not there": (
        together(
            reference(kind="openmm", topology="one.pdb", force_field=["amber99/none.xml"]), copied(ALANINE, "one.pdb")
        ),
        ("labels.reference.force_field", "amber99/none.xml"),
    ),
    "an argument the calculator does not take": (
        reference(kind="ase", calculator="emt", arguments={"asap": {"cutoff": 1}, 3: 4}),
        ("labels.reference.arguments",),
    ),
    "a wrong key and a missing file": (
        together(section("walkers", cuont=8), system(structures=["none.xyz"])),
        ("2 problems", "walkers.cuont", "none.xyz"),
    ),
}

TEXTS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "an empty file": (b"", ("campaign.yaml: the file is empty", "farwalk init")),
    "comments only": (b"# nothing\n", ("the file is empty",)),
    "a list": (b"- name: a\n", ("must be keys with values",)),
    "a word": (b"copper\n", ("must be keys with values", "copper")),
    "a tab": (b"name: copper\nsystems:\n\t- name: a\n", ("line 3", "spaces")),
    "the same key twice": (b"name: a\nseed: 1\nname: b\n", ("name: lines 1 and 3", "Keep one")),
    "a colon too many": (b"name: a: b\n", ("line 1", "mapping values are not allowed")),
    "an open bracket": (b"systems: [\nseed: 1\n", ("line 3", "begun in line 1")),
    "an object of Python": (b"name: !!python/object/apply:os.system [ls]\n", ("line 1", "python/object")),
    "two documents": (b"name: a\n---\nname: b\n", ("line 2", "another document")),
    "bytes that are not text": (b"name: \xff\xfe\n", ("not UTF-8", "byte 6")),
    "a control character": (b"name: \x01\n", ("not YAML", "special characters")),
}


@pytest.mark.parametrize("what", FILES)
def test_a_mistake_in_file_or_structures_is_refused_with_key_value_and_remedy(place: Path, what: str) -> None:
    change, expected = FILES[what]
    settings_with(place, change)
    message = refused(place, "run", str(place / "campaign.yaml"))
    for text in expected:
        assert text in message


@pytest.mark.parametrize("what", TEXTS)
def test_a_file_that_is_not_a_campaign_is_refused_with_its_line(place: Path, what: str) -> None:
    content, expected = TEXTS[what]
    (place / "campaign.yaml").write_bytes(content)
    message = refused(place, "run", str(place / "campaign.yaml"))
    for text in expected:
        assert text in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("walkers.bais.tau=0", "walkers.bias.tau"),
        ("walkers.bias.tau", "not KEY=VALUE"),
        ("walkers.bias.tau=much", "walkers.bias.tau: not a number; found 'much'"),
        ("systems[3].name=x", "systems[3].name does not exist"),
        ("walkers=[", "not YAML"),
    ],
)
def test_a_wrong_override_is_refused(place: Path, override: str, expected: str) -> None:
    assert expected in refused(place, "run", str(place / "campaign.yaml"), "--set", override)


@pytest.mark.parametrize("verb", ["run", "check"])
def test_a_campaign_file_that_is_not_there_is_refused(place: Path, verb: str) -> None:
    assert "no such campaign file" in refused(place, verb, str(place / "none.yaml"))
    assert "not a file" in refused(place, verb, str(place))


@pytest.mark.parametrize("verb", ["run", "check"])
def test_a_directory_that_cannot_be_written_is_refused(place: Path, verb: str) -> None:
    (place / "plain").write_text("a file")
    message = refused(place, verb, str(place / "campaign.yaml"), "--dir", str(place / "plain" / "below"))
    assert str(place / "plain") in message


def test_a_campaign_directory_that_is_something_else_is_refused(place: Path) -> None:
    (place / "other").mkdir()
    (place / "other" / "thesis.txt").write_text("do not touch")
    message = refused(place, "run", str(place / "campaign.yaml"), "--dir", str(place / "other"))
    assert str(place / "other") in message


@pytest.mark.parametrize("arguments", [("status",), ("export", "--format", "extxyz", "-o", "x.xyz")])
def test_reading_what_is_not_a_campaign_is_refused(place: Path, arguments: tuple[str, ...]) -> None:
    verb, *options = arguments
    assert str(place) in refused(place, verb, str(place), *options)
    assert "none" in refused(place, verb, str(place / "none"), *options)


def test_unknown_templates_and_full_directories_are_refused(place: Path) -> None:
    assert "alanine-dipeptide, copper" in refused(place, "init", "coper", str(place / "new"))
    assert "is not empty" in refused(place, "init", "copper", str(place))
    assert "is a file" in refused(place, "init", "copper", str(place / "cu.extxyz"))


def test_the_campaign_these_mistakes_start_from_is_right(place: Path) -> None:
    shutil.copy(place / "campaign.yaml", place / "again.yaml")
    result = CliRunner().invoke(application, ["schema"])
    assert result.exit_code == 0
