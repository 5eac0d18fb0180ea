"""What a person sees of a campaign: how far it is, and what happened to the machine."""

import re
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from fabricated import MadeUpSteps, carry_out, settings, systems
from test_events import REPORT
from test_state import labelled, walked
from typer.testing import CliRunner

from apps.cli.application import application
from apps.cli.board import Board, notice_line
from apps.cli.progress import Display
from pipeline.campaign import Campaign
from pipeline.events import Created, Noticed, Resumed, Stopped, Submitted, TaskLost, Work
from pipeline.events import EndReason as Reason
from pipeline.records import GroupCoverage, TrainTask

CHOSEN = settings().model_dump(mode="json")
BEGIN = Created(time=1.0, schema=2, settings=CHOSEN, digest="", structures="", versions={})
RESUMED = Resumed(time=2.0, settings=CHOSEN, host="h", pid=1)
STOPPED = Stopped(time=2.0, reason=Reason.INTERRUPTED, message="stopped on request")
REFUSED = Noticed(time=3.0, text="walk jobs are refused: bad account.", remedy="Set site.account.")


def submitted(work: Work, round_index: int, count: int) -> Submitted:
    return Submitted(time=1.0, work=work, round=round_index, tasks=tuple(map(str, range(count))))


def after(*events):
    board = Board()
    board.absorb([BEGIN, *events])
    return board


def test_walks_are_counted_in_steps_of_their_segments_also_when_cut_interrupted_or_ended_early():
    walks = submitted(Work.WALK, 1, 3)
    legs = [walked(0, leg=0, steps_left=8), walked(1, leg=0, steps_left=3)]  # of 10 steps in each of 3 batches
    board = after(walks, *legs)
    assert (board.done, board.total) == (2 + 7, 30)
    board = after(walks, *legs, STOPPED, RESUMED, submitted(Work.WALK, 1, 3), walked(1, leg=1), walked(2))
    assert (board.done, board.total) == (2 + 10 + 10, 30)
    assert board.walker_steps == 4 * 4
    board.absorb([submitted(Work.WALK, 2, 3)])
    assert (board.done, board.total) == (0, 30)


def test_labels_are_counted_over_drivers_and_over_requests_that_come_later():
    some = [labelled(0, item, item) for item in range(4)]
    board = after(submitted(Work.LABEL, 0, 10), *some)
    assert (board.done, board.total) == (4, 10)
    board.absorb([RESUMED, submitted(Work.LABEL, 0, 6)])
    assert (board.done, board.total) == (4, 10)
    board.absorb([labelled(0, 4, 4), submitted(Work.LABEL, 0, 1)])
    assert (board.done, board.total) == (5, 11)


def test_a_notice_is_one_line_with_its_remedy():
    assert notice_line(REFUSED) == "walk jobs are refused: bad account. Set site.account."
    assert notice_line(replace(REFUSED, text="job 7\nwas cancelled", remedy="")) == "job 7 was cancelled"
    lost = TaskLost(time=1.0, work=Work.TRAIN, round=1, task="train-v0002", reason="its worker died.", remedy="Look.")
    assert notice_line(lost) == "train-v0002: its worker died; it is made again. Look."


STREAM = {
    "schedule": "streaming",
    "site": {"kind": "local_htex", "gpus": 1, "walk_slots": 2, "label_slots": 4},
    "stop__target_force_eV_per_A": 0.01,
    "stop__max_gpu_h": 5.0,
}


def refusing(task):
    """The second model does not pass the gate at first, nor the third at all."""
    result = carry_out(task)
    if isinstance(task, TrainTask) and (task.version, task.attempt) in ((2, 0), (3, 0), (3, 1)):
        passed = replace(REPORT, passed=False, reason="force RMSE 0.5 eV/Å")
        return replace(result, gate=passed)
    if isinstance(task, TrainTask) and result.fresh is not None:
        groups = (
            GroupCoverage(quantity="atomic", group="all", count=80, held=60, structures=20, low=0.9, high=1.0),
            GroupCoverage(quantity="total", group="all", count=20, held=19, structures=20, low=0.8, high=1.0),
        )
        return replace(result, fresh=replace(result.fresh, groups=groups))
    return result


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    """A stream that ended, with refused models."""
    place = tmp_path_factory.mktemp("stream") / "c"
    made = Campaign.create_or_open(settings(**STREAM), systems(), place)
    steps = MadeUpSteps(refusing, order=1, capacity=4)
    made.run(steps, stop_requested=steps.poll)  # a task that is in flight alone ends when it is looked for
    return made.store


def test_the_phase_of_a_stream_is_all_that_is_in_flight(stream):
    board, seen = Board(), set()
    for event in stream.reading():
        board.absorb([event])
        seen.add(board.phase)
        assert board.is_training == ("training" in board.phase)
        assert board.labels <= board.budget == 30
    assert any(re.fullmatch(r"streaming: 4 labels? .*in flight.*", text) for text in seen), seen
    assert any(re.search(r"labels? and \d walk tasks? in flight, training v\d", text) for text in seen), seen
    assert any(re.search(r"training v2 anew", text) for text in seen)
    assert any(re.search(r"; \d+ candidates wait$", text) for text in seen)
    assert board.phase == "stopped"
    assert board.remaining(board.last_time) == ""


def test_a_stream_says_how_long_it_takes_from_its_labels(stream):
    board = Board()
    for number, event in enumerate(stream.reading()):
        board.absorb([replace(event, time=float(number))])
        if board.labels == 20:
            break
    assert re.fullmatch(r"about \d+(\.\d)? (ms|s|min) to the budget", board.remaining(board.last_time))


@pytest.mark.parametrize("columns", [80, 100])
def test_the_status_of_a_stream_fits_the_terminal_and_has_a_table_for_each_thing(stream, columns):
    result = CliRunner().invoke(application, ["status", str(stream.root)], env={"COLUMNS": str(columns)})
    assert result.exit_code == 0, (result.output, result.exception)
    tables = result.stdout.split("\n\n", 1)[1]
    assert max(map(len, tables.splitlines())) <= columns
    for title in ("spent, and what is left", "workers: share of their time", "models", "calibration: "):
        assert sum(line.startswith(title) for line in tables.splitlines()) == 1, title
    assert "gate: v2 refused: force RMSE 0.5 eV/Å; trained anew from scratch and published" in result.stdout
    assert "gate: v3 from scratch refused" in result.stdout
    assert "given up, the model before it stays until there are more labels" in result.stdout
    assert "off 75 (90 to 100)" in tables
    assert re.search(r"stop.max_gpu_h +[\d.e-]+ GPU h +5 ", tables)
    assert re.search(r"stop.max_cpu_h .* none", tables)


def test_a_driver_that_is_only_starting_has_not_worked_since_the_last_one_stopped(stream, monkeypatch):
    def shown() -> str:
        return CliRunner().invoke(application, ["status", str(stream.root)]).stdout.split("\n\n", 1)[1]

    before, later = shown(), time.time() + 1e6
    monkeypatch.setattr("apps.cli.status.holder_of", lambda path: "a driver")
    monkeypatch.setattr("apps.cli.status.time", SimpleNamespace(time=lambda: later))
    assert shown() == before


def test_progress_of_a_stream_is_a_line_for_each_model_and_now_and_then_what_is_in_flight(stream, campaign, capsys):
    with Display(campaign.store, quiet=False) as display:
        display.board = Board()
        for event in stream.reading():
            display(event)
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert sum(line.startswith("streaming: ") for line in lines) == 1
    assert sum(" refused: " in line for line in lines) == 3
    models = [line for line in lines if "/30 labels, model" in line]
    assert len(models) == len(stream.state().models)
    assert len(lines) == 1 + 3 + len(models)


@pytest.fixture
def campaign(tmp_path):
    return Campaign.create_or_open(settings(), systems(), tmp_path / "c")


def test_notices_are_printed_when_they_happen_and_not_when_quiet(campaign, capsys):
    for quiet in (False, True):
        with Display(campaign.store, quiet=quiet) as display:
            display(REFUSED)
        out = capsys.readouterr().out
        assert out.endswith("walk jobs are refused: bad account. Set site.account.\n") is not quiet
        assert out.count("\n") == (not quiet)


def test_the_next_legs_of_a_walk_are_not_announced_again(campaign, capsys):
    with Display(campaign.store, quiet=False) as display:
        for event in (submitted(Work.WALK, 1, 3), walked(0, steps_left=5), submitted(Work.WALK, 1, 1)):
            display(event)
        display(submitted(Work.SELECT, 1, 1))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["round 1: walking, 3 tasks", "round 1: selecting, 1 task"]


def test_the_status_shows_the_newest_notices_of_the_last_hour(campaign):
    now = time.time()
    log, _ = campaign.store.open_log()
    log.append([replace(REFUSED, time=now - 4000, text="too old")])
    log.append([replace(REFUSED, time=now - 300 + number, text=f"number {number}") for number in range(7)])
    log.close()
    result = CliRunner().invoke(application, ["status", str(campaign.store.root)])
    assert result.exit_code == 0, result.output
    shown = [line for line in result.stdout.splitlines() if "Set site.account." in line]
    assert [line.split(": ", 1)[1] for line in shown] == [
        f"number {number}. Set site.account." for number in range(2, 7)
    ]
    assert "too old" not in result.stdout
