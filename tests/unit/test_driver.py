"""The loop with machines that lose tasks, wait for hours, complain, or finish many things at once."""

import random
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from ase.build import bulk
from fabricated import MadeUpSteps, carry_out, settings, systems

from pipeline.campaign import Campaign
from pipeline.errors import DiskFullError, LostWorkerError, TaskError
from pipeline.events import EndReason, Labelled, Noticed, Resumed, Stopped, Submitted, TaskFailed, TaskLost, Walked
from pipeline.frames import Frame
from pipeline.inline import InlineSteps
from pipeline.records import LabelTask, Remark, SelectTask, TrainTask, WalkTask
from pipeline.settings.campaign import CampaignSettings
from pipeline.steps import Notice
from pipeline.store import Store


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("pipeline.driver.POLL_S", 0.01)


def run(directory: Path, steps, chosen=None, **options):
    campaign = Campaign.create_or_open(chosen or settings(labels__budget=18), systems(), directory)
    return campaign, campaign.run(steps, **options)


def dataset(campaign: Campaign):
    state = campaign.store.state()
    labels = [(x.frame.identity, x.energy, x.split, x.round) for x in campaign.store.labels(state)]
    return labels, [(m.version, m.file.sha256, m.labels) for m in state.models]


def events_of(campaign: Campaign, kind):
    return [event for event in campaign.store.reading() if isinstance(event, kind)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return dataset(run(tmp_path_factory.mktemp("plain") / "c", MadeUpSteps())[0])


class Fragile(MadeUpSteps):
    """Loses the workers of some tasks so many times."""

    def __init__(self, losses: dict[str, int]) -> None:
        super().__init__()
        self.losses = losses

    def _end(self, future, task) -> None:
        if self.losses.get(task.task, 0) > 0:
            self.losses[task.task] -= 1
            future.set_exception(LostWorkerError("its worker died 3 times.", "Give it more memory."))
        else:
            super()._end(future, task)


class Stuck(MadeUpSteps):
    """A queue in which tasks of one kind wait for ever.

    ``since`` is when the first of them was handed out, and ``asked`` the last time the loop asked for a stop after that.
    """

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind = kind
        self.since = self.asked = 0.0

    def _end(self, future, task) -> None:
        if not isinstance(task, self.kind):
            super()._end(future, task)
        elif not self.since:
            self.since = time.monotonic()

    def stuck_for(self, seconds: float) -> bool:
        if self.since:
            self.asked = time.monotonic()
        return self.asked - self.since > seconds


class Broken(Fragile):
    """Loses one walk again and again, while the others wait for ever."""

    def _end(self, future, task) -> None:
        if task.task in self.losses or not isinstance(task, WalkTask):
            super()._end(future, task)


class Complaining(MadeUpSteps):
    """Notices something at every wake-up."""

    def __init__(self, notices) -> None:
        super().__init__()
        self.given = iter(notices)

    def notices(self):
        return next(self.given, ())


class Threads:
    """Many workers that finish at once, in any order."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.pool, self.random, self.most, self.now = pool, random.Random(1), 0, 0
        self.lock = threading.Lock()

    def capacity(self, work) -> int:
        return 7

    def notices(self):
        return ()

    def submit(self, task, priority=0) -> Future:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        return self.pool.submit(self.work, task, self.random.random() * 0.005)

    def work(self, task, seconds):
        time.sleep(seconds)
        with self.lock:
            self.now -= 1
        return carry_out(task)


def test_tasks_that_end_in_other_threads_are_all_recorded_once(tmp_path, plain):
    with ThreadPoolExecutor(7) as pool:
        steps = Threads(pool)
        campaign, outcome = run(tmp_path / "c", steps)
    assert dataset(campaign) == plain
    assert outcome.state == campaign.store.state()
    assert sorted(event.number for event in events_of(campaign, Labelled)) == list(range(18))
    assert 2 <= steps.most <= 7


def test_what_the_driver_knows_is_what_the_log_says_at_every_event(tmp_path):
    campaign = Campaign.create_or_open(settings(labels__budget=18), systems(), tmp_path / "c")
    steps = Fragile({"walk-r0001-0000-l00": 1, "train-v0002": 2})
    outcome = campaign.run(steps)
    assert outcome.state == campaign.store.state()
    assert len(events_of(campaign, TaskLost)) == 3


@pytest.mark.parametrize("name", ["walk-r0002-0001-l00", "select-r0002-0000", "train-v0001", "train-v0003"])
def test_a_task_whose_worker_was_lost_is_made_again_three_times(tmp_path, plain, name):
    campaign, outcome = run(tmp_path / "c", Fragile({name: 3}))
    assert outcome.reason is EndReason.BUDGET
    assert dataset(campaign) == plain
    lost = events_of(campaign, TaskLost)
    assert [event.task for event in lost] == [name] * 3
    assert lost[0].remedy == "Give it more memory."


def test_the_fourth_loss_of_a_task_stops_the_campaign_with_the_remedy_and_others_are_finished(tmp_path, plain):
    name = "walk-r0001-0001-l00"
    with pytest.raises(TaskError, match=f"{name} failed: its worker died 3 times. Give it more memory"):
        run(tmp_path / "c", Fragile({name: 4}))
    campaign, outcome = run(tmp_path / "c", Fragile({name: 3}))  # whoever starts it again gets as many tries again
    assert outcome.reason is EndReason.BUDGET
    assert dataset(campaign) == plain
    assert [event.task for event in events_of(campaign, TaskFailed)] == [name]
    assert len([event for event in events_of(campaign, Walked) if event.round == 1]) == 3


def test_a_failed_campaign_does_not_wait_for_tasks_that_wait_in_a_queue(tmp_path):
    chosen = settings(labels__budget=18, site__walk_task_s=0.3)
    with pytest.raises(TaskError, match="Give it more memory"):
        run(tmp_path / "c", Broken({"walk-r0001-0001-l00": 9}), chosen)


def test_losses_are_counted_over_drivers_that_were_stopped(tmp_path):
    name = "train-v0001"
    steps, count = Fragile({name: 9}), 0

    def stop() -> bool:
        nonlocal count
        count = steps.names.count(name)
        return count >= 2

    campaign, _ = run(tmp_path / "c", steps, stop_requested=stop)
    before = len(events_of(campaign, TaskLost))
    assert before >= 2
    with pytest.raises(TaskError, match="Give it more memory"):
        run(tmp_path / "c", Fragile({name: 9}))
    assert len(events_of(campaign, TaskLost)) == 3


def test_a_notice_becomes_one_event_however_often_it_comes(tmp_path):
    gone, full = Notice(text="job 7 was cancelled"), Notice(text="no space on n1", remedy="Free it.")
    campaign, _ = run(tmp_path / "c", Complaining([(gone,), (gone, full), (), (full, full, gone)]))
    noticed = events_of(campaign, Noticed)
    assert [(event.text, event.remedy) for event in noticed] == [(gone.text, ""), (full.text, "Free it.")]


def test_a_notice_is_told_again_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.driver.QUIET_S", 0.0)
    gone = Notice(text="job 7 was cancelled")
    campaign, _ = run(tmp_path / "c", Complaining([(gone,)] * 4))
    assert len(events_of(campaign, Noticed)) == 4


def test_what_workers_remark_is_noticed(tmp_path):
    def remarking(task):
        result = carry_out(task)
        remark = Remark(text="n1: the disk of the model cache is full", remedy="Free it.")
        return replace(result, remarks=(remark,)) if isinstance(task, WalkTask) else result

    campaign, _ = run(tmp_path / "c", MadeUpSteps(remarking))
    (noticed,) = events_of(campaign, Noticed)
    assert (noticed.text, noticed.remedy) == ("n1: the disk of the model cache is full", "Free it.")


@pytest.mark.parametrize("kind", [LabelTask, WalkTask, SelectTask, TrainTask])
def test_leaving_does_not_wait_and_the_next_run_asks_for_what_was_left(tmp_path, plain, kind):
    steps = Stuck(kind)
    campaign, outcome = run(tmp_path / "c", steps, leave_requested=lambda: steps.stuck_for(0.1))
    assert outcome.reason is EndReason.INTERRUPTED
    assert isinstance(list(campaign.store.reading())[-1], Stopped)
    left = steps.names[-1]
    again = MadeUpSteps()
    campaign, outcome = run(tmp_path / "c", again)
    assert outcome.reason is EndReason.BUDGET
    assert left in again.names
    assert dataset(campaign) == plain


def test_a_soft_stop_waits_for_what_is_in_flight(tmp_path):
    steps = Stuck(WalkTask)
    _, outcome = run(
        tmp_path / "c",
        steps,
        stop_requested=lambda: steps.stuck_for(0.0),
        leave_requested=lambda: steps.stuck_for(0.5),
    )
    assert outcome.reason is EndReason.INTERRUPTED
    assert steps.asked - steps.since >= 0.5


def test_the_wall_time_limit_holds_while_jobs_wait_in_the_queue_for_ever(tmp_path):
    chosen = settings(stop__max_wall_h=1.0 / 3600, site__walk_task_s=0.3)
    campaign, outcome = run(tmp_path / "c", Stuck(LabelTask), chosen)
    assert outcome.reason is EndReason.MAX_WALL
    (resumed, stopped) = events_of(campaign, Submitted)[0], events_of(campaign, Stopped)[0]
    assert stopped.time - resumed.time < 10
    assert not events_of(campaign, Resumed)


def test_many_labels_are_recorded_in_few_files(tmp_path):
    chosen = settings(labels__budget=400, labels__initial=400)
    campaign, _ = run(tmp_path / "c", MadeUpSteps(capacity=100), chosen)
    loose = {event.file.path for event in events_of(campaign, Labelled)}
    assert len(loose) <= 8
    assert len(campaign.store.labels(campaign.store.state())) == 400


COPPER = {
    "name": "small",
    "seed": 5,
    "systems": [{"name": "copper", "structures": ["unused.xyz"]}],
    "potential": {"cutoff_A": 3.5, "channels": 2, "gaussians": 4, "hidden": [16, 16]},
    "walkers": {
        "count": 4,
        "batch": 2,
        "segment_steps": 40,
        "store_every": 10,
        "enough": 4,
        "timestep_fs": 2.0,
        "temperatures_K": [300.0, 900.0],
        "stop": {"isolation_A": 3.5, "uncertainty_eV_per_A": 5.0},
    },
    "labels": {"reference": {"kind": "emt"}, "budget": 24, "initial": 8, "initial_rattle_A": 0.1},
    "selection": {"batch": 8},
    "training": {"epochs": 6, "warm_epochs": 4},
}


def test_a_campaign_is_the_same_bit_for_bit_however_its_walks_are_cut(tmp_path):
    starts = {"copper": (Frame.from_atoms(bulk("Cu", "fcc", a=3.61, cubic=True), system="copper"),)}
    found = []
    for name, seconds in (("whole", 600.0), ("cut", 1e-6)):
        chosen = CampaignSettings.model_validate({**COPPER, "site": {"kind": "inline", "walk_task_s": seconds}})
        campaign = Campaign.create_or_open(chosen, starts, tmp_path / name)
        with InlineSteps() as steps:
            assert campaign.run(steps).reason is EndReason.BUDGET
        legs = [event.leg for event in events_of(campaign, Walked)]
        stops = sum(sum(event.stops.values()) for event in events_of(campaign, Walked))
        found.append((dataset(campaign), max(legs), stops))
        # between two legs walkers are of use to the next leg alone
        kept = {path.name for path in (campaign.store.root / "shards").glob("walkers-*")}
        last = {(event.round, event.item): Path(event.walkers.path).name for event in events_of(campaign, Walked)}
        assert kept == set(last.values())
    assert found[0][0] == found[1][0]
    assert found[0][1] == 0
    assert found[1][1] >= 2
    assert found[0][2] == found[1][2] > 0


class Crowded(MadeUpSteps):
    """Some tasks find their disk full, once."""

    def __init__(self, names: set[str]) -> None:
        super().__init__()
        self.crowded = names

    def _end(self, future, task) -> None:
        if task.task in self.crowded:
            self.crowded.remove(task.task)
            future.set_exception(DiskFullError("/shared: cannot be written: No space left on device.", "Free space."))
        else:
            super()._end(future, task)


def fill_disk(monkeypatch, times: int, method: str) -> list[str]:
    """The campaign's disk takes nothing for so many tries of a method of the store."""
    real, tries = getattr(Store, method), []

    def full(self, *arguments):
        tries.append(method)
        if len(tries) <= times:
            raise DiskFullError("/shared: cannot be written: No space left on device.", "Free space.")
        return real(self, *arguments)

    monkeypatch.setattr(Store, method, full)
    monkeypatch.setattr("pipeline.driver.ROOM_S", 0.01)
    return tries


@pytest.mark.parametrize("method", ["put_labels", "publish_shard", "publish_model"])
def test_a_full_disk_is_waited_for_and_nothing_that_is_done_is_made_again(tmp_path, plain, monkeypatch, method):
    told = []
    fill_disk(monkeypatch, 3, method)
    steps = MadeUpSteps()
    campaign, _ = run(tmp_path / "c", steps, on_event=told.append)
    assert dataset(campaign) == plain
    assert len(steps.names) == len(set(steps.names)), "a task was made again"
    waiting, again = [event for event in told if isinstance(event, Noticed)]
    assert "waiting for space" in waiting.text
    assert waiting.remedy == "Free space."
    assert [event.text for event in events_of(campaign, Noticed)] == [again.text]


def test_a_task_whose_disk_was_full_is_made_again_when_there_is_room(tmp_path, plain, monkeypatch):
    tries = fill_disk(monkeypatch, 2, "check_room")
    campaign, _ = run(tmp_path / "c", Crowded({"label-r0000-0002", "walk-r0001-0000-l00", "train-v0001"}))
    assert dataset(campaign) == plain
    assert len(tries) == 5
    assert {event.task for event in events_of(campaign, TaskLost)} == {
        "label-r0000-0002",
        "walk-r0001-0000-l00",
        "train-v0001",
    }


def test_who_leaves_does_not_wait_for_space(tmp_path, monkeypatch):
    fill_disk(monkeypatch, 10**9, "put_labels")
    asked = iter([False] * 5)
    with pytest.raises(DiskFullError, match="No space left"):
        run(tmp_path / "c", MadeUpSteps(), leave_requested=lambda: next(asked, True))
