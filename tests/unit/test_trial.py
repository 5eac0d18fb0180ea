"""The campaign in small: its estimate, and the check that runs it."""

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml
from ase.build import bulk
from ase.io import write
from fabricated import MadeUpSteps
from fabricated import settings as made_up_settings
from fabricated import systems as made_up_systems
from typer.testing import CliRunner

from apps.cli.application import application
from pipeline.campaign import Campaign
from pipeline.estimate import Costs, Share, estimate, labels_by_round, share_of
from pipeline.events import Labelled
from pipeline.records import Split, Timing
from pipeline.settings import CampaignSettings
from pipeline.settings.dft import CP2KReference
from pipeline.settings.labels import EMTReference
from pipeline.settings.site import SlurmSite
from pipeline.trial import label_costs, trial_splits

COSTS = Costs(label_s=2.0, handling_s=0.5, structure_epoch_s=0.01, walker_step_s=0.1, walker_steps=100)
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


ASKED = [10, 8, 8, 8, 9, 7]
"""Labels per round of the tiny campaign."""


def settings(**site: int) -> CampaignSettings:
    return CampaignSettings.model_validate({**TINY, "site": {"kind": "inline", **site}})


def test_the_estimate_counts_every_label_epoch_and_step_once() -> None:
    found = estimate(settings(), COSTS)
    # 10 labels, then 8 or a quarter more, at most the 20 of a batch
    assert list(labels_by_round(settings())) == ASKED
    assert found.rounds == len(ASKED) - 1
    assert found.parts["label"].tasks == 50
    assert found.parts["label"].wall_s == pytest.approx(50 * 2.5)
    # 100 epochs on the 10 first labels, then 10 on all there are; four fifths of the labels are trained on
    sizes = [sum(ASKED[: done + 1]) for done in range(len(ASKED))]
    epochs = 100 * sizes[0] + 10 * sum(sizes[1:])
    assert found.parts["train"].wall_s == pytest.approx(0.01 * 0.8 * epochs)
    # two batches one after the other, 20 steps a round
    assert found.parts["walk"].wall_s == pytest.approx(found.rounds * 2 * 20 * 0.1)
    assert found.total_s == pytest.approx(sum(part.wall_s for part in found.parts.values()))


def test_slots_divide_the_time_of_labels_and_walks_but_neither_training_nor_core_hours() -> None:
    one, two = estimate(settings(), COSTS), estimate(settings(walk_slots=2, label_slots=2), COSTS)
    assert two.parts["walk"].wall_s == one.parts["walk"].wall_s / 2
    assert two.parts["label"].wall_s == pytest.approx(one.parts["label"].wall_s / 2, rel=0.1)  # odd rounds end unevenly
    assert two.parts["train"] == one.parts["train"]
    assert [two.parts[kind].cpu_h for kind in two.parts] == [one.parts[kind].cpu_h for kind in one.parts]
    assert (two.steps_per_s, two.steps_per_s_task) == (2 * one.steps_per_s, one.steps_per_s_task)


def test_more_slots_than_walk_tasks_do_not_make_walks_faster() -> None:
    two, nine = (estimate(settings(walk_slots=slots), COSTS) for slots in (2, 9))
    assert (nine.parts["walk"], nine.steps_per_s) == (two.parts["walk"], two.steps_per_s)


def test_a_worker_is_charged_its_share_of_the_cores_and_gpus_of_its_job() -> None:
    jobs = {"walltime": 3600, "cores_per_node": 32}
    site = SlurmSite.model_validate(
        {"kind": "slurm", "walk": {**jobs, "gpus_per_node": 4, "workers_per_gpu": 2}, "label": jobs}
    )
    assert share_of("walk", site) == share_of("train", site) == Share(cores=4, gpus=0.5)
    assert share_of("label", site) == Share(cores=1, gpus=0)


def test_what_a_worker_loads_before_its_first_label_is_not_charged_to_every_label() -> None:
    def timing(host: str, started: float, ended: float) -> Timing:
        return Timing(started=started, ended=ended, cpu_s=0.0, host=host)

    slow_start = [timing("a", 0, 30), timing("b", 0, 40), timing("a", 30.5, 32.5), timing("a", 33, 35)]
    assert label_costs(slow_start) == (2.0, 0.5)
    assert label_costs([timing("a", 0, 30), timing("b", 0, 40)]) == (35.0, 0.0)


def test_check_measures_every_kind_of_work_and_leaves_nothing_behind(tmp_path: Path) -> None:
    write(tmp_path / "cu.extxyz", bulk("Cu", cubic=True))
    (tmp_path / "campaign.yaml").write_text(yaml.safe_dump(TINY))
    result = CliRunner().invoke(application, ["check", str(tmp_path / "campaign.yaml")])
    assert result.exit_code == 0, result.output
    for text in ("inline starts", "each with emt", "per structure and epoch", "walker steps/s", "all right"):
        assert text in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["campaign.yaml", "cu.extxyz"]


def test_check_speaks_json_to_machines(tmp_path: Path) -> None:
    write(tmp_path / "cu.extxyz", bulk("Cu", cubic=True))
    (tmp_path / "campaign.yaml").write_text(yaml.safe_dump(TINY))
    result = CliRunner().invoke(application, ["check", str(tmp_path / "campaign.yaml"), "--json"])
    said = json.loads(result.stdout)
    assert (said["ready"], said["site"]) == (True, "inline")
    assert said["measured"]["walker_steps"] == 4 * 100
    assert said["expected"]["total_s"] == pytest.approx(sum(p["wall_s"] for p in said["expected"]["parts"].values()))


def test_check_refuses_a_reference_that_cannot_label(tmp_path: Path) -> None:
    write(tmp_path / "cu.extxyz", bulk("Cu", cubic=True))
    labels = {**TINY["labels"], "max_force_eV_per_A": 1e-6}
    (tmp_path / "campaign.yaml").write_text(yaml.safe_dump({**TINY, "labels": labels}))
    result = CliRunner().invoke(application, ["check", str(tmp_path / "campaign.yaml")])
    assert result.exit_code == 2
    assert "labels.reference: the reference could not label a rattled start structure of cu" in result.stderr
    kept = tmp_path / "tiny.campaign.check" / "label-0"
    assert "(implausible): a force of" in result.stderr
    assert str(kept) in result.stderr
    assert kept.is_dir()


def test_a_trial_makes_as_few_labels_of_a_dear_reference_as_the_splits_need_and_trains_on_every_system() -> None:
    cheap, dear = EMTReference(), CP2KReference(preset="pbe")
    assert len(trial_splits(cheap, 1)) == 6
    assert trial_splits(dear, 1) == (Split.TRAIN, Split.VALIDATION, Split.CALIBRATION)
    for systems in (1, 2, 5):
        for reference in (cheap, dear):
            splits = trial_splits(reference, systems)
            assert set(splits) == set(Split)
            assert {item % systems for item, split in enumerate(splits) if split is Split.TRAIN} == set(range(systems))


def test_labels_of_programs_are_charged_the_cores_they_held_and_workers_of_several_nodes_all_of_them() -> None:
    jobs = {"walltime": 7200, "cores_per_node": 32, "nodes_per_block": 2, "cores_per_worker": 32}
    launch = {"nodes": 2, "mpi": "srun -n {ranks} -N {nodes}", "time_limit": 600}
    site = SlurmSite.model_validate({"kind": "slurm", "walk": jobs, "label": jobs, "launch": launch})
    assert share_of("label", site) == Share(cores=64, gpus=0)
    assert share_of("walk", site) == Share(cores=32, gpus=0)


def test_a_campaign_asks_for_the_labels_of_the_estimate(tmp_path: Path) -> None:
    campaign = Campaign.create_or_open(made_up_settings(), made_up_systems(), tmp_path / "c")
    campaign.run(MadeUpSteps())
    rounds = Counter(event.round for event in campaign.store.reading() if isinstance(event, Labelled))
    assert list(labels_by_round(campaign.settings)) == [rounds[number] for number in sorted(rounds)]
