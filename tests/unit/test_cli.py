"""The command line: its verbs and options are frozen; templates are right; outcomes have exit codes."""

import json
import logging
import signal
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import typer
import yaml
from typer.testing import CliRunner

from apps.cli import interrupt
from apps.cli.application import application
from apps.cli.boundary import guarded, logging_to
from apps.cli.console import duration, size
from apps.cli.init import template_names
from apps.cli.interrupt import StopRequests
from pipeline.errors import SettingsError
from pipeline.intake import open_campaign

OPTIONS = {
    "init": ["template", "directory", "--help"],
    "check": [
        "campaign",
        "--dir",
        "--site",
        "--set",
        "--scan",
        "--scan-frame",
        "--scan-tolerance",
        "--json",
        "--help",
    ],
    "simulate": [
        "campaign",
        "--site",
        "--set",
        "--nodes",
        "--walk-nodes",
        "--label-nodes",
        "--from",
        "--label-seconds",
        "--walk-seconds",
        "--train-seconds",
        "--queue-seconds",
        "--labels",
        "--schedule",
        "--seed",
        "--help",
    ],
    "run": ["campaign", "--dir", "--site", "--set", "--quiet", "--as-job", "--help"],
    "submit": ["campaign", "--dir", "--site", "--set", "--help"],
    "status": ["directory", "--help"],
    "failures": ["directory", "--cause", "--json", "--help"],
    "relabel": ["directory", "tasks", "--cause", "--help"],
    "jobs": ["directory", "--cancel", "--help"],
    "stop": ["directory", "--now", "--wait", "--help"],
    "export": ["directory", "--output", "--format", "--help"],
    "demo": ["--dir", "--seed", "--quiet", "--help"],
    "schema": ["--site", "--help"],
}


def farwalk(*arguments: str) -> str:
    result = CliRunner().invoke(application, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_verbs_and_options_are_these_and_hold_no_physics() -> None:
    command = typer.main.get_command(application)
    found = {}
    for name, verb in command.commands.items():
        context = verb.make_context(name, [], resilient_parsing=True)
        found[name] = [p.name if p.param_type_name == "argument" else p.opts[0] for p in verb.get_params(context)]
    assert found == OPTIONS


def test_the_installed_command_tells_its_version() -> None:
    command = [sys.executable, "-m", "apps.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.startswith("farwalk 0.")


def test_the_schema_is_a_schema_and_accepts_every_template() -> None:
    schema = json.loads(farwalk("schema"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for name in template_names():
        data = yaml.safe_load(Path(f"apps/templates/{name}/campaign.yaml").read_text())
        assert list(validator.iter_errors(data)) == []


def test_the_schema_refuses_what_the_command_refuses() -> None:
    validator = jsonschema.Draft202012Validator(json.loads(farwalk("schema")))
    data = yaml.safe_load(Path("apps/templates/copper/campaign.yaml").read_text())
    for wrong in ({"walkers": {"tmestep_fs": 1}}, {"walkers": {"bias": {"tau": -1}}}, {"site": {"kind": "slurm"}}):
        assert list(validator.iter_errors({**data, **wrong})) != []


@pytest.mark.parametrize("name", ["alanine-dipeptide", "copper", "mil53-al", "silicon-qe", "water-cp2k"])
def test_init_writes_a_campaign_that_opens(tmp_path: Path, name: str) -> None:
    if name == "silicon-qe" and not Path("/usr/share/espresso/pseudo").is_dir():
        pytest.skip("needs the package quantum-espresso-data")
    place = tmp_path / "new"
    assert "farwalk check" in farwalk("init", name, str(place))
    intake = open_campaign(place / "campaign.yaml")
    assert intake.settings.name == name
    atoms = {"alanine-dipeptide": 22, "copper": 32, "mil53-al": 76, "silicon-qe": 8, "water-cp2k": 3}
    assert {len(frame) for group in intake.frames.values() for frame in group} == {atoms[name]}


def test_init_lists_the_templates() -> None:
    assert farwalk("init", "list").split() == ["alanine-dipeptide", "copper", "mil53-al", "silicon-qe", "water-cp2k"]


def test_every_line_of_a_template_that_sets_something_is_explained_nearby() -> None:
    for name in template_names():
        lines = Path(f"apps/templates/{name}/campaign.yaml").read_text().splitlines()
        since = 0
        for line in lines:
            since = 0 if line.lstrip().startswith("#") else since + bool(line.strip())
            assert since <= 6, f"{name}: {line}"


def test_a_bug_leaves_its_traceback_in_a_file_and_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def verb() -> None:
        with logging_to(tmp_path / "farwalk.log"):
            raise ZeroDivisionError("of all things")

    with pytest.raises(typer.Exit) as left:
        guarded(verb)()
    assert left.value.exit_code == 1
    assert capsys.readouterr().err.count("ZeroDivisionError: of all things") == 1
    assert "Traceback" in (tmp_path / "farwalk.log").read_text()


def test_an_error_on_purpose_leaves_no_log_and_the_loggers_as_they_were(tmp_path: Path) -> None:
    before = list(logging.getLogger().handlers)

    def verb() -> None:
        with logging_to(tmp_path / "farwalk.log"):
            raise SettingsError("wrong", "mend it")

    with pytest.raises(typer.Exit) as left:
        guarded(verb)()
    assert left.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []
    assert logging.getLogger().handlers == before


def test_an_error_of_the_system_names_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    def verb() -> None:
        raise PermissionError(13, "Permission denied", "/some/file")

    with pytest.raises(typer.Exit) as left:
        guarded(verb)()
    assert left.value.exit_code == 2
    assert "error: /some/file: Permission denied." in capsys.readouterr().err


def test_the_first_interrupt_is_remembered_and_the_second_stops(tmp_path: Path) -> None:
    told: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    with StopRequests(told.append, tmp_path / "stop") as stop:
        assert not stop.stop_requested()
        signal.raise_signal(signal.SIGINT)
        assert stop.stop_requested()
        assert not stop.leave_requested()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert len(told) == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_a_stop_file_stops_and_now_leaves_and_an_old_one_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupt, "LOOK_S", 0.0)
    told: list[str] = []
    file = tmp_path / "stop"
    file.write_text("now")
    with StopRequests(told.append, file) as stop:
        assert not stop.stop_requested()
        file.write_text("soft")
        assert stop.stop_requested()
        assert not stop.leave_requested()
        file.write_text("now")
        assert stop.leave_requested()
    assert told == list(interrupt.ON_FILE.values())


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0005, "0.5 ms"), (12.0, "12 s"), (180.0, "3 min"), (9000.0, "2.5 h"), (432000.0, "5 d")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_sizes_read_well() -> None:
    assert [size(count) for count in (12, 3400, 5.6e9, 7.8e13)] == ["12 B", "3.4 kB", "5.6 GB", "78 TB"]
