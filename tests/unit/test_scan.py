"""Scans: what may be scanned and with which values, errors against the finest one, and the command that makes them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from ase.build import bulk
from ase.io import write
from fabricated import TIMING, frame, settings
from typer.testing import CliRunner

from apps.cli.application import application
from apps.cli.scan import ScanReport
from apps.preflight import jobs_for_labels
from pipeline.convergence import Convergence, ScanFrame, compare, scan_frame
from pipeline.errors import SettingsError
from pipeline.records import Cause, LabelResult, Status
from pipeline.scan import Scan, keys_of, parse_scan
from pipeline.settings.site import SlurmSite
from pipeline.units import GIGAPASCAL

CP2K = settings(labels__reference={"kind": "cp2k", "preset": "pbe", "kpoints": {"mesh": [2, 2, 2], "shifted": True}})
LJ = settings(labels__reference={"kind": "ase", "calculator": "lj", "arguments": {"rc": 5.0, "sigma": 2.3}})
BASES = "SZV-MOLOPT-SR-GTH,DZVP-MOLOPT-SR-GTH"


def values(text: str, campaign=CP2K) -> list[str]:
    return [point.text for point in parse_scan(text, campaign).points]


def refusal(text: str, campaign=CP2K) -> str:
    with pytest.raises(SettingsError) as caught:
        parse_scan(text, campaign)
    return str(caught.value)


def test_the_finest_value_is_the_last_however_they_are_given() -> None:
    assert values("cutoff_Ry=400,200,300") == ["200", "300", "400"]
    assert values("kpoints.spacing_per_A=0.2,0.5,0.3") == ["0.5", "0.3", "0.2"]
    assert values("kpoints.mesh=[2,2,4],[1,1,1]") == ["[1,1,1]", "[2,2,4]"]
    assert values("scf_convergence=1e-7,1e-5") == ["1e-05", "1e-07"]


def test_where_a_key_has_no_order_the_last_value_given_counts_as_the_finest() -> None:
    assert values(f"basis={BASES}") == BASES.split(",")
    assert values("arguments.rc=6,3", LJ) == ["6", "3"]


def test_only_the_scanned_value_changes_and_a_spacing_replaces_a_mesh() -> None:
    reference = CP2K.labels.reference
    for point in parse_scan("cutoff_Ry=200,300", CP2K).points:
        assert point.reference == reference.model_copy(update={"cutoff_Ry": point.value})
    for point in parse_scan("kpoints.spacing_per_A=0.5,0.3", CP2K).points:
        assert point.reference.kpoints.mesh is None
        assert point.reference.kpoints.shifted
    assert parse_scan("arguments.rc=6,3", LJ).points[0].reference.arguments == {"rc": 6, "sigma": 2.3}


def test_equal_values_are_one_value() -> None:
    assert values("cutoff_Ry=200,200.0,300") == ["200", "300"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cutof_Ry=200,300", "Did you mean cutoff_Ry?"),
        ("cutoff=200,300", "Did you mean cutoff_Ry?"),
        ("spacing=0.3,0.2", "Did you mean kpoints.spacing_per_A?"),
        ("max_steps=10,20", "kind: cp2k knows charge"),
        ("cutoff_Ry=200,high", "labels.reference.cutoff_Ry: not a number; found 'high'"),
        ("cutoff_Ry=200,-1", "must be greater than 0; found -1"),
        ("cutoff_Ry=200,true", "not a number; found true"),
        ("kpoints.mesh=2,4", "must be a list; found 2"),
        ("cutoff_Ry=200", "fewer than two different values"),
        ("cutoff_Ry=", "fewer than two different values"),
        ("cutoff_Ry", "not KEY=VALUE,VALUE"),
        ("cutoff_Ry=[200", "not YAML"),
    ],
)
def test_a_wrong_scan_is_refused_with_what_to_write(text: str, said: str) -> None:
    assert said in refusal(text)


def test_references_without_numbers_say_so_and_arguments_are_the_calculators_own() -> None:
    assert keys_of(settings().labels.reference) == []
    assert "kind: emt has no numbers to scan" in refusal("cutoff_Ry=1,2", settings())
    assert "arguments.NAME" in refusal("rc=1,2", LJ)
    assert values("arguments.sigma=2.2,2.3", LJ) == ["2.2", "2.3"]


def test_a_template_of_the_user_cannot_be_scanned() -> None:
    template = settings(labels__reference={"kind": "cp2k", "template": "water.inp"})
    assert "only the geometry is replaced" in refusal("cutoff_Ry=200,300", template)


def test_the_structure_is_rattled_unless_one_is_named() -> None:
    starts = {"a": (frame("a", 1), frame("a", 2)), "b": (frame("b", 3),)}
    rattled = scan_frame(None, starts, settings())
    assert "rattled" in rattled.text
    moved = rattled.frame.positions - starts["a"][0].positions
    assert 0 < np.abs(moved).max() < 0.5
    assert scan_frame("a:1", starts, settings()).frame is starts["a"][1]
    assert scan_frame("b", starts, settings()).frame.system == "b"
    for wrong in ("c", "a:2", "a:-1", "a:x"):
        with pytest.raises(SettingsError):
            scan_frame(wrong, starts, settings())


def result(forces: np.ndarray | None, *, energy: float = 0.0, stress: np.ndarray | None = None) -> LabelResult:
    return LabelResult(
        task="scan",
        status=Status.FAILED if forces is None else Status.DONE,
        reason="no SCF" if forces is None else "",
        energy=None if forces is None else energy,
        forces=forces,
        stress=stress,
        reference="r",
        timing=TIMING,
        cause=Cause.NOT_CONVERGED if forces is None else None,
        core_s=4.0,
    )


def scanned(*results: LabelResult | str, tolerance: float = 10.0) -> Convergence:
    scan = parse_scan(f"cutoff_Ry={','.join(str(100 + number) for number in range(len(results)))}", CP2K)
    return compare(scan, results, frame(), tolerance)


def moved(by_eV_per_A: float) -> np.ndarray:
    forces = np.zeros((4, 3))
    forces[1] = [0.3, 0.0, 0.4]
    forces[2, 1] = by_eV_per_A
    return forces


def test_errors_are_against_the_finest_value_in_units_of_the_table() -> None:
    coarse = result(moved(0.012), energy=-1.0, stress=np.full(6, 2.0 * GIGAPASCAL))
    found = scanned(coarse, result(moved(0.0), energy=-1.04, stress=np.zeros(6)))
    row, finest = found.rows
    assert row.energy_meV_per_atom == pytest.approx(40 / 4)
    assert row.force_max_meV_per_A == pytest.approx(12)
    assert row.force_rms_meV_per_A == pytest.approx(12 / np.sqrt(12))
    assert row.stress_rms_GPa == pytest.approx(2.0)
    assert (finest.is_reference, finest.force_max_meV_per_A, row.core_s) == (True, 0.0, 4.0)
    assert found.largest_force_eV_per_A == pytest.approx(0.5)
    assert found.enough == ""


def test_a_value_is_enough_only_when_all_finer_ones_are_too() -> None:
    errors = [0.002, 0.020, 0.008, 0.001, 0.0]  # the first is right by chance
    assert scanned(*[result(moved(error)) for error in errors]).enough == "102"


def test_a_value_without_a_label_says_its_cause_and_the_finest_with_one_is_the_reference() -> None:
    found = scanned(result(moved(0.1)), "its job was lost", result(moved(0.0)), result(None))
    assert [row.cause for row in found.rows] == [None, Cause.WORKER_LOST, None, Cause.NOT_CONVERGED]
    assert found.rows[2].is_reference
    assert found.rows[3].reason == "no SCF"
    assert found.is_compared
    assert not scanned(result(moved(0.1)), result(None)).is_compared
    lines = ScanReport(found=found, frame=ScanFrame(frame=frame(), text="a frame"), moved=("", "")).lines()
    assert any("errors are against 102, the finest value that gave a label" in line for line in lines)


def test_a_structure_without_forces_is_told() -> None:
    still = np.zeros((4, 3))
    found = scanned(result(still), result(still))
    report = ScanReport(found=found, frame=ScanFrame(frame=frame(), text="a crystal"), moved=("", ""))
    assert any("errors of such forces say little" in line for line in report.lines())


def test_a_scan_asks_for_as_many_jobs_as_its_labels_fill_and_one_of_the_others() -> None:
    jobs = {"walltime": 7200, "cores_per_node": 8, "max_blocks": 5}
    site = SlurmSite.model_validate({"kind": "slurm", "walk": jobs, "label": {**jobs, "cores_per_worker": 2}})
    assert [jobs_for_labels(site, count).label.max_blocks for count in (1, 4, 5, 100)] == [1, 1, 2, 5]
    assert jobs_for_labels(site, 100).walk.max_blocks == 1


CAMPAIGN = {
    "name": "lj",
    "seed": 3,
    "systems": [{"name": "cu", "structures": ["cu.extxyz"]}],
    "labels": {
        "reference": {"kind": "ase", "calculator": "lj", "arguments": {"sigma": 2.3, "epsilon": 0.4}},
        "budget": 50,
    },
    "site": {"kind": "inline"},
}


@pytest.fixture
def campaign(tmp_path: Path) -> Path:
    write(tmp_path / "cu.extxyz", bulk("Cu", cubic=True))
    (tmp_path / "campaign.yaml").write_text(yaml.safe_dump(CAMPAIGN))
    return tmp_path / "campaign.yaml"


def check(campaign: Path, *options: str):
    return CliRunner().invoke(application, ["check", str(campaign), *options])


def test_check_scans_without_a_trial_and_leaves_nothing_behind(campaign: Path) -> None:
    done = check(campaign, "--scan", "arguments.rc=4.0,6.0,8.0", "--scan", "arguments.epsilon=0.3,0.4")
    assert done.exit_code == 0, done.output
    assert done.stdout.count("rattled by 0.05 Å") == 2
    assert "GPa" in done.stdout
    assert "all right" not in done.stdout
    assert sorted(path.name for path in campaign.parent.iterdir()) == ["campaign.yaml", "cu.extxyz"]


def test_check_prints_scans_as_json(campaign: Path) -> None:
    done = check(campaign, "--scan", "arguments.rc=4.0,8.0", "--scan-frame", "cu:0", "--scan-tolerance", "5", "--json")
    (scan,) = json.loads(done.stdout)["scans"]
    assert (scan["key"], scan["tolerance_meV_per_A"], scan["frame"]) == ("arguments.rc", 5.0, "start structure 0 of cu")
    assert [row["value"] for row in scan["rows"]] == ["4", "8"]
    assert scan["rows"][0]["energy_meV_per_atom"] > 1.0


def test_the_files_of_values_that_failed_stay_until_the_next_check(campaign: Path) -> None:
    limit = ("--set", "labels.max_force_eV_per_A=1")
    done = check(campaign, "--scan", "arguments.epsilon=0.001,0.002,9.0", *limit)
    assert done.exit_code == 0, done.output
    kept = campaign.parent / "lj.campaign.check"
    assert f"(see {kept}/scan-2/failure.txt)" in done.stdout
    assert (kept / "scan-2" / "failure.txt").is_file()
    assert check(campaign, "--scan", "arguments.rc=4.0,8.0").exit_code == 0
    assert not kept.exists()


def test_a_scan_with_nothing_to_compare_fails_and_names_the_files(campaign: Path) -> None:
    limit = ("--set", "labels.max_force_eV_per_A=0.0001")
    done = check(campaign, "--scan", "arguments.rc=4.0,8.0", *limit)
    assert done.exit_code == 2
    assert "0 of 2 values gave a label" in done.stderr
    assert f"{campaign.parent / 'lj.campaign.check' / 'scan-0' / 'failure.txt'}" in done.stderr
    shutil.rmtree(campaign.parent / "lj.campaign.check")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--scan", "arguments.rc=4,5", "--scan-frame", "cy"], "The systems are cu."),
        (["--scan", "arguments.rc=4,5", "--scan-frame", "cu:1"], "cu has 1 start structure"),
        (["--scan", "arguments.rc=4,5", "--scan-tolerance", "0"], "--scan-tolerance 0: not above 0"),
        (["--scan-frame", "cu"], "nothing is scanned"),
        (["--scan", "rc=4,5"], "arguments.NAME"),
    ],
)
def test_wrong_options_of_a_scan_are_refused_before_anything_starts(campaign: Path, options, said: str) -> None:
    done = check(campaign, *options)
    assert done.exit_code == 2
    assert said in done.stderr


def test_the_same_reference_of_two_scans_is_labelled_once(campaign: Path) -> None:
    done = check(campaign, "--scan", "arguments.sigma=2.2,2.3", "--scan", "arguments.epsilon=0.3,0.4")
    assert done.exit_code == 0, done.output
    assert "scanning: 3 labels" in done.stderr


def test_scans_know_nothing_of_keys_that_do_not_change_a_label() -> None:
    known = keys_of(CP2K.labels.reference)
    assert {"cutoff_Ry", "kpoints.mesh", "kpoints.spacing_per_A", "smearing.width_eV", "basis"} < set(known)
    assert not {"max_steps", "guess", "charges", "kind", "template"} & set(known)


def test_a_scan_knows_whether_its_key_has_an_order() -> None:
    kinds = [parse_scan(text, CP2K) for text in ("cutoff_Ry=200,300", f"basis={BASES}")]
    assert [isinstance(scan, Scan) and scan.is_ordered for scan in kinds] == [True, False]
