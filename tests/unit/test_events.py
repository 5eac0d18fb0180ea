"""The event log keeps every fact it acknowledged, and nothing else."""

import os
import typing
from dataclasses import replace

import pytest

from pipeline import events as module
from pipeline.errors import StoreError
from pipeline.event_log import EventLog, encode, read_events
from pipeline.events import (
    Created,
    EndReason,
    Event,
    Gathered,
    Idled,
    LabelFailed,
    Labelled,
    Noticed,
    Rejected,
    Requeued,
    Resumed,
    Selected,
    Stopped,
    Submitted,
    TaskFailed,
    TaskLost,
    Trained,
    Walked,
    Work,
    from_plain,
    to_plain,
)
from pipeline.records import Cause, FileRef, Found, GateReport, GroupCoverage, Measure, Scores, Split, Timing, Try
from pipeline.uncertainty.calibration import made_up_factor

FILE = FileRef(path="shards/ä.h5", sha256="0" * 64)
TIMING = Timing(started=1.5, ended=2.25, cpu_s=0.1, host="here:1")
HELD = GroupCoverage(quantity="atomic", group="Cu", count=12, held=11, structures=3, low=1 / 3, high=1.0)
SCORES = Scores(
    count=3, energy_rmse=0.1, energy_mae=0.05, force_rmse=1 / 3, force_mae=2e-17, coverage_total=0.5, groups=(HELD,)
)
REPORT = GateReport(
    passed=False, reason="worse", parent=SCORES, model=SCORES, walks=8, parent_unsound=0, model_unsound=3
)

FAILED = LabelFailed(
    time=7.0,
    round=1,
    item=3,
    number=19,
    identity="abd",
    system="a",
    reason='line 1\nline "2"\u2028',
    scratch="scratch/x",
    timing=None,
    cause=Cause.NOT_CONVERGED,
    tries=(
        Try(cause=Cause.CRASH, reason="x", measures=(Measure.MORE_STEPS,), wall_s=1.0, core_s=2.0, directory="try-0"),
    ),
    core_s=2.5,
)
EXAMPLES: list[Event] = [
    Created(
        time=1.0,
        schema=module.SCHEMA,
        settings={"name": "Übung", "a": [1, {"b": None}]},
        digest="d",
        structures="s",
        versions={"farwalk": "0"},
    ),
    Resumed(time=2.0, settings={}, host="h", pid=3),
    Submitted(time=3.0, work=Work.LABEL, round=0, tasks=("a", "b")),
    Walked(
        time=4.0,
        round=1,
        item=0,
        leg=2,
        version=1,
        candidates=FILE,
        walkers=FILE,
        count=2,
        stops={"uncertain": 1},
        walker_steps=10,
        steps=5,
        steps_left=7,
        born=(1, 3),
        timing=TIMING,
        found={"a": Found(count=2, mean_bound=1 / 7, cells=(0, 1023))},
        core_s=4.0,
        gpu_s=2.0,
    ),
    Selected(time=5.0, round=1, picks=None, count=0, dropped={"known": 3}, timing=None),
    Selected(time=5.0, round=1, picks=FILE, count=2, dropped={}, timing=TIMING, kept=5, version=3, saved=1, core_s=0.5),
    Labelled(
        time=6.0,
        round=1,
        item=2,
        number=18,
        identity="abc",
        system="a",
        split=Split.CALIBRATION,
        file=FILE,
        row=1,
        timing=TIMING,
    ),
    FAILED,
    Requeued(time=7.5, failures=(FAILED,), picks=(FILE,)),
    Gathered(time=8.0, round=1, file=FILE, count=1),
    Trained(
        time=9.0,
        round=1,
        version=2,
        file=FILE,
        labels=18,
        fresh=SCORES,
        train=None,
        validation=SCORES,
        factors=(
            made_up_factor("total", value=1.25, count=3),
            made_up_factor("atomic", value=0.1, count=9, group="Cu"),
        ),
        epochs=4,
        history=({"epoch": 1.0, "loss": 0.1},),
        timing=TIMING,
        gate=replace(REPORT, passed=True, reason=""),
        attempt=1,
        gpu_s=9.5,
    ),
    Rejected(time=9.5, round=1, version=3, attempt=0, gate=REPORT, fresh=None, epochs=4, timing=TIMING, core_s=1.0),
    TaskFailed(time=10.0, work=Work.TRAIN, round=1, task="train-v0003", reason="no"),
    TaskLost(time=10.0, work=Work.WALK, round=1, task="walk-r0001-0000-l00", reason="gone", remedy="more memory"),
    Idled(time=10.2, work=Work.LABEL, since=8.0, reason="no candidates", slot_s=4.5),
    Noticed(time=10.5, text="job 7 was cancelled", remedy=""),
    Stopped(time=11.0, reason=EndReason.BUDGET, message="done"),
]


@pytest.fixture
def log_path(tmp_path):
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.append(EXAMPLES)
    log.close()
    return path


def test_there_is_an_example_of_every_event():
    assert {type(event) for event in EXAMPLES} == set(typing.get_args(Event))
    kinds = [cls.__dataclass_fields__["kind"].default for cls in typing.get_args(Event)]
    assert len(set(kinds)) == len(kinds)
    assert module.SCHEMA == 3


def test_events_come_back_equal(log_path):
    assert list(read_events(log_path)) == EXAMPLES


def test_labels_of_logs_without_tries_causes_and_levels_are_read():
    later = {"reference", "tries", "measures", "core_s", "cause", "remedy"}
    for event in EXAMPLES:
        if isinstance(event, Labelled | LabelFailed | Stopped):
            plain = {name: value for name, value in to_plain(event).items() if name not in later}
            known = {name: value for name, value in to_plain(event).items() if name in plain}
            read = from_plain(plain, where="old")
            assert {name: value for name, value in to_plain(read).items() if name in plain} == known
            assert getattr(read, "cause", Cause.UNKNOWN) is Cause.UNKNOWN
            assert getattr(read, "tries", ()) == ()


def test_a_log_is_one_line_per_event(log_path):
    assert log_path.read_bytes().count(b"\n") == len(EXAMPLES)


def test_a_last_line_torn_at_any_byte_is_ignored_and_cut_off_before_the_next_append(log_path):
    data = log_path.read_bytes()
    last = data.rindex(b"\n", 0, -1) + 1
    for end in range(last, len(data)):
        log_path.write_bytes(data[:end])
        assert list(read_events(log_path)) == EXAMPLES[:-1], end
        log = EventLog(log_path)
        log.append(EXAMPLES[-1:])
        log.close()
        assert log_path.read_bytes() == data, end


def test_reading_never_changes_a_torn_log(log_path):
    torn = log_path.read_bytes()[:-3]
    log_path.write_bytes(torn)
    read_events(log_path)
    assert log_path.read_bytes() == torn


def test_any_changed_byte_before_the_last_line_is_refused(log_path):
    data = log_path.read_bytes()
    end = data.rindex(b"\n", 0, -1)
    for place in range(0, end, 7):
        broken = bytearray(data)
        broken[place] ^= 4
        log_path.write_bytes(broken)
        with pytest.raises(StoreError) as caught:
            read_events(log_path)
        assert caught.value.remedy


def test_a_missing_or_doubled_line_is_refused(log_path):
    lines = log_path.read_bytes().splitlines(keepends=True)
    for broken in (lines[:2] + lines[3:], lines[:2] + lines[1:]):
        log_path.write_bytes(b"".join(broken))
        with pytest.raises(StoreError, match="sequence"):
            read_events(log_path)


def test_another_schema_version_is_named(tmp_path):
    created = replace(EXAMPLES[0], schema=4)
    (tmp_path / "events.jsonl").write_bytes(encode(created, 0))
    with pytest.raises(StoreError, match="version 4"):
        read_events(tmp_path / "events.jsonl")


def test_a_full_disk_leaves_the_log_as_it_was(log_path, monkeypatch):
    data = log_path.read_bytes()
    log = EventLog(log_path)
    real = os.write

    def half(descriptor, chunk):
        if len(chunk) > 20:
            return real(descriptor, chunk[:20])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.event_log.os.write", half)
    with pytest.raises(StoreError, match="No space left"):
        log.append([replace(EXAMPLES[-1], message="")])
    monkeypatch.undo()
    log.append(EXAMPLES[-1:])
    log.close()
    events = read_events(log_path)
    assert log_path.read_bytes().startswith(data)
    assert list(events) == [*EXAMPLES, EXAMPLES[-1]]


def test_a_missing_log_is_told(tmp_path):
    with pytest.raises(StoreError, match="no event log"):
        read_events(tmp_path / "events.jsonl")
