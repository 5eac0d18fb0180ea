"""The loop, driven by made-up results: same campaign whatever the order, stops for the right reason, resumes anywhere."""

import shutil
from collections import Counter
from pathlib import Path

import pytest
from fabricated import MadeUpSteps, carry_out, failed_label, settings, systems, train

from pipeline.campaign import Campaign
from pipeline.errors import LostWorkerError, SettingsError, StoreError, TaskError
from pipeline.events import EndReason, LabelFailed, Labelled, Stopped, Submitted, Trained
from pipeline.lock import DriverLock
from pipeline.records import LabelTask, SelectResult, Split, Status, TrainTask, WalkTask
from pipeline.shards import read_labels, read_walkers


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("pipeline.driver.POLL_S", 0.001)
    monkeypatch.setattr("pipeline.driver.GATHER_S", 0.0005)


def run(directory: Path, chosen=None, steps=None, **options):
    chosen = chosen or settings()
    steps = steps or MadeUpSteps()
    campaign = Campaign.create_or_open(chosen, systems(), directory)
    outcome = campaign.run(steps, **options)
    return campaign, outcome


def labels_of(campaign: Campaign) -> list[Labelled]:
    return [event for event in campaign.store.reading() if isinstance(event, Labelled)]


def dataset(campaign: Campaign):
    """Everything about the labels that must not depend on how the campaign was run."""
    state = campaign.store.state()
    labels = campaign.store.labels(state)
    rows = [
        (x.frame.identity, x.energy, x.forces.tobytes(), x.split, x.round, tuple(sorted(map(str, x.origin.items()))))
        for x in labels
    ]
    return rows, [(m.version, m.file.sha256) for m in state.models]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The data set of a campaign that nothing happened to."""
    return dataset(run(tmp_path_factory.mktemp("plain") / "c")[0])


def test_a_campaign_spends_its_budget_and_says_so(tmp_path):
    campaign, outcome = run(tmp_path / "c")
    state = campaign.store.state()
    assert outcome.reason is EndReason.BUDGET
    assert state.spent == state.labelled == 30
    assert [m.version for m in state.models] == [1, 2, 3, 4, 5, 6]
    assert sorted(row.number for row in labels_of(campaign)) == list(range(30))
    assert len({row.identity for row in labels_of(campaign)}) == 30
    assert not any((tmp_path / "c" / "scratch").iterdir())
    assert state.stopped is not None


def test_first_labels_hold_all_systems_and_all_splits(tmp_path):
    campaign, _ = run(tmp_path / "c")
    first = [row for row in labels_of(campaign) if row.round == 0]
    assert Counter(row.system for row in first) == {"a": 7, "b": 3}
    assert {row.split for row in first} == set(Split)


@pytest.mark.parametrize("order", range(2))
@pytest.mark.parametrize("capacity", [1, 3])
def test_the_data_set_does_not_depend_on_the_order_of_arrival(tmp_path, plain, order, capacity):
    steps = MadeUpSteps(order=order, capacity=capacity)
    mixed, _ = run(tmp_path / "mixed", steps=steps, stop_requested=steps.poll)
    assert dataset(mixed) == plain


def test_resuming_after_any_event_gives_the_same_campaign_and_repeats_nothing(tmp_path):
    """The directory as a killed driver leaves it: events up to any one, files of later ones present or not."""
    whole, _ = run(tmp_path / "whole")
    lines = whole.store.log_path.read_bytes().splitlines(keepends=True)
    expected = dataset(whole)
    labelled = [event for event in whole.store.events() if isinstance(event, Labelled)]
    for kept in range(1, len(lines), 17):
        copy = tmp_path / f"cut{kept}"
        shutil.copytree(tmp_path / "whole", copy)
        (copy / "events.jsonl").write_bytes(b"".join(lines[:kept]))
        steps = MadeUpSteps()
        again, outcome = run(copy, steps=steps)
        assert outcome.reason is EndReason.BUDGET
        rows, _ = dataset(again)
        assert rows == expected[0]
        known = {e.item for e in again.store.events()[:kept] if isinstance(e, Labelled) and e.round == 0}
        assert not {f"label-r0000-{item:04d}" for item in known} & set(steps.names)
        assert len([e for e in again.store.events() if isinstance(e, Labelled)]) == len(labelled)
        shutil.rmtree(copy)


def test_walkers_go_on_with_the_next_model_and_slots_keep_their_temperatures(tmp_path):
    seen: list[WalkTask] = []

    def watch(task):
        if isinstance(task, WalkTask):
            seen.append(task)
        return carry_out(task)

    campaign, _ = run(tmp_path / "c", steps=MadeUpSteps(watch))
    second = [task for task in seen if task.round == 2]
    assert [task.temperatures_K for task in second] == [(300.0, 500.0), (700.0, 900.0), (300.0, 500.0)]
    assert all(walker.age == 10 for task in second for walker in read_walkers(task.resume))
    assert {task.model.version for task in second} == {2}
    last = campaign.store.state().walkers[2]
    assert read_walkers(campaign.store.absolute(last.walkers))[0].age == 10 * 5


def test_new_walkers_start_from_the_newest_labels_of_each_system(tmp_path):
    seen: dict[int, WalkTask] = {}

    def watch(task):
        if isinstance(task, WalkTask):
            seen[task.round] = task
        return carry_out(task)

    campaign, _ = run(tmp_path / "c", steps=MadeUpSteps(watch))
    labels = campaign.store.labels(campaign.store.state())
    for number, task in seen.items():
        newest = {
            system: max(x.round for x in labels if x.frame.system == system and x.round < number)
            for system in ("a", "b")
        }
        expected = {x.frame.identity for x in labels if x.round == newest[x.frame.system]}
        assert {start.frame.identity for start in read_labels(task.starts)} == expected


def test_fresh_labels_are_those_the_parent_has_not_seen(tmp_path):
    seen: list[TrainTask] = []

    def watch(task):
        if isinstance(task, TrainTask):
            seen.append(task)
        return carry_out(task)

    campaign, _ = run(tmp_path / "c", steps=MadeUpSteps(watch))
    labels = campaign.store.labels(campaign.store.state())
    assert seen[0].fresh == ()
    for number, task in enumerate(seen[1:], start=1):
        assert task.fresh == tuple(x.frame.identity for x in labels if x.round == number)
        assert task.parent is not None
        assert task.parent.version == task.version - 1


def test_failed_labels_count_are_kept_and_are_not_asked_for_again(tmp_path):
    def flaky(task):
        if isinstance(task, LabelTask):
            Path(task.scratch).mkdir(parents=True)
            if task.item % 4 == 3:
                return failed_label(task)
        return carry_out(task)

    steps = MadeUpSteps(flaky)
    campaign, outcome = run(tmp_path / "c", steps=steps)
    state = campaign.store.state()
    assert outcome.reason is EndReason.BUDGET
    failures = [event for event in campaign.store.reading() if isinstance(event, LabelFailed)]
    assert len(failures) == state.failed >= 6
    assert len(labels_of(campaign)) + len(failures) == state.spent == 30
    assert sum(row.round == 0 for row in labels_of(campaign)) >= 10
    assert len(steps.names) == len(set(steps.names))
    left = sorted(path.name for path in (tmp_path / "c" / "scratch").iterdir())
    assert left == sorted(Path(row.scratch).name for row in failures)


def test_when_all_first_labels_fail_the_reason_is_told(tmp_path):
    steps = MadeUpSteps(lambda task: failed_label(task, "SCF not converged"))
    with pytest.raises(TaskError, match="SCF not converged"):
        run(tmp_path / "c", steps=steps)
    assert len(steps.names) == 10


def test_a_lost_worker_costs_one_label_and_not_the_campaign(tmp_path):
    def lost(task):
        if isinstance(task, LabelTask) and task.item == 2 and task.round == 1:
            raise LostWorkerRuntimeError
        return carry_out(task)

    class LostWorkerRuntimeError(RuntimeError, LostWorkerError):
        def __init__(self):
            RuntimeError.__init__(self)
            LostWorkerError.__init__(self, "the worker was killed.", "")

    campaign, outcome = run(tmp_path / "c", steps=MadeUpSteps(lost))
    (failure,) = (event for event in campaign.store.reading() if isinstance(event, LabelFailed))
    assert "killed" in failure.reason
    assert outcome.reason is EndReason.BUDGET


@pytest.mark.parametrize("kind", [WalkTask, TrainTask, LabelTask])
def test_a_bug_in_a_task_stops_the_campaign_and_the_next_run_goes_on(tmp_path, plain, kind):
    def broken(task):
        if isinstance(task, kind) and (task.version if kind is TrainTask else task.round) == 2:
            raise RuntimeError("a bug")
        return carry_out(task)

    with pytest.raises(TaskError, match="a bug"):
        run(tmp_path / "c", steps=MadeUpSteps(broken))
    campaign, outcome = run(tmp_path / "c")
    assert outcome.reason is EndReason.BUDGET
    assert dataset(campaign) == plain


def test_a_failed_training_is_told_with_its_reason(tmp_path):
    def broken(task):
        if isinstance(task, TrainTask):
            result = train(task)
            return type(result)(
                **{**{name: getattr(result, name) for name in result.__dataclass_fields__}, "status": Status.FAILED}
                | {"reason": "loss is NaN", "file": None}
            )
        return carry_out(task)

    with pytest.raises(TaskError, match=r"train-v0001 failed: loss is NaN"):
        run(tmp_path / "c", steps=MadeUpSteps(broken))


def test_three_rounds_without_anything_new_end_the_campaign(tmp_path):
    def dry(task):
        result = carry_out(task)
        if isinstance(result, SelectResult) and task.round > 1:
            return type(result)(**{**{name: getattr(result, name) for name in result.__dataclass_fields__}, "count": 0})
        return result

    campaign, outcome = run(tmp_path / "c", steps=MadeUpSteps(dry))
    assert outcome.reason is EndReason.NOTHING_NEW
    assert campaign.store.state().round == 5
    assert len(campaign.store.state().models) == 2


def test_the_target_must_hold_several_rounds_in_a_row(tmp_path):
    # the made-up error of version v is 1 / v
    chosen = settings(stop__target_force_eV_per_A=0.4, stop__consecutive=2)
    campaign, outcome = run(tmp_path / "c", chosen)
    assert outcome.reason is EndReason.TARGET
    assert [m.version for m in campaign.store.state().models] == [1, 2, 3, 4]


def test_rounds_can_be_limited(tmp_path):
    campaign, outcome = run(tmp_path / "c", settings(stop__max_rounds=2))
    assert outcome.reason is EndReason.MAX_ROUNDS
    assert campaign.store.state().models[-1].round == 2


def test_raising_the_budget_goes_on_and_equals_one_long_campaign(tmp_path, plain):
    run(tmp_path / "c", settings(labels__budget=22))
    campaign, _ = run(tmp_path / "c")
    assert dataset(campaign) == plain


def test_running_a_finished_campaign_again_changes_nothing(tmp_path):
    campaign, first = run(tmp_path / "c")
    before = campaign.store.log_path.read_bytes()
    _, again = run(tmp_path / "c")
    assert again.reason is first.reason
    assert campaign.store.log_path.read_bytes() == before


def test_other_science_is_refused_and_a_new_budget_or_site_is_not(tmp_path):
    run(tmp_path / "c", settings(stop__max_rounds=1))
    with pytest.raises(SettingsError, match=r"potential\.cutoff_A"):
        run(tmp_path / "c", settings(potential__cutoff_A=4.5))
    Campaign.create_or_open(settings(site__label_slots=3, labels__budget=99), systems(), tmp_path / "c")
    with pytest.raises(SettingsError, match="start structures"):
        Campaign.create_or_open(settings(), {"a": systems()["a"]}, tmp_path / "c")


def test_a_soft_stop_records_what_is_in_flight_and_hands_out_nothing_new(tmp_path, plain):
    steps = MadeUpSteps()
    asked = iter([False, False, True])
    campaign, outcome = run(tmp_path / "c", steps=steps, stop_requested=lambda: next(asked, True))
    assert outcome.reason is EndReason.INTERRUPTED
    again, end = run(tmp_path / "c")
    assert end.reason is EndReason.BUDGET
    assert dataset(again) == plain
    assert isinstance(campaign.store.events()[-1], Stopped)


def test_wall_time_counts_over_all_runs(tmp_path, monkeypatch):
    clock = iter(range(0, 10**6, 50))
    monkeypatch.setattr("pipeline.campaign.time.time", lambda: float(next(clock)))
    campaign, outcome = run(tmp_path / "c", settings(stop__max_wall_h=0.5))
    assert outcome.reason is EndReason.MAX_WALL
    assert run(tmp_path / "c", settings(stop__max_wall_h=0.5))[1].reason is EndReason.MAX_WALL
    _, more = run(tmp_path / "c", settings(stop__max_wall_h=2.0))
    assert more.reason in (EndReason.BUDGET, EndReason.MAX_WALL)
    assert campaign.store.state().labelled > outcome.state.labelled


def test_a_second_driver_is_refused_while_the_first_one_runs(tmp_path):
    campaign, _ = run(tmp_path / "c", settings(stop__max_rounds=1))
    with DriverLock(campaign.store.lock_path), pytest.raises(StoreError, match="pid"):
        run(tmp_path / "c")


def test_every_event_is_on_disk_before_it_is_told(tmp_path):
    campaign = Campaign.create_or_open(settings(), systems(), tmp_path / "c")
    told = []

    def check(event):
        told.append(event)
        assert campaign.store.events()[-1].kind is not None
        assert event in campaign.store.events()

    campaign.run(MadeUpSteps(), on_event=check)
    assert tuple(told) == campaign.store.events()[1:]
    assert {type(event) for event in told} >= {Submitted, Labelled, Trained, Stopped}
    assert LabelFailed not in {type(event) for event in told}


def test_the_directory_can_be_moved(tmp_path, plain):
    run(tmp_path / "c", settings(labels__budget=22))
    (tmp_path / "c").rename(tmp_path / "elsewhere")
    campaign, _ = run(tmp_path / "elsewhere")
    assert dataset(campaign)[0] == plain[0]
