"""A streaming campaign with its files: made-up results in shuffled order, a few at a time; killed, stopped, taken up."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from fabricated import MadeUpSteps, carry_out, failed_label, settings, systems
from test_events import REPORT

from pipeline.campaign import Campaign, Outcome
from pipeline.errors import LostWorkerError, TaskError
from pipeline.events import (
    EndReason,
    Gathered,
    LabelFailed,
    Labelled,
    Rejected,
    Selected,
    Stopped,
    Submitted,
    TaskFailed,
    TaskLost,
    Trained,
    Walked,
    Work,
)
from pipeline.fold import fold
from pipeline.quarantine import quarantined, requeue
from pipeline.records import LabelTask, SelectTask, TrainTask, WalkTask
from pipeline.shards import read_candidates, read_labels, read_walkers
from pipeline.splits import split_in
from pipeline.streaming import kept_at_most

SLOTS = 4
STREAM = {
    "schedule": {"kind": "streaming", "pool": 20},
    "labels__budget": 36,
    "labels__recovery": {"pause_share": 1.0},
    "site": {"kind": "local_threads", "walk_slots": 2, "label_slots": SLOTS},
}


@pytest.fixture(autouse=True, scope="module")
def _quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.driver.POLL_S", 0.001)
        patch.setattr("pipeline.driver.GATHER_S", 0.0005)
        # only a machine that loses its power could tell
        patch.setattr("os.fsync", lambda _: None)
        yield


class Shuffled(MadeUpSteps):
    """Tasks end in random order; the workers of some are lost so many times."""

    def __init__(self, do=carry_out, order: int = 1, capacity: int = 100, losses: dict[str, int] | None = None) -> None:
        super().__init__(do, order, capacity)
        self.losses, self.tasks = losses or {}, []

    def submit(self, task, priority=0):
        self.tasks.append(task)
        self.priorities = (*getattr(self, "priorities", ()), (task.task, priority))
        return super().submit(task, priority)

    def _end(self, future, task) -> None:
        if self.losses.get(task.task, 0) > 0:
            self.losses[task.task] -= 1
            future.set_exception(LostWorkerError("its worker died 3 times.", "Give it more memory."))
        else:
            super()._end(future, task)

    def of(self, kind: type) -> list:
        return [task for task in self.tasks if isinstance(task, kind)]


def run(directory: Path, steps: Shuffled, stop=None, **changes):
    chosen = settings(**{**STREAM, **changes})
    campaign = Campaign.create_or_open(chosen, systems(), directory)

    def stop_requested() -> bool:
        steps.poll()
        return stop is not None and stop()

    return campaign, campaign.run(steps, stop_requested=stop_requested)


def events_of(campaign: Campaign, *kinds):
    return [event for event in campaign.store.reading() if isinstance(event, kinds)]


def check(campaign: Campaign, budget: int = 36, *, tidy: bool = True) -> None:
    """All is there once, and the driver's files are those of its events."""
    store, state = campaign.store, campaign.store.state()
    answered = events_of(campaign, Labelled, LabelFailed)
    assert {event.number for event in answered} == set(range(budget))
    assert len({event.identity for event in answered}) == budget
    assert state.spent == budget
    for event in events_of(campaign, Labelled):
        assert event.split is split_in(event.number, campaign.settings)
    labels = store.labels(state)
    done = {event.identity: event for event in events_of(campaign, Labelled)}
    assert {label.frame.identity for label in labels} == set(done)
    assert len(labels) == len(done)
    assert all(label.split is done[label.frame.identity].split for label in labels)
    walkers = {Path(walk.walkers.path).name for walk in state.walkers.values()}
    there = {path.name for path in (store.root / "shards").glob("walkers-*")}
    # with rounds the walkers of every round stay; a killed driver may leave those behind that it had replaced
    assert there == walkers if tidy else there >= walkers
    kept = {Path(event.scratch).name for event in events_of(campaign, LabelFailed)} - {
        f"label-r{e.round:04d}-{e.item:04d}" for e in done.values()
    }
    left = {path.name for path in (store.root / "scratch").iterdir()}
    assert {name for name in left if name.startswith("label")} <= kept
    assert not {name for name in left if name.startswith(("train", "select"))}


class Whole(NamedTuple):
    """A campaign from its beginning to its end.

    Attributes:
        ages: batch -> age of its walkers and version of their model whenever a task of it began.
    """

    campaign: Campaign
    outcome: Outcome
    steps: Shuffled
    ages: dict[int, list[tuple[int, int]]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, _quick):
    """A campaign that nobody disturbed."""

    def watched(task):
        if isinstance(task, WalkTask):
            age = read_walkers(task.resume)[0].age if task.resume is not None else 0
            ages.setdefault(task.item, []).append((age, task.model.version))
        return carry_out(task)

    ages: dict[int, list[tuple[int, int]]] = {}
    steps = Shuffled(watched, order=13, capacity=2)
    campaign, outcome = run(tmp_path_factory.mktemp("whole") / "c", steps)
    return Whole(campaign, outcome, steps, ages)


@pytest.mark.parametrize(("order", "capacity"), [(1, 1), (3, 100)])
def test_a_stream_spends_its_budget_in_any_order_and_knows_what_its_log_says(tmp_path, order, capacity):
    steps = Shuffled(order=order, capacity=capacity)
    campaign, outcome = run(tmp_path / "c", steps)
    assert outcome.reason is EndReason.BUDGET
    assert outcome.state == campaign.store.state()
    assert len(steps.names) == len(set(steps.names)), "a task was made twice"
    assert outcome.state.models[-1].labels == 36
    check(campaign)
    # an event that every one of the others must come after is on disk first: the log alone tells the same at every length
    events = campaign.store.events()
    assert fold(events[: len(events) // 2]).flow is not None


def test_tasks_of_a_stream_say_what_is_known(whole):
    campaign, steps = whole.campaign, whole.steps
    identities = {event.identity: event for event in events_of(campaign, Labelled)}
    selected = {event.identity for event in identities.values() if event.round > 0}
    gathered = [
        {label.frame.identity for label in read_labels(campaign.store.absolute(event.file))}
        for event in events_of(campaign, Gathered)
    ]
    trains = steps.of(TrainTask)
    assert len(trains) == len(gathered) >= 3
    for number, task in enumerate(trains):
        assert set(task.fresh) == (gathered[number] & selected if number else set()), "the parent has not seen them"
        assert task.parent is None or task.parent.version == task.version - 1
    picked = {
        (event.round, row.frame.identity) for event in events_of(campaign, Selected) for row in read(campaign, event)
    }
    for event in identities.values():
        assert event.round == 0 or (event.round, event.identity) in picked
    selects = steps.of(SelectTask)
    assert selects[0].pool is None
    assert any(task.pool is not None and task.waiting <= len(task.pool.rows) for task in selects)
    for task in selects:
        assert task.keep == kept_at_most(settings(**STREAM))
        assert sum(len(part.rows) for part in task.in_flight) <= SLOTS + 1
        assert task.known_eV_per_A == settings(**STREAM).known_eV_per_A
    priorities = dict(steps.priorities)
    labels = [task.task for task in steps.of(LabelTask)]
    assert all(priorities[name] == int(name[-4:]) + 1 for name in labels)
    assert min(priorities[task.task] for task in steps.of(WalkTask)) > max(priorities[name] for name in labels)


def test_walkers_go_on_under_newer_models_and_each_batch_in_order(whole):
    assert sorted(whole.ages) == [0, 1, 2], "all batches take turns"
    for legs in whole.ages.values():
        assert [age for age, _ in legs] == [10 * k for k in range(len(legs))]
        versions = [version for _, version in legs]
        assert versions == sorted(versions)
        assert len(set(versions)) >= 2


def read(campaign: Campaign, event: Selected):
    return [] if event.picks is None else read_candidates(campaign.store.absolute(event.picks))


def test_selections_see_every_candidate_until_it_is_asked_for_or_dropped(whole):
    campaign, outcome = whole.campaign, whole.outcome
    found = sum(event.count for event in events_of(campaign, Walked))
    asked = sum(event.round > 0 for event in events_of(campaign, Labelled))
    dropped = sum(sum(event.dropped.values()) for event in events_of(campaign, Selected))
    assert found == asked + dropped + outcome.state.flow.pool


def flaky(task):
    if isinstance(task, LabelTask):
        Path(task.scratch).mkdir(parents=True, exist_ok=True)
        if task.item % 4 == 3:
            return failed_label(task)
    return carry_out(task)


def test_labels_that_fail_are_kept_count_and_succeed_when_they_are_tried_again(tmp_path):
    campaign, outcome = run(tmp_path / "c", Shuffled(flaky))
    check(campaign)
    failed = outcome.state.failed
    assert failed >= 3
    frames = {(e.round, e.item): e.identity for e in events_of(campaign, LabelFailed)}
    assert len(requeue(campaign.store, None, None).failures) == failed
    steps = Shuffled()
    campaign, outcome = run(tmp_path / "c", steps)
    assert outcome.reason is EndReason.BUDGET
    assert outcome.state.failed == 0
    assert outcome.state.models[-1].labels == 36
    assert not [name for name in steps.names if name.startswith(("walk", "select"))]
    done = {(e.round, e.item): e.identity for e in events_of(campaign, Labelled)}
    assert frames.items() <= done.items()
    assert not quarantined(campaign.store.reading())
    check(campaign)


def test_lost_workers_cost_a_label_or_a_repetition_and_nothing_else(tmp_path):
    losses = {"label-r0000-0002": 1, "select-r0001-0000": 2, "train-v0002": 3, "walk-r0001-0001-l00": 1}
    steps = Shuffled(losses=losses)
    campaign, outcome = run(tmp_path / "c", steps)
    assert outcome.reason is EndReason.BUDGET
    assert [event.item for event in events_of(campaign, LabelFailed)] == [2]
    assert Counter(event.task for event in events_of(campaign, TaskLost)) == {
        "select-r0001-0000": 2,
        "train-v0002": 3,
        "walk-r0001-0001-l00": 1,
    }
    assert outcome.state == campaign.store.state()
    check(campaign)


@pytest.mark.parametrize("name", ["select-r0001-0000", "train-v0002"])
def test_the_fourth_loss_stops_a_stream_and_the_next_run_goes_on(tmp_path, name):
    with pytest.raises(TaskError, match=f"{name} failed: its worker died 3 times"):
        run(tmp_path / "c", Shuffled(losses={name: 4}))
    campaign, outcome = run(tmp_path / "c", Shuffled(losses={name: 3}))
    assert outcome.reason is EndReason.BUDGET
    assert len(events_of(campaign, TaskFailed)) == 1
    check(campaign)


@pytest.mark.parametrize(("schedule", "number"), [(STREAM["schedule"], 6), ("rounds", 2)])
def test_a_refused_model_is_never_published_and_what_it_learned_stays_fresh(tmp_path, schedule, number):
    def strict(task):
        result = carry_out(task)
        refused = isinstance(task, TrainTask) and task.version == number
        return replace(result, gate=REPORT) if refused else result

    steps = Shuffled(strict)
    campaign, outcome = run(tmp_path / "c", steps, schedule=schedule)
    assert outcome.reason is EndReason.BUDGET
    assert [(event.version, event.attempt) for event in events_of(campaign, Rejected)] == [(number, 0), (number, 1)]
    assert [model.version for model in outcome.state.models[:number]] == [*range(1, number), number + 1]
    first, again, after = [task for task in steps.of(TrainTask) if task.version in (number, number + 1)]
    assert (first.attempt, again.attempt, after.attempt) == (0, 1, 0)
    assert first.fresh == again.fresh
    assert set(first.fresh) < set(after.fresh)
    assert first.parent == again.parent == after.parent
    assert after.parent.version == number - 1
    assert not list((campaign.store.root / "models").glob(f"*{number:04d}*"))
    assert number not in {task.model.version for task in steps.of(WalkTask)}
    assert outcome.state.models[-1].labels == 36
    assert outcome.state == campaign.store.state()
    check(campaign, tidy=schedule != "rounds")


class Killed(BaseException):
    """What no part of a driver catches."""


def test_killed_at_any_event_it_ends_with_everything_once(tmp_path):
    """Again and again: what is on disk when the log holds one event more, and nothing later."""
    directory, kills, left = tmp_path / "c", 0, random.Random(1)
    while True:
        until = left.randint(1, 40)

        def kill(event) -> None:
            nonlocal until
            until -= 1
            if not until:
                raise Killed

        steps = Shuffled(flaky, order=kills)
        campaign = Campaign.create_or_open(settings(**STREAM), systems(), directory)
        before = {f"label-r{e.round:04d}-{e.item:04d}" for e in events_of(campaign, Labelled, LabelFailed)}
        try:
            outcome = campaign.run(steps, stop_requested=steps.poll, on_event=kill)
        except Killed:
            kills += 1
        else:
            break
        finally:
            assert not before & set(steps.names), "labelled twice"
    assert kills >= 5
    assert outcome.reason is EndReason.BUDGET
    assert outcome.state == campaign.store.state()
    check(campaign, tidy=False)


def test_a_soft_stop_records_what_is_in_flight_and_the_next_run_goes_on(tmp_path):
    steps = Shuffled(order=7)
    campaign, outcome = run(tmp_path / "c", steps, stop=lambda: len(steps.names) > 40)
    assert outcome.reason is EndReason.INTERRUPTED
    assert isinstance(campaign.store.events()[-1], Stopped)
    asked = {name for event in events_of(campaign, Submitted) if event.work is Work.LABEL for name in event.tasks}
    begun = {task.task for task in steps.of(LabelTask)}
    done = {f"label-r{e.round:04d}-{e.item:04d}" for e in events_of(campaign, Labelled)}
    assert begun <= done <= asked
    again, outcome = run(tmp_path / "c", Shuffled(order=8))
    assert outcome.reason is EndReason.BUDGET
    check(again)


def test_a_raised_budget_goes_on_and_a_finished_stream_is_left_alone(tmp_path):
    campaign, first = run(tmp_path / "c", Shuffled(order=9))
    before = campaign.store.log_path.read_bytes()
    assert run(tmp_path / "c", Shuffled())[1].reason is first.reason
    assert campaign.store.log_path.read_bytes() == before
    steps = Shuffled(order=10)
    campaign, outcome = run(tmp_path / "c", steps, labels__budget=50)
    assert outcome.reason is EndReason.BUDGET
    check(campaign, 50)
    assert not [task for task in steps.of(LabelTask) if task.round == 0]


def test_labels_and_walkers_follow_the_shares_that_systems_are_given(tmp_path):
    two = [{"name": "a", "structures": ["a.xyz"], "share": 3.0}, {"name": "b", "structures": ["b.xyz"], "share": 1.0}]
    steps = Shuffled(order=11)
    run(tmp_path / "c", steps, systems=two, labels__budget=24)
    assert {tuple(sorted(task.shares.items())) for task in steps.of(WalkTask)} == {(("a", 0.75), ("b", 0.25))}
    for task in steps.of(SelectTask):
        assert task.shares == {"a": 0.75, "b": 0.25}
        assert sum(task.labelled.values()) >= 5


def test_more_walkers_start_where_models_are_less_certain(tmp_path):
    def unsure_of_b(task):
        result = carry_out(task)
        if isinstance(task, WalkTask):
            bounds = {"a": 0.1, "b": 0.3}
            found = {name: replace(one, mean_bound=bounds[name]) for name, one in result.found.items()}
            return replace(result, found=found)
        return result

    steps = Shuffled(unsure_of_b, order=12)
    run(tmp_path / "c", steps, labels__budget=24)
    shares = [task.shares for task in steps.of(WalkTask)]
    assert shares[0] == {}
    assert shares[-1] == pytest.approx({"a": 0.25, "b": 0.75})


def test_models_are_published_while_labels_are_in_flight(whole):
    """The point of it all: no barrier."""
    events = whole.campaign.store.events()
    open_at_model = [len(fold(events[:k]).flow.open) for k, e in enumerate(events) if isinstance(e, Trained)]
    assert max(open_at_model) >= 1
