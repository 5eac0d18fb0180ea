"""A small campaign through the real command: run, status, export, resume, refusals, Ctrl-C."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import yaml
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import read, write
from typer.testing import CliRunner

from apps.cli.application import application
from pipeline.potentials import load
from pipeline.records import FileRef
from pipeline.shards import read_labels

TINY = {
    "name": "tiny",
    "seed": 3,
    "systems": [{"name": "cu", "structures": ["cu.extxyz"], "repeat": [2, 1, 1]}],
    "labels": {"reference": {"kind": "emt"}, "budget": 14, "initial": 10, "initial_rattle_A": 0.1},
    "potential": {"kind": "gmnn", "hidden": [16, 16], "channels": 2, "gaussians": 5, "cutoff_A": 4.0},
    "walkers": {"count": 4, "batch": 4, "segment_steps": 20, "store_every": 5, "timestep_fs": 2.0},
    "selection": {"batch": 4},
    "training": {"epochs": 10, "warm_epochs": 5},
    "site": {"kind": "inline"},
}


def farwalk(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(application, list(arguments))
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a campaign file and its finished campaign."""
    place = tmp_path_factory.mktemp("tiny")
    write(place / "cu.extxyz", bulk("Cu", cubic=True))
    (place / "campaign.yaml").write_text(yaml.safe_dump(TINY))
    output = farwalk("run", str(place / "campaign.yaml"))
    assert "done:" in output
    return place


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def refused(place: Path, *arguments: str) -> str:
    """The command's one message when it refuses and writes nothing."""
    before = digests(place)
    result = CliRunner().invoke(application, list(arguments))
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
    assert digests(place) == before
    return result.stderr


def digests(place: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in place.rglob("*") if p.is_file()}


def test_status_tells_labels_rounds_and_why_it_stopped(finished: Path) -> None:
    output = farwalk("status", str(finished / "tiny.campaign"))
    assert "stopped: " in output
    assert "14/14 labels" in output
    assert "eV/Å" in output


def test_status_shows_what_is_spent_the_models_and_how_busy_the_driver_was(finished: Path) -> None:
    output = farwalk("status", str(finished / "tiny.campaign"))
    assert re.search(r"labels.budget +14 labels +14 reached", output)
    assert re.search(r"walk, select, label, train +1 +\d+ %", output)
    assert max(map(len, output.split("\n\n", 1)[1].splitlines())) <= 100


def test_a_stream_runs_and_its_status_tells_how_it_ended(tmp_path: Path) -> None:
    write(tmp_path / "cu.extxyz", bulk("Cu", cubic=True))
    (tmp_path / "campaign.yaml").write_text(yaml.safe_dump({**TINY, "schedule": "streaming"}))
    output = farwalk("run", str(tmp_path / "campaign.yaml"))
    assert re.search(r"streaming: \d+ labels? in flight", output)
    assert "done: 14 of labels.budget = 14 labels are spent" in output
    status = farwalk("status", str(tmp_path / "tiny.campaign"))
    assert "stopped: 14 of labels.budget" in status
    assert "\n14/14 labels" in status


def test_exported_labels_carry_the_references_energies_and_forces(finished: Path, tmp_path: Path) -> None:
    farwalk("export", str(finished / "tiny.campaign"), "-o", str(tmp_path / "labels.extxyz"))
    images = read(tmp_path / "labels.extxyz", ":")
    assert len(images) == 14
    for atoms in (images[0], images[-1]):
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = EMT()
        assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-5)
        np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-5)
    assert {atoms.info["split"] for atoms in images} == {"train", "validation", "calibration"}


def test_the_hdf5_export_is_one_shard_with_all_labels(finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "labels.h5"
    farwalk("export", str(finished / "tiny.campaign"), "--format", "hdf5", "-o", str(output))
    labels = read_labels(FileRef(path=str(output), sha256=hashlib.sha256(output.read_bytes()).hexdigest()))
    assert len(labels) == 14
    assert [label.round for label in labels] == sorted(label.round for label in labels)


def test_the_exported_model_loads_and_predicts(finished: Path, tmp_path: Path) -> None:
    farwalk("export", str(finished / "tiny.campaign"), "--format", "model", "-o", str(tmp_path / "model.pt"))
    atoms = bulk("Cu", cubic=True)
    atoms.calc = load(tmp_path / "model.pt").calculator()
    assert np.isfinite(atoms.get_forces()).all()


def test_an_export_never_overwrites(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    assert "exists already" in refused(
        tmp_path, "export", str(finished / "tiny.campaign"), "-o", str(tmp_path / "mine")
    )
    missing = tmp_path / "no" / "x"
    assert "no directory" in refused(tmp_path, "export", str(finished / "tiny.campaign"), "-o", str(missing))


def test_running_a_finished_campaign_again_changes_no_label(copy: Path) -> None:
    before = digests(copy / "tiny.campaign" / "shards")
    assert "done:" in farwalk("run", str(copy / "campaign.yaml"), "--quiet")
    assert digests(copy / "tiny.campaign" / "shards") == before


def test_a_larger_budget_goes_on_from_there(copy: Path) -> None:
    output = farwalk("run", str(copy / "campaign.yaml"), "--set", "labels.budget=16")
    assert "16 labels, " in output  # in one round more, or in two where a frame of the first was refused


def test_other_science_is_refused_with_the_changed_keys(copy: Path) -> None:
    message = refused(copy, "run", str(copy / "campaign.yaml"), "--set", "walkers.bias.tau=0", "--set", "seed=4")
    assert "walkers.bias.tau: was 0.25, is 0.0" in message
    assert "seed: was 3, is 4" in message
    assert "Only these may change: labels.budget" in message


def test_other_structures_are_refused(copy: Path) -> None:
    write(copy / "cu.extxyz", bulk("Cu", cubic=True, a=3.7))
    assert "other start structures" in refused(copy, "run", str(copy / "campaign.yaml"))


def test_a_second_driver_is_refused(copy: Path) -> None:
    with (copy / "tiny.campaign" / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("host elsewhere pid 12")
        lock.flush()
        message = refused(copy, "run", str(copy / "campaign.yaml"), "--set", "labels.budget=20")
        assert "running (host elsewhere pid 12)" in farwalk("status", str(copy / "tiny.campaign"))
    assert "another driver" in message
    assert "pid 12" in message


def test_a_campaign_of_another_version_is_refused(copy: Path) -> None:
    log = copy / "tiny.campaign" / "events.jsonl"
    first, rest = log.read_text().split("\n", 1)
    event = {**json.loads(first)["event"], "schema": 99}
    body = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    log.write_text(f'{{"seq":0,"crc":"{zlib.crc32(body.encode()):08x}","event":{body}}}\n{rest}')
    for arguments in (("run", str(copy / "campaign.yaml")), ("status", str(copy / "tiny.campaign"))):
        assert "version 99" in refused(copy, *arguments)


def test_a_damaged_log_is_refused_and_a_torn_last_line_is_not(copy: Path) -> None:
    log = copy / "tiny.campaign" / "events.jsonl"
    whole = log.read_text()
    log.write_text(whole + '{"seq": 99, "crc"')
    assert "14/14 labels" in farwalk("status", str(copy / "tiny.campaign"))
    lines = whole.splitlines(keepends=True)
    log.write_text("".join([*lines[:3], lines[3][:-9] + "\n", *lines[4:]]))
    message = refused(copy, "status", str(copy / "tiny.campaign"))
    assert "events.jsonl, line 4: damaged" in message


def test_a_truncated_log_is_refused(copy: Path) -> None:
    (copy / "tiny.campaign" / "events.jsonl").write_text("")
    assert "empty" in refused(copy, "status", str(copy / "tiny.campaign"))


@pytest.mark.parametrize(("what", "pattern"), [("model", "models/*.pt"), ("extxyz", "shards/*labels*.h5")])
def test_a_changed_file_is_refused_by_name(copy: Path, tmp_path: Path, what: str, pattern: str) -> None:
    files = sorted((copy / "tiny.campaign").glob(pattern))
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[:-1])
    output = tmp_path / "out"
    message = refused(copy, "export", str(copy / "tiny.campaign"), "--format", what, "-o", str(output))
    assert "content changed" in message
    assert not output.exists()


def test_the_first_interrupt_stops_softly_and_the_same_command_goes_on(tmp_path: Path) -> None:
    write(tmp_path / "cu.extxyz", bulk("Cu", cubic=True))
    (tmp_path / "campaign.yaml").write_text(yaml.safe_dump(TINY))
    command = [sys.executable, "-m", "apps.cli", "run", str(tmp_path / "campaign.yaml")]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as driver:
        assert driver.stdout is not None
        while "labelling" not in driver.stdout.readline():
            assert driver.poll() is None
        driver.send_signal(signal.SIGINT)
        output, errors = driver.communicate(timeout=300)
    assert driver.returncode == 130
    assert "stopping" in output
    assert "go on with: farwalk run" in errors
    assert "Traceback" not in errors
    assert "stopped: told to stop" in farwalk("status", str(tmp_path / "tiny.campaign"))
    assert "14 labels, 2 models" in farwalk("run", str(tmp_path / "campaign.yaml"))
