"""The campaign in small: its estimate, and the check that runs it."""

from pathlib import Path

import pytest
import yaml
from ase.build import bulk
from ase.io import write
from typer.testing import CliRunner

from apps.cli.application import application
from pipeline.settings import CampaignSettings
from pipeline.trial import Costs, estimate

COSTS = Costs(label_s=2.0, structure_epoch_s=0.01, walker_step_s=0.1, walker_steps=100)
TINY = {
    "name": "tiny",
    "seed": 3,
    "systems": [{"name": "cu", "structures": ["cu.extxyz"], "repeat": [2, 1, 1]}],
    "labels": {"reference": {"kind": "emt"}, "budget": 50, "initial": 10, "initial_rattle_A": 0.1},
    "potential": {"kind": "gmnn", "hidden": [16, 16], "channels": 2, "gaussians": 5, "cutoff_A": 4.0},
    "walkers": {"count": 8, "batch": 4, "segment_steps": 20, "store_every": 5, "timestep_fs": 2.0},
    "selection": {"batch": 20},
    "training": {"epochs": 100, "warm_epochs": 10},
    "site": {"kind": "inline"},
}


def settings(**site: int) -> CampaignSettings:
    return CampaignSettings.model_validate({**TINY, "site": {"kind": "inline", **site}})


def test_the_estimate_counts_every_label_epoch_and_step_once() -> None:
    found = estimate(settings(), COSTS)
    assert found.rounds == 2
    assert found.label_s == pytest.approx(50 * 2.0)
    # 100 epochs on the 10 first labels, 10 on 30, 10 on 50; four fifths of the labels are trained on
    assert found.train_s == pytest.approx(0.01 * 0.8 * (100 * 10 + 10 * 30 + 10 * 50))
    # two batches one after the other, 20 steps a round
    assert found.walk_s == pytest.approx(2 * 2 * 20 * 0.1)
    assert found.total_s == pytest.approx(found.label_s + found.train_s + found.walk_s)


def test_slots_divide_labels_and_walks_but_not_training() -> None:
    one, two = estimate(settings(), COSTS), estimate(settings(walk_slots=2, label_slots=2), COSTS)
    assert (two.label_s, two.walk_s) == (one.label_s / 2, one.walk_s / 2)
    assert two.train_s == one.train_s


def test_check_measures_every_kind_of_work_and_leaves_nothing_behind(tmp_path: Path) -> None:
    write(tmp_path / "cu.extxyz", bulk("Cu", cubic=True))
    (tmp_path / "campaign.yaml").write_text(yaml.safe_dump(TINY))
    result = CliRunner().invoke(application, ["check", str(tmp_path / "campaign.yaml")])
    assert result.exit_code == 0, result.output
    for text in ("inline starts", "each with emt", "per structure and epoch", "walker steps/s", "all right"):
        assert text in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["campaign.yaml", "cu.extxyz"]


def test_check_refuses_a_reference_that_cannot_label(tmp_path: Path) -> None:
    write(tmp_path / "cu.extxyz", bulk("Cu", cubic=True))
    labels = {**TINY["labels"], "max_force_eV_per_A": 1e-6}
    (tmp_path / "campaign.yaml").write_text(yaml.safe_dump({**TINY, "labels": labels}))
    result = CliRunner().invoke(application, ["check", str(tmp_path / "campaign.yaml")])
    assert result.exit_code == 2
    assert "labels.reference: the reference could not label a rattled start structure of cu" in result.stderr
