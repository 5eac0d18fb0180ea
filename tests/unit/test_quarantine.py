"""Labels that failed for good: listed, tried again, never made twice, whenever the driver is killed."""

import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from fabricated import MadeUpSteps, carry_out, failed_label, settings, systems
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from test_state import BEGIN, FILE, label_failed, labelled, trained, walked

from pipeline.campaign import Campaign
from pipeline.errors import StoreError
from pipeline.events import EndReason, Gathered, LabelFailed, Labelled, Requeued, Resumed, Selected, Trained, Work
from pipeline.fold import apply, fold
from pipeline.label_directory import TRIES
from pipeline.lock import DriverLock
from pipeline.policy import decide
from pipeline.quarantine import quarantined, requeue
from pipeline.records import Cause, LabelTask, Measure, TrainTask, Try
from pipeline.shards import read_labels
from pipeline.store import Store

NEVER_PAUSED = {"labels__recovery": {"pause_share": 1.0}}
TRY = Try(cause=Cause.CRASH, reason="x", measures=(Measure.FRESH_START,), wall_s=1.0, core_s=2.0, directory="try-1")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("pipeline.driver.POLL_S", 0.001)
    monkeypatch.setattr("pipeline.driver.GATHER_S", 0.0005)


def run(directory: Path, steps, **changes):
    campaign = Campaign.create_or_open(settings(**{**NEVER_PAUSED, **changes}), systems(), directory)
    return campaign, campaign.run(steps)


def failing_once(store: Store, items: set[int], cause: Cause = Cause.NOT_CONVERGED):
    """Labels with these items, of every round, fail as long as the log holds no failure of theirs."""

    def do(task):
        if isinstance(task, LabelTask) and task.item in items:
            before = [e for e in store.reading() if isinstance(e, LabelFailed) and e.identity == task.frame.identity]
            if not before:
                Path(task.scratch).mkdir(parents=True, exist_ok=True)
                (Path(task.scratch) / TRIES).write_text("{}")
                return replace(failed_label(task), cause=cause, tries=(TRY,), core_s=2.0)
        return carry_out(task)

    return MadeUpSteps(do)


def events_of(campaign: Campaign, kind):
    return [event for event in campaign.store.reading() if isinstance(event, kind)]


def dataset(campaign: Campaign):
    """All data in the order in which models see them, and the models."""
    state = campaign.store.state()
    labels = [(x.frame.identity, x.energy, x.split, x.round) for x in campaign.store.labels(state)]
    return labels, [(m.version, m.file.sha256, m.labels) for m in state.models]


def twice(directory: Path, items: set[int], **first):
    """A campaign some of whose labels fail, which are then tried again."""
    store = Store(directory)
    _, outcome = run(directory, failing_once(store, items), **first)
    spent = outcome.state.spent
    event = requeue(store, None, None)
    assert store.state().spent == spent
    steps = failing_once(store, items)
    return (*run(directory, steps), event, steps)


def test_quarantined_labels_are_listed_with_cause_cost_and_directory_until_they_succeed(tmp_path):
    store = Store(tmp_path / "c")
    run(tmp_path / "c", failing_once(store, {2}), stop__max_rounds=1)
    first, second = quarantined(store.reading())
    assert (first.task, second.task) == ("label-r0000-0002", "label-r0001-0002")
    assert (first.round, first.cause, first.reason, first.core_s) == (0, Cause.NOT_CONVERGED, "made to fail", 2.0)
    assert first.tries == (TRY,)
    assert (store.root / first.directory / TRIES).is_file()
    assert first.picks is None
    assert second.picks is not None
    assert not first.requeued
    requeue(store, ["label-r0001-0002"], None)
    assert [row.requeued for row in quarantined(store.reading())] == [False, True]
    assert not (store.root / second.directory / TRIES).exists(), "its tries begin anew"
    assert (store.root / second.directory / "tries-1.json").is_file(), "nothing is removed"
    run(tmp_path / "c", failing_once(store, {2}), stop__max_rounds=1)
    assert [row.task for row in quarantined(store.reading())] == ["label-r0000-0002"]
    assert not (store.root / second.directory).exists()


def test_what_to_try_again_is_chosen_by_name_and_cause(tmp_path):
    store = Store(tmp_path / "c")
    run(tmp_path / "c", failing_once(store, {2, 3}), stop__max_rounds=1)
    with pytest.raises(StoreError, match="label-r0007-0000 is not quarantined"):
        requeue(store, ["label-r0000-0002", "label-r0007-0000"], None)
    with pytest.raises(StoreError, match="no quarantined label"):
        requeue(store, None, [Cause.CRASH])
    with DriverLock(store.lock_path), pytest.raises(StoreError, match="another driver"):
        requeue(store, None, None)
    before = store.log_path.read_bytes()
    assert len(requeue(store, None, [Cause.NOT_CONVERGED]).failures) == 4
    assert store.log_path.read_bytes().startswith(before)
    with pytest.raises(StoreError, match="no quarantined label"):
        requeue(store, None, None)  # they wait for the next run already


def test_labels_tried_again_keep_name_number_and_split_and_join_the_data_of_the_present_round(tmp_path):
    seen: list[TrainTask] = []
    store = Store(tmp_path / "c")
    campaign, _ = run(tmp_path / "c", failing_once(store, {1, 3}), stop__max_rounds=1)
    failed = {row.number: row for row in events_of(campaign, LabelFailed)}
    again = requeue(store, None, None)
    steps = failing_once(store, set())
    do = steps.carry_out
    steps.carry_out = lambda task: (seen.append(task) if isinstance(task, TrainTask) else None, do(task))[1]
    campaign, outcome = run(tmp_path / "c", steps, stop__max_rounds=2)
    assert outcome.state.failed == 0
    names = [row.task for row in quarantined([*again_events(failed.values())])]
    assert steps.names[: len(names)] == sorted(names), "before anything else"
    made = {row.number: row for row in events_of(campaign, Labelled)}
    assert len(again.failures) == len(failed) == 4
    for number, failure in failed.items():
        assert (made[number].identity, made[number].item, made[number].round) == (
            failure.identity,
            failure.item,
            failure.round,
        )
    late = [event for event in events_of(campaign, Gathered) if event.round == 2]
    gathered = [label.frame.identity for label in read_labels(campaign.store.absolute(late[0].file))]
    assert gathered[:4] == [failed[number].identity for number in sorted(failed)]
    starts = {row.identity for row in failed.values() if row.round == 0}
    assert set(seen[0].fresh) == set(gathered) - starts, "a model is judged on selected structures"


def again_events(failures):
    return [replace(failure, time=0.0) for failure in failures]


def test_a_finished_campaign_learns_from_labels_tried_again_and_ends_as_before(tmp_path):
    campaign, outcome, event, steps = twice(tmp_path / "c", {2})
    assert outcome.reason is EndReason.BUDGET
    assert outcome.state.spent == outcome.state.labelled == 30
    assert len([name for name in steps.names if name.startswith("label")]) == len(event.failures)
    models = events_of(campaign, Trained)
    assert models[-1].labels == 30
    assert models[-2].labels == 30 - len(event.failures)
    assert not [name for name in steps.names if name.startswith(("walk", "select"))]


def test_a_label_that_fails_again_is_quarantined_again_and_counts_once(tmp_path):
    store = Store(tmp_path / "c")
    steps = MadeUpSteps(
        lambda task: failed_label(task) if isinstance(task, LabelTask) and task.item == 2 else carry_out(task)
    )
    _, before = run(tmp_path / "c", steps)
    requeue(store, None, None)
    _, after = run(tmp_path / "c", steps)
    assert (after.state.spent, after.state.failed) == (before.state.spent, before.state.failed)
    assert len(quarantined(store.reading())) == after.state.failed
    assert len(after.state.models) == len(before.state.models), "nothing new to train on"


def test_labels_of_a_round_that_failed_as_a_whole_make_a_model_when_they_succeed_at_last(tmp_path):
    store = Store(tmp_path / "c")
    steps = MadeUpSteps(
        lambda task: failed_label(task) if isinstance(task, LabelTask) and task.round else carry_out(task)
    )
    _, outcome = run(tmp_path / "c", steps)
    assert outcome.reason is EndReason.NOTHING_NEW
    assert (outcome.state.labelled, outcome.state.failed, len(outcome.state.models)) == (10, 12, 1)
    requeue(store, None, None)
    campaign, outcome = run(tmp_path / "c", MadeUpSteps())
    assert outcome.reason is EndReason.BUDGET
    assert outcome.state.failed == 0
    first = next(event for event in events_of(campaign, Trained) if event.version == 2)
    assert (first.round, first.labels) == (4, 10 + 12 + 4), "they join the next round's data"


@pytest.mark.parametrize("first", [{}, {"stop__max_rounds": 2}])
def test_killed_after_any_event_a_campaign_with_labels_tried_again_ends_the_same(tmp_path, first):
    items = {1, 3, 7}
    whole, _, _, _ = twice(tmp_path / "whole", items, **first)
    expected = dataset(whole)
    lines = whole.store.log_path.read_bytes().splitlines(keepends=True)
    events = whole.store.events()
    (place,) = [k for k, event in enumerate(events) if isinstance(event, Requeued)]
    around = [*range(place, min(place + 7, len(lines)))]
    for kept in sorted({*range(2, len(lines), 29), *around}):
        copy = tmp_path / "cut"
        shutil.copytree(tmp_path / "whole", copy)
        (copy / "events.jsonl").write_bytes(b"".join(lines[:kept]))
        store = Store(copy)
        if kept <= place:
            run(copy, failing_once(store, items), **first)
            requeue(store, None, None)
        again, outcome = run(copy, failing_once(store, items))
        assert outcome.reason is EndReason.BUDGET
        assert dataset(again)[0] == expected[0], kept
        counts = Counter((event.round, event.item) for event in again.store.reading() if isinstance(event, Labelled))
        assert set(counts.values()) == {1}
        shutil.rmtree(copy)


class MadeUpCampaign:
    """Events as a driver, workers and a person might make them, at random."""

    def __init__(self, seed: int, failing: float) -> None:
        self.chosen = settings(**NEVER_PAUSED, labels__budget=60, selection__batch=8, stop__max_rounds=6)
        self.random, self.failing = random.Random(seed), failing
        self.events, self.state, self.in_flight = [BEGIN], fold([BEGIN]), {}

    def tell(self, event) -> None:
        spent = self.state.spent
        self.events.append(event)
        self.state = apply(self.state, event)
        assert spent <= self.state.spent <= 60

    def decide(self):
        return decide(self.state, self.chosen, now=2.0, in_flight=self.in_flight.keys())

    def take_up(self) -> None:
        """A new driver, and perhaps labels that are tried again."""
        self.in_flight.clear()
        rows = [row for row in quarantined(self.events) if not row.requeued and self.random.random() < 0.7]
        if rows:
            failures, picks = tuple(row.failure for row in rows), tuple(row.picks for row in rows)
            self.tell(Requeued(time=1.0, failures=failures, picks=picks))
        self.tell(Resumed(time=1.0, settings=BEGIN.settings, host="h", pid=1))

    def go_on(self, decision) -> None:
        """One event: the labels of a round are gathered, or one of the tasks ends."""
        if decision.gather:
            assert not self.in_flight
            self.tell(Gathered(time=1.0, round=self.state.round, file=FILE, count=len(self.state.round_labels)))
            return
        self.in_flight.update({request.name: request for request in decision.requests})
        self.tell(self.end_of(self.in_flight.pop(self.random.choice(sorted(self.in_flight)))))

    def end_of(self, request):
        match request.work:
            case Work.WALK:
                return replace(walked(request.item), round=request.round)
            case Work.SELECT:
                count = self.random.choice([0, min(8, 60 - self.state.spent)])
                return Selected(time=1.0, round=request.round, picks=FILE, count=count, dropped={}, timing=None)
            case Work.TRAIN:
                return replace(trained(request.round, self.state.labelled), version=request.item)
            case Work.LABEL:
                retry = self.state.retry_of(request.round, request.item)
                number = retry.failure.number if retry else self.state.first_number + request.item
                made = label_failed if self.random.random() < self.failing else labelled
                return made(request.round, request.item, number)

    def run(self, killed: float, most: int = 12):
        """To the end, which is taken up a few times as well."""
        while True:
            decision = self.decide()
            most -= (wanted := decision.end is not None or self.random.random() < killed)
            if decision.end is not None and most <= 0:
                return decision.end
            if wanted and most > 0:
                self.take_up()
            elif decision.end is None:
                self.go_on(decision)


@effort(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32), failing=st.floats(0.0, 0.6), killed=st.floats(0.0, 0.1))
def test_whatever_fails_is_killed_or_tried_again_every_label_counts_once(seed, failing, killed):
    campaign = MadeUpCampaign(seed, failing)
    end = campaign.run(killed)
    state, events = campaign.state, campaign.events
    assert state == fold(events)
    assert not state.retries
    done = [event for event in events if isinstance(event, Labelled)]
    assert len({(event.round, event.item) for event in done}) == len({event.number for event in done}) == len(done)
    assert len(done) == state.labelled
    assert len(quarantined(events)) == state.failed
    labels = 0
    for event in events:  # every model knows all labels that came before it
        labels += isinstance(event, Labelled)
        assert not isinstance(event, Trained) or event.labels == labels
    if end.reason is not EndReason.LABELS_FAILED:
        assert state.models[-1].labels == state.labelled
        assert sum(event.count for event in state.gathered) == state.labelled
