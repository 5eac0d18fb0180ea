"""``farwalk check`` with real programs: whether they start on a label worker, and scans of what they compute."""

import json
from pathlib import Path

import pytest
import yaml
from ase.io import write
from typer.testing import CliRunner

from apps.cli.application import application
from pipeline.frames import Frame
from pipeline.records import Cause
from pipeline.references import Calculation, CalculationFailed
from pipeline.references.processes import processes_of
from pipeline.references.started import Started, start_program
from pipeline.settings.dft import CP2KReference, QuantumEspressoReference
from pipeline.settings.launch import LaunchSettings

CP2K = CP2KReference(preset="pbe")
ESPRESSO = QuantumEspressoReference(pseudopotentials="/usr/share/espresso/pseudo")
SILICON = {
    "kind": "quantum_espresso",
    "pseudopotentials": "/usr/share/espresso/pseudo",
    "pseudopotential_of": {"Si": "Si.pbe-rrkj.UPF"},
    "cutoff_Ry": 20,
    "density_cutoff_Ry": 80,
    "kpoints": {"mesh": [2, 2, 2], "shifted": True},
}
HYDROGEN = {"kind": "cp2k", "preset": "pbe", "basis": "SZV-MOLOPT-SR-GTH", "rel_cutoff_Ry": 40}


def start(
    directory: Path, reference: CP2KReference | QuantumEspressoReference, launch: LaunchSettings, ranks: int = 1
) -> Started:
    return start_program(reference, Calculation(directory=directory, launch=launch, ranks=ranks))


def refusal(directory: Path, launch: LaunchSettings, ranks: int = 1) -> CalculationFailed:
    with pytest.raises(CalculationFailed) as caught:
        start(directory, ESPRESSO, launch, ranks)
    assert caught.value.cause is Cause.MISSING_PROGRAM
    assert processes_of(directory) == []
    return caught.value


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("reference", "name"), [(CP2K, "CP2K 20"), (ESPRESSO, "Quantum ESPRESSO ")])
def test_a_program_tells_its_version_alone_and_in_ranks(
    tmp_path: Path, launch: LaunchSettings, reference: CP2KReference | QuantumEspressoReference, name: str, ranks: int
) -> None:
    started = start(tmp_path, reference, launch, ranks)
    assert started.program.startswith(name)
    assert started.ranks == ranks
    assert processes_of(tmp_path) == []


def test_a_program_that_does_not_start_names_the_key_to_change(tmp_path: Path, launch: LaunchSettings) -> None:
    def changed(**changes: object) -> LaunchSettings:
        return LaunchSettings.model_validate({**launch.model_dump(), **changes})

    assert "site.launch.programs.pw" in refusal(tmp_path, changed(programs={"pw": "no-such-pw.x"})).remedy
    assert "site.launch.programs.pw" in refusal(tmp_path, changed(programs={"pw": "true"})).remedy
    assert "site.launch.mpi" in refusal(tmp_path, changed(mpi="no-such-mpirun -n {ranks}"), ranks=2).remedy
    assert "site.launch.container" in refusal(tmp_path, changed(container="no-such-container exec")).remedy


def test_ranks_that_do_not_find_each_other_are_found_out(tmp_path: Path, launch: LaunchSettings) -> None:
    alone = tmp_path / "mpirun-of-another-mpi"
    alone.write_text('#!/bin/sh\nshift\n"$@"\n"$@"\n')
    alone.chmod(0o755)
    changed = LaunchSettings.model_validate({**launch.model_dump(), "mpi": f"{alone} {{ranks}}"})
    failed = refusal(tmp_path, changed, ranks=2)
    assert "2 ranks of pw.x became 2 programs" in failed.reason


def check(directory: Path, frame: Frame, reference: dict, launch: LaunchSettings, *options: str):
    write(directory / "start.extxyz", frame.to_atoms())
    campaign = {
        "name": "scanned",
        "seed": 1,
        "systems": [{"name": "a", "structures": ["start.extxyz"]}],
        "labels": {"reference": reference, "budget": 20},
        "site": {"kind": "inline", "launch": launch.model_dump(mode="json")},
    }
    (directory / "campaign.yaml").write_text(yaml.safe_dump(campaign))
    return CliRunner().invoke(application, ["check", str(directory / "campaign.yaml"), *options])


@pytest.mark.parametrize(
    ("reference", "structure", "cutoffs"), [(SILICON, "silicon", (12, 16, 20)), (HYDROGEN, "hydrogen", (120, 160, 280))]
)
def test_errors_of_a_cutoff_scan_shrink_towards_the_finest(
    tmp_path: Path,
    launch: LaunchSettings,
    request: pytest.FixtureRequest,
    reference: dict,
    structure: str,
    cutoffs: tuple[int, ...],
) -> None:
    frame = request.getfixturevalue(structure)
    text = f"cutoff_Ry={','.join(map(str, reversed(cutoffs)))}"
    done = check(tmp_path, frame, reference, launch, "--scan", text, "--scan-frame", "a:0", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["program"]["program"].startswith(("CP2K", "Quantum ESPRESSO"))
    (scan,) = said["scans"]
    rows = scan["rows"]
    assert [row["value"] for row in rows] == [str(cutoff) for cutoff in cutoffs]
    errors = [abs(row["energy_meV_per_atom"]) for row in rows]
    assert errors[0] > errors[1] > errors[2] == 0
    assert all(row["force_max_meV_per_A"] > 0 and row["stress_rms_GPa"] > 0 for row in rows[:-1])
    assert all(row["core_s"] > 0 for row in rows)
    assert scan["largest_force_eV_per_A"] > 0.1


def test_check_says_what_to_change_when_the_program_is_missing(
    tmp_path: Path, launch: LaunchSettings, silicon: Frame
) -> None:
    done = check(tmp_path, silicon, SILICON, launch, "--set", "site.launch.programs.pw=no-such-pw.x")
    assert done.exit_code == 2
    assert "no-such-pw.x cannot be started" in done.stderr
    assert "site.launch.programs.pw" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["campaign.yaml", "start.extxyz"]
