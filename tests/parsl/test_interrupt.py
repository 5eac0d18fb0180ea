"""Ctrl-C in a terminal reaches every process of the group; worker processes must live on until a soft stop is done."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ase.build import bulk
from ase.io import write

TINY = {
    "name": "tiny",
    "seed": 3,
    "systems": [{"name": "cu", "structures": ["cu.extxyz"], "repeat": [2, 1, 1]}],
    "labels": {"reference": {"kind": "emt"}, "budget": 14, "initial": 10, "initial_rattle_A": 0.1},
    "potential": {"kind": "gmnn", "hidden": [16, 16], "channels": 2, "gaussians": 5, "cutoff_A": 4.0},
    "walkers": {"count": 4, "batch": 4, "segment_steps": 20, "store_every": 5, "timestep_fs": 2.0},
    "selection": {"batch": 4},
    "training": {"epochs": 10, "warm_epochs": 5},
    "site": {"kind": "local_htex"},
}


@pytest.mark.parsl
def test_ctrl_c_to_the_whole_group_stops_softly_and_the_same_command_goes_on(tmp_path: Path) -> None:
    write(tmp_path / "cu.extxyz", bulk("Cu", cubic=True))
    (tmp_path / "campaign.yaml").write_text(yaml.safe_dump(TINY))
    command = [sys.executable, "-m", "apps.cli", "run", str(tmp_path / "campaign.yaml")]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as driver:
        assert driver.stdout is not None
        while "labelling" not in driver.stdout.readline():
            assert driver.poll() is None
        os.killpg(driver.pid, signal.SIGINT)
        _, errors = driver.communicate(timeout=300)
    assert driver.returncode == 130
    assert errors.startswith("stopped on request; go on with: farwalk run")
    again = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    assert "14 labels, 2 models" in again.stdout
