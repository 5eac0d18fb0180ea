"""A simulated campaign: the real policy and loop, nothing lost, the times that pencil and paper give."""

import itertools
import math
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from random import Random
from statistics import fmean

import pytest
from fabricated import MadeUpSteps, settings, systems
from typer.testing import CliRunner

from apps.cli.application import application
from apps.cli.simulate import _scheduled
from pipeline.campaign import Campaign
from pipeline.errors import SettingsError
from pipeline.estimate import Costs
from pipeline.events import EndReason, Idled, LabelFailed, Labelled, Submitted, TaskLost, Trained, Walked, Work
from pipeline.simulation.campaign import simulate
from pipeline.simulation.clock import VirtualClock
from pipeline.simulation.durations import Around, Durations, EvenSegments, Handling, Near, Segment, always
from pipeline.simulation.measured import MeasuredSegments, measured
from pipeline.simulation.sizing import Machine, best_split, machine_of, one_more, sized

EXACT = Durations(
    walk=EvenSegments(seconds=Around(mean_s=100.0, sigma=0.0), candidates=2),
    label=Around(mean_s=30.0, sigma=0.0),
    select=Around(mean_s=5.0, sigma=0.0),
    train=Around(mean_s=60.0, sigma=0.0),
    known=always(0.0),
)
SPREAD = replace(
    EXACT,
    walk=EvenSegments(seconds=Around(mean_s=100.0), candidates=10),
    label=Around(mean_s=30.0),
    known=always(0.5),
    stale=0.1,
    failed=0.03,
    lost=0.01,
    rejected=always(0.1),
    handling={Work.LABEL: Handling(first_s=0.5, start_s=0.5, report_s=0.2)},
)
LOCAL = {"kind": "local_htex", "walk_slots": 2, "label_slots": 3}


def job(blocks: int, **more: object) -> dict:
    return {"walltime": 7200, "drain": 900, "max_blocks": blocks, "cores_per_node": 8, "cores_per_worker": 4} | more


CLUSTER = {"kind": "slurm", "walk": job(2, gpus_per_node=2), "label": job(3)}


def events_of(chosen, durations=SPREAD):
    events = []
    report = simulate(chosen, durations, on_event=events.append)
    return events, report


@pytest.mark.parametrize("schedule", ["rounds", "streaming"])
@pytest.mark.parametrize("site", [LOCAL, CLUSTER], ids=["local", "cluster"])
def test_the_same_seed_gives_the_same_campaign_and_another_one_another(schedule, site):
    chosen = settings(schedule=schedule, site=site, labels__budget=60)
    first, again = events_of(chosen)[0], events_of(chosen)[0]
    other, _ = events_of(settings(schedule=schedule, site=site, labels__budget=60, seed=4))
    assert first == again
    assert first != other


@pytest.mark.parametrize("schedule", ["rounds", "streaming"])
@pytest.mark.parametrize("site", [LOCAL, CLUSTER], ids=["local", "cluster"])
def test_every_task_ends_once_and_labels_are_the_budget(schedule, site):
    events, report = events_of(settings(schedule=schedule, site=site, labels__budget=120), replace(SPREAD, lost=0.06))
    assert report.reason is EndReason.BUDGET
    asked = Counter(name for event in events if isinstance(event, Submitted) for name in event.tasks)
    labels = [event for event in events if isinstance(event, Labelled | LabelFailed)]
    assert len(labels) == report.labels == 120
    assert len({event.identity for event in labels}) == 120
    assert sorted(event.number for event in labels) == list(range(120))
    walks = Counter((event.round, event.item, event.leg) for event in events if isinstance(event, Walked))
    assert max(walks.values()) == 1
    lost = Counter(event.task for event in events if isinstance(event, TaskLost))
    others = [
        event for event in events if event.kind in ("selected", "trained", "rejected") and event.timing is not None
    ]
    assert lost
    # a walk that is lost when the campaign ends is not asked for again
    assert all(count <= asked[name] <= count + 1 for name, count in lost.items())
    assert sum(asked.values()) == report.tasks == len(labels) + walks.total() + lost.total() + len(others)


@pytest.mark.parametrize("schedule", ["rounds", "streaming"])
def test_the_time_of_slots_is_busy_or_idle_and_idleness_has_its_reasons(schedule):
    chosen = settings(schedule=schedule, site=LOCAL, labels__budget=120)
    durations = replace(SPREAD, lost=0.0, handling={})
    events, report = events_of(chosen, durations)
    workers = {one.label: one for one in report.workers}
    for label, slots in (("walk", 2), ("label", 3)):
        one = workers[label]
        assert one.held_s == pytest.approx(slots * report.wall_s)
        spans = [
            event.timing.wall_s
            for event in events
            if isinstance(event, {"walk": Walked, "label": (Labelled, LabelFailed)}[label])
        ]
        assert one.busy_s == pytest.approx(sum(spans))
    told = defaultdict(float)
    for event in events:
        if isinstance(event, Idled):
            told[event.work] += event.slot_s
    for work in (Work.WALK, Work.LABEL):
        one = workers[work.value]
        # the driver hears of an end some milliseconds later, tells of no spell below a second, nor of the last one
        assert told[work] == pytest.approx(one.held_s - one.busy_s, rel=0.1, abs=0.02 * one.held_s)
        assert told[work] <= one.held_s - one.busy_s + 1e-6


def test_workers_never_have_two_tasks_at_a_time():
    events, _ = events_of(settings(schedule="streaming", site=LOCAL, labels__budget=120))
    for kind, slots in ((Walked, 2), ((Labelled, LabelFailed), 3), (Trained, 1)):
        spans = [event.timing for event in events if isinstance(event, kind) and event.timing is not None]
        edges = sorted([(t.started, 1) for t in spans] + [(t.ended, -1) for t in spans])
        running = 0
        for _, step in edges:
            running += step
            assert running <= slots


def test_rounds_on_single_slots_take_the_time_of_pencil_and_paper():
    chosen = settings(site={"kind": "local_htex"}, walkers__count=4, labels__budget=22)
    _, report = events_of(chosen, EXACT)
    # 10 labels and a model; 3 rounds of 2 walks, a selection, 4 labels and a model
    wall_s = 10 * 30 + 60 + 3 * (2 * 100 + 5 + 4 * 30 + 60)
    assert report.models == 4
    assert report.wall_s == pytest.approx(wall_s, abs=1.0)
    assert report.labels == 22


def test_a_stream_with_one_label_slot_takes_as_long_as_its_labels():
    chosen = settings(schedule="streaming", site={"kind": "local_htex", "walk_slots": 3}, labels__budget=200)
    _, report = events_of(chosen, replace(EXACT, walk=EvenSegments(seconds=Around(mean_s=100.0), candidates=50)))
    # 200 labels one after the other; at the beginning those of the start wait for the first model and its first walk, and what
    # came last is learned at the end
    assert 200 * 30 <= report.wall_s <= 200 * 30 + 60 + 200 + 5 + 60 + 60 + 30
    label = next(one for one in report.workers if one.label == "label")
    assert label.busy > 0.95


def test_handling_lengthens_every_label():
    chosen = settings(site={"kind": "local_htex"}, walkers__count=4, labels__budget=22)
    slower = replace(EXACT, handling={Work.LABEL: Handling(first_s=2.0, start_s=2.0)})
    assert simulate(chosen, slower).wall_s - simulate(chosen, EXACT).wall_s == pytest.approx(22 * 2.0, abs=1.0)


def test_rounds_ask_for_what_a_real_campaign_asks_for(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.driver.GATHER_S", 0.0005)
    real: list = []
    chosen = settings()
    Campaign.create_or_open(chosen, systems(), tmp_path / "c").run(MadeUpSteps(), on_event=real.append)
    simulated, _ = events_of(chosen, EXACT)
    asked = [[e.tasks for e in events if isinstance(e, Submitted)] for events in (real, simulated)]
    assert asked[0] == asked[1]
    kinds = [Counter(e.kind for e in events if not isinstance(e, Idled)) for events in (real, simulated)]
    assert kinds[0] == kinds[1]


def test_long_segments_are_cut_into_legs_that_add_up():
    chosen = settings(site={**LOCAL, "walk_task_s": 30.0}, walkers__segment_steps=100, labels__budget=14)
    events, _ = events_of(chosen, EXACT)
    walks = [event for event in events if isinstance(event, Walked) and event.item == 0]
    assert [event.leg for event in walks] == [0, 1, 2, 3]
    assert sum(event.timing.wall_s for event in walks) == pytest.approx(100.0)
    assert sum(event.count for event in walks) == 2
    assert [event.steps_left for event in walks] == [70, 40, 10, 0]


def test_jobs_wait_in_the_queue_end_by_their_wall_time_and_are_paid_for():
    long = settings(site=CLUSTER, labels__budget=1000, labels__initial=1000)
    exact = replace(EXACT, label=Around(mean_s=300.0, sigma=0.0), queue_wait=Around(mean_s=600.0, sigma=0.0))
    events, report = events_of(long, exact)
    labels = [event.timing for event in events if isinstance(event, Labelled)]
    assert min(timing.started for timing in labels) == 600.0
    # 6 workers take labels for 7200 - 900 s, end those they have, and wait for the next job
    starts = sorted({timing.started for timing in labels})
    gaps = [following - start for start, following in itertools.pairwise(starts)]
    assert Counter(gaps) == {300.0: len(gaps) - gaps.count(900.0), 900.0: gaps.count(900.0)}
    assert gaps.index(900.0) == 20
    label = next(one for one in report.workers if one.label == "label")
    assert label.busy_s == pytest.approx(300.0 * 1000)
    assert label.node_h == pytest.approx(label.held_s / 2 / 3600)


def test_what_is_measured_in_a_simulated_campaign_is_what_went_in(tmp_path):
    chosen = settings(site=LOCAL, schedule="streaming", labels__budget=300, walkers__segment_steps=1000)
    durations = replace(SPREAD, known=always(0.4), stale=0.0, rejected=always(0.0))

    class Store:
        root = tmp_path

        def reading(self):
            created = Campaign.create_or_open(chosen, systems(), tmp_path / "c").store.events()[0]
            return [replace(created, time=0.0), *events_of(chosen, durations)[0]]

    found = measured(Store(), chosen)
    assert fmean(found.known.values) == pytest.approx(0.4, abs=0.05)
    assert found.failed == pytest.approx(0.03, abs=0.03)
    assert found.handling[Work.LABEL].report_s == pytest.approx(0.2, abs=0.05)
    again, first = simulate(chosen, found), simulate(chosen, durations)
    assert again.wall_s == pytest.approx(first.wall_s, rel=0.15)
    assert again.models == pytest.approx(first.models, rel=0.2)


def test_a_campaign_that_has_not_trained_yet_cannot_be_measured(tmp_path):
    campaign = Campaign.create_or_open(settings(), systems(), tmp_path / "c")
    with pytest.raises(SettingsError, match="no finished labels and no finished trainings"):
        measured(campaign.store, settings())


def test_measured_values_are_those_near_in_the_number_of_labels():
    near = Near(labels=tuple(range(0, 80, 10)), values=tuple("abcdefgh"))
    random = Random(1)
    assert {near.draw(random, 0) for _ in range(50)} == {"a", "b"}
    assert {near.draw(random, 1000) for _ in range(50)} == {"g", "h"}
    assert {near.draw(random, 40) for _ in range(50)} <= {"d", "e", "f"}


def test_costs_of_a_check_become_durations():
    costs = Costs(label_s=3.0, handling_s=0.1, structure_epoch_s=0.01, walker_step_s=0.2, walker_steps=100)
    chosen = settings(site=LOCAL)
    report = simulate(chosen, Durations.of_costs(costs, chosen))
    assert report.reason is EndReason.BUDGET


def test_the_spread_of_durations_keeps_their_mean():
    random = Random(2)
    mean = sum(Around(mean_s=10.0, sigma=0.5).seconds(random) for _ in range(20_000)) / 20_000
    assert mean == pytest.approx(10.0, rel=0.02)


def test_nodes_are_shared_out_so_that_neither_kind_waits():
    chosen = settings(schedule="streaming", site=CLUSTER, labels__budget=50)
    durations = replace(EXACT, label=Around(mean_s=100.0, sigma=0.0), known=always(0.5))
    total = 6
    best = best_split(chosen, total, durations)
    times = {w: simulate(sized(chosen, Machine(w, total - w)).settings, durations).wall_s for w in range(1, total)}
    assert best.walk + best.label == total
    assert 1 < best.walk < total - 1
    assert times[best.walk] <= 1.05 * min(times.values())


def test_a_larger_machine_gets_the_walkers_it_needs():
    chosen = settings(schedule="streaming", site=CLUSTER)
    grown = sized(chosen, Machine(10, 400))
    assert machine_of(grown.settings) == Machine(10, 400)
    assert grown.settings.walkers.count == grown.settings.walkers.batch * 20
    assert [line.split("=")[0] for line in grown.changes] == ["walkers.count"]
    with pytest.raises(SettingsError, match="nodes_per_block is 2"):
        sized(settings(site=CLUSTER | {"walk": job(1, nodes_per_block=2)}), Machine(3, 3))


def test_one_more_of_what_limits_saves_time():
    chosen = settings(schedule="streaming", site=LOCAL, labels__budget=200, walkers__segment_steps=1000)
    quick = Around(mean_s=1.0, sigma=0.0)
    walk = EvenSegments(seconds=Around(mean_s=100.0), candidates=100)
    durations = replace(EXACT, walk=walk, train=quick, select=quick)
    report = simulate(chosen, durations)
    saved = one_more(chosen, report, durations)
    assert saved["label"].mean_s == pytest.approx(report.wall_s / 4, rel=0.3)
    assert not saved["label"].is_chance
    assert saved["walk"].mean_s < 0.2 * saved["label"].mean_s
    assert one_more(settings(), report, durations) == {}


def test_a_task_takes_as_long_on_another_machine():
    chosen = settings(schedule="streaming", site=LOCAL, labels__budget=60)
    larger = sized(chosen, Machine(2, 4)).settings
    durations = replace(SPREAD, lost=0.0, rejected=always(0.0))
    runs = [events_of(one, durations)[0] for one in (chosen, larger)]
    few, many = ({e.identity: e.timing.wall_s for e in run if isinstance(e, Labelled)} for run in runs)
    both = few.keys() & many.keys()
    assert len(both) > 20  # others have other names: what a selection holds depends on when it was
    assert all(few[name] == pytest.approx(many[name]) for name in both)


def test_given_seconds_of_walks_leave_the_measured_candidates():
    values = (Segment(10.0, 3), Segment(30.0, 5))
    found = MeasuredSegments(measured=Near(labels=(0, 1), values=values)).lasting(40.0)
    assert found.measured.values == (Segment(20.0, 3), Segment(60.0, 5))


def test_the_clock_jumps_to_what_happens_and_keeps_short_waits():
    clock, done = VirtualClock(5.0), SimpleQueue()
    clock.at(3.0, lambda: done.put("first"))
    clock.at(3.001, lambda: done.put("second"))
    clock.at(3.1, lambda: done.put("third"))
    assert clock.wait(done, 0.5) == "first"
    assert clock.now() == 3.0
    assert clock.wait(done, 0.005) == "second"
    assert clock.wait(done, 0.004) is None
    assert math.isclose(clock.now(), 3.005)
    assert clock.wait(done, 0.5) == "third"
    assert clock.wait(done, 0.5) is None
    assert clock.now() == 3.1 + 5.0


def test_the_command_says_how_long_and_what_to_set(tmp_path):
    file = "apps/templates/copper/campaign.yaml"
    options = ["--schedule", "streaming", "--labels", "40", "--nodes", "6", "--label-seconds", "30"]
    done = CliRunner().invoke(application, ["simulate", file, *options])
    assert done.exit_code == 0, done.output
    assert "40 of labels.budget = 40 labels are spent" in done.output
    assert "more label slot" in done.output
    wrong = CliRunner().invoke(application, ["simulate", file, "--nodes", "5", "--walk-nodes", "5"])
    assert wrong.exit_code == 2
    for option in ("--walk-seconds", "--label-seconds"):
        nothing = CliRunner().invoke(application, ["simulate", file, "--nodes", "5", option, "0"])
        assert nothing.exit_code == 2
        assert option in nothing.output


def test_a_schedule_that_the_campaign_has_keeps_its_keys(tmp_path):
    file = Path("apps/templates/copper/campaign.yaml")
    stream = ["schedule={kind: streaming, pool: 99}"]
    assert _scheduled(file, stream, None, "streaming") == stream
    assert _scheduled(file, stream, None, None) == stream
    assert _scheduled(file, stream, None, "rounds") == [*stream, "schedule={kind: rounds}"]
    assert _scheduled(file, ["schedule.pool=99"], None, "streaming") == [
        "schedule={kind: streaming}",
        "schedule.pool=99",
    ]


def test_the_first_task_of_a_job_waited_in_the_queue_and_the_others_did_not(tmp_path):
    chosen = settings(site=CLUSTER, schedule="streaming", labels__budget=60)
    handling = {work: Handling(first_s=0.5, start_s=0.5) for work in Work}
    durations = replace(EXACT, queue_wait=Around(mean_s=600.0, sigma=0.0), handling=handling)

    class Store:
        root = tmp_path

        def reading(self):
            created = Campaign.create_or_open(chosen, systems(), tmp_path / "c").store.events()[0]
            return [replace(created, time=0.0), *events_of(chosen, durations)[0]]

    found = measured(Store(), chosen)
    assert all(one.first_s == one.start_s for one in found.handling.values())
    assert found.queue_wait.mean_s > 100
    assert measured(Store(), settings(site=LOCAL)).queue_wait.mean_s == 0.0


def test_labels_that_all_fail_end_the_simulation_as_they_end_a_campaign():
    report = simulate(settings(site=LOCAL), replace(EXACT, failed=1.0))
    assert report.reason in (EndReason.LABELS_FAILED, EndReason.LABELS_PAUSED)
