"""``farwalk failures`` and ``farwalk relabel``: what failed, what it cost, and that it is tried again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from fabricated import MadeUpSteps, carry_out, failed_label, label, settings, systems
from typer.testing import CliRunner

from apps.cli.application import application
from apps.cli.board import Board
from pipeline.campaign import Campaign
from pipeline.errors import TaskError
from pipeline.events import EndReason, Labelled, Requeued, Stopped
from pipeline.lock import DriverLock
from pipeline.records import Cause, LabelResult, LabelTask, Measure, Try

CHOSEN = settings(stop__max_rounds=2)


def failed_try(cause: Cause, *measures: Measure, core_s: float = 1800.0) -> Try:
    return Try(cause=cause, reason="no", measures=measures, wall_s=core_s / 2, core_s=core_s, directory="try-1")


def troubled(task: LabelTask) -> LabelResult:
    """Label 3 never converges, label 5 crashes, label 7 converges with more steps."""
    first = failed_try(Cause.NOT_CONVERGED)
    if task.item == 3 and task.round == 0:
        tries = (first, failed_try(Cause.NOT_CONVERGED, Measure.MORE_STEPS))
        reason = f"SCF not converged in 7 steps. (see {task.scratch}/failure.txt)"
        bad = failed_label(task, reason)
        return replace(bad, cause=Cause.NOT_CONVERGED, tries=tries, core_s=3600.0)
    if task.item == 5 and task.round == 0:
        tries = (failed_try(Cause.CRASH), failed_try(Cause.CRASH, Measure.FRESH_START))
        return replace(failed_label(task, "signal 9"), cause=Cause.CRASH, tries=tries, core_s=3600.0)
    if task.item == 7 and task.round == 0:
        return replace(label(task), tries=(first,), measures=(Measure.MORE_STEPS,), core_s=2400.0)
    return label(task)


def with_trouble(task):
    return troubled(task) if isinstance(task, LabelTask) else carry_out(task)


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    made = Campaign.create_or_open(CHOSEN, systems(), tmp_path / "c")
    made.run(MadeUpSteps(with_trouble))
    return made


def farwalk(*arguments: object, code: int = 0):
    done = CliRunner().invoke(application, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done


def test_failures_are_counted_by_cause_with_their_share_and_cost(campaign: Campaign) -> None:
    out = farwalk("failures", campaign.store.root).stdout
    total = campaign.store.state().spent
    assert f"2 of {total} labels are quarantined" in out
    for cause in ("not_converged", "crash"):
        row = next(line for line in out.splitlines() if line.startswith(f"│ {cause}"))
        assert [cell.strip() for cell in row.split("│")[2:5]] == ["1", f"{100 / total:.1f} %", "1"]


def test_every_quarantined_label_has_one_line_with_all_that_was_tried(campaign: Campaign) -> None:
    root = campaign.store.root
    lines = farwalk("failures", root).stdout.splitlines()
    (line,) = [line for line in lines if line.startswith("label-r0000-0003")]
    place = f"{root}/scratch/farwalk-label-r0000-0003"
    assert line.removesuffix(" (gone)") == (
        "label-r0000-0003: not_converged; 2 tries: as set (not_converged), more_steps; 1 core-hours; "
        f"SCF not converged in 7 steps; {place}"
    )
    assert any(line.startswith("label-r0000-0005: crash; 2 tries: as set (crash), fresh_start") for line in lines)


def test_what_helped_the_others_is_told(campaign: Campaign) -> None:
    out = farwalk("failures", campaign.store.root).stdout
    assert "1 label needed more than one try; helped by more_steps 1; 0.5 core-hours in failed tries" in out


def test_one_cause_alone_can_be_asked_for_and_a_wrong_one_names_the_nearest(campaign: Campaign) -> None:
    out = farwalk("failures", campaign.store.root, "--cause", "crash").stdout
    assert "label-r0000-0005" in out
    assert "label-r0000-0003" not in out
    assert (
        "Did you mean not_converged?"
        in farwalk("failures", campaign.store.root, "--cause", "not_convergd", code=2).stderr
    )
    assert (
        "no label is quarantined for time_limit"
        in farwalk("failures", campaign.store.root, "--cause", "time_limit").stdout
    )


def test_failures_as_json_hold_the_same(campaign: Campaign) -> None:
    said = json.loads(farwalk("failures", campaign.store.root, "--json").stdout)
    assert {cause: row["labels"] for cause, row in said["causes"].items()} == {"not_converged": 1, "crash": 1}
    first = said["quarantined"][0]
    assert (first["task"], first["cause"], first["core_s"]) == ("label-r0000-0003", "not_converged", 3600.0)
    assert [one["measures"] for one in first["tries"]] == [[], ["more_steps"]]
    assert said["recovered"][0]["helped"] == ["more_steps"]


def test_failures_are_read_while_a_driver_runs_and_from_a_copy(campaign: Campaign, tmp_path: Path) -> None:
    with DriverLock(campaign.store.lock_path):
        here = farwalk("failures", campaign.store.root).stdout
    shutil.copytree(campaign.store.root, tmp_path / "copy")
    copied = farwalk("failures", tmp_path / "copy").stdout
    assert copied.replace("/copy", "/c") == here


def test_a_campaign_without_failures_says_so(tmp_path: Path) -> None:
    made = Campaign.create_or_open(CHOSEN, systems(), tmp_path / "good")
    made.run(MadeUpSteps())
    assert farwalk("failures", tmp_path / "good").stdout.startswith("no label is quarantined, of ")
    assert json.loads(farwalk("failures", tmp_path / "good", "--json").stdout)["quarantined"] == []
    assert "no label is quarantined" in farwalk("relabel", tmp_path / "good", code=2).stderr


def test_relabel_asks_again_and_the_next_run_makes_the_labels(campaign: Campaign) -> None:
    root, labels = campaign.store.root, campaign.store.state().labelled
    assert "asked again for 2 labels: 1 not_converged, 1 crash" in farwalk("relabel", root).stdout
    assert isinstance(campaign.store.events()[-1], Requeued)
    assert "label-r0000-0003: not_converged, asked for again;" in farwalk("failures", root).stdout
    assert "2 labels are asked for again already" in farwalk("relabel", root, code=2).stderr
    Campaign.create_or_open(CHOSEN, systems(), root).run(MadeUpSteps())
    assert "no label is quarantined" in farwalk("failures", root).stdout
    assert campaign.store.state().labelled == labels + 2
    made = [event.number for event in campaign.store.events() if isinstance(event, Labelled)]
    assert len(made) == len(set(made))


def test_relabel_takes_names_and_causes(campaign: Campaign) -> None:
    root = campaign.store.root
    assert "1 label: 1 not_converged" in farwalk("relabel", root, "label-r0000-0003").stdout
    assert "1 label: 1 crash" in farwalk("relabel", root, "--cause", "crash").stdout


def test_relabel_refuses_wrong_names_nothing_to_do_and_a_campaign_that_runs(campaign: Campaign) -> None:
    root = campaign.store.root
    assert "Did you mean label-r0000-0003?" in farwalk("relabel", root, "label-r000-0003", code=2).stderr
    assert "no label is quarantined for time_limit" in farwalk("relabel", root, "--cause", "time_limit", code=2).stderr
    with DriverLock(campaign.store.lock_path):
        assert "farwalk stop" in farwalk("relabel", root, code=2).stderr
    assert not any(isinstance(event, Requeued) for event in campaign.store.events())


def test_the_board_counts_failed_labels_by_cause_and_forgets_those_asked_for_again(campaign: Campaign) -> None:
    board = Board()
    board.absorb(campaign.store.reading())
    assert "2 failed (1 not_converged, 1 crash)" in board.summary()
    before = board.labels
    farwalk("relabel", campaign.store.root, "--cause", "crash")
    board = Board()
    board.absorb(campaign.store.reading())
    assert "1 failed (1 not_converged)" in board.summary()
    assert board.labels == before - 1


def never(task):
    if isinstance(task, LabelTask):
        return replace(failed_label(task, "cp2k.psmp cannot be started"), cause=Cause.MISSING_PROGRAM)
    return carry_out(task)


def test_a_campaign_whose_labels_are_paused_says_what_to_do(tmp_path: Path) -> None:
    made = Campaign.create_or_open(CHOSEN, systems(), tmp_path / "c")
    with pytest.raises(TaskError) as caught:
        made.run(MadeUpSteps(never, capacity=1))
    assert "missing_program" in caught.value.message
    stopped = made.store.events()[-1]
    assert isinstance(stopped, Stopped)
    assert stopped.reason is EndReason.LABELS_PAUSED
    out = farwalk("status", tmp_path / "c").stdout
    assert "stopped: labelling is paused" in out
    assert "Mend site.launch.programs" in out
    assert f"farwalk relabel {tmp_path / 'c'}" in out
    assert "3 failed (3 missing_program)" in out
