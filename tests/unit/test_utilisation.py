"""What workers did with their time: sums that are known."""

from dataclasses import replace

import pytest
from fabricated import TIMING, settings
from test_state import BEGIN, label_failed, labelled, trained, walked

from pipeline.events import Created, EndReason, Idled, Resumed, Stopped, Submitted, Work
from pipeline.records import Timing
from pipeline.requests import Request
from pipeline.utilisation import activity, workers_of

LOCAL = {"kind": "local_threads", "walk_slots": 2, "label_slots": 4}
SLURM = {
    "kind": "slurm",
    "walk": {"walltime": 3600, "cores_per_node": 8, "cores_per_worker": 2, "gpus_per_node": 4, "max_blocks": 2},
    "label": {"walltime": 3600, "cores_per_node": 8, "cores_per_worker": 4, "max_blocks": 3, "drain": 600},
}


def timing(started: float, ended: float) -> Timing:
    return replace(TIMING, started=started, ended=ended)


def begun(time: float, site: dict | None = None) -> Created:
    chosen = settings(site=site or LOCAL, schedule="streaming")
    return replace(BEGIN, time=time, settings=chosen.model_dump(mode="json"))


def resumed(time: float, site: dict | None = None) -> Resumed:
    return Resumed(time=time, settings=begun(time, site).settings, host="h", pid=1)


def label(started: float, ended: float, item: int = 0):
    return replace(labelled(0, item, item), time=ended, timing=timing(started, ended))


def stopped(time: float) -> Stopped:
    return Stopped(time=time, reason=EndReason.INTERRUPTED, message="told to stop")


def test_busy_idle_and_the_rest_are_all_of_the_time():
    events = [
        begun(0.0),
        label(10.0, 20.0, 0),
        replace(label_failed(0, 1, 1), time=40.0, timing=timing(20.0, 40.0)),
        replace(walked(0), time=60.0, timing=timing(20.0, 60.0)),
        Idled(time=50.0, work=Work.WALK, since=0.0, reason="there is no model yet", slot_s=75.0),
        replace(trained(0, 8), time=80.0, timing=timing(60.0, 80.0)),
        stopped(100.0),
    ]
    found = activity(events).utilisation(None)
    whole = {use.workers.name: use for use in found.whole}
    walk, labels, train = whole["walk"], whole["label"], whole["train"]
    assert (walk.slot_s, walk.busy_s, walk.idle_s) == (200.0, {Work.WALK: 40.0}, {"there is no model yet": 75.0})
    assert walk.rest_s == 200.0 - 40.0 - 75.0
    assert (labels.busy, train.busy) == (30.0 / 400.0, 0.2)
    for use in found.whole:
        assert sum(use.busy_s.values()) + sum(use.idle_s.values()) + use.handed_out_s + use.rest_s == use.slot_s
    between = {use.workers.name: use for use in found.labelling}  # from 10 to 40 s
    assert between["label"].busy == 30.0 / (4 * 30.0)
    assert between["walk"].busy_s == {Work.WALK: 20.0}
    assert between["walk"].idle_s == {"there is no model yet": pytest.approx(75.0 * 30.0 / 50.0)}
    assert between["train"].busy == 0.0


def test_the_time_between_drivers_does_not_count_and_each_has_the_slots_of_its_site():
    more = {**LOCAL, "label_slots": 6}
    events = [begun(0.0), label(0.0, 10.0), stopped(10.0), resumed(1000.0, more), label(1000.0, 1020.0, 1)]
    found = activity(events).utilisation(None)
    for uses in (found.whole, found.labelling):
        use = next(use for use in uses if use.workers.name == "label")
        assert use.slot_s == 4 * 10.0 + 6 * 20.0
        assert use.busy_s == {Work.LABEL: 30.0}
        assert use.workers.slots == 6


def test_what_a_running_driver_has_in_flight_is_told_apart():
    names = tuple(Request(Work.LABEL, 0, item).name for item in range(5))
    events = [
        begun(0.0),
        Submitted(time=0.0, work=Work.LABEL, round=0, tasks=names),
        label(1.0, 30.0, 0),
    ]
    seen = activity(events)
    use = next(use for use in seen.utilisation(100.0).whole if use.workers.name == "label")
    # four of four slots: three since they were asked for, the fourth since one fell free
    assert use.handed_out_s == 3 * 100.0 + 70.0
    assert use.rest_s == pytest.approx(400.0 - 29.0 - 370.0)
    assert all(use.handed_out_s == 0.0 for use in seen.utilisation(None).whole)
    seen.absorb(resumed(200.0))
    use = next(use for use in seen.utilisation(210.0).whole if use.workers.name == "label")
    assert use.handed_out_s == 0.0


def test_kinds_of_work_share_workers_where_the_site_says_so():
    shared = workers_of(settings(site=SLURM))
    assert [(one.kinds, one.slots) for one in shared] == [
        ((Work.WALK, Work.SELECT, Work.TRAIN), 8),
        ((Work.LABEL,), 6),
    ]
    assert [(one.kinds, one.slots) for one in workers_of(settings())] == [(tuple(Work), 1)]
    events = [
        begun(0.0, SLURM),
        replace(walked(0), time=10.0, timing=timing(0.0, 10.0)),
        replace(trained(0, 8), time=20.0, timing=timing(10.0, 20.0)),
    ]
    walk = activity(events).utilisation(None).whole[0]
    assert walk.busy == 20.0 / (8 * 20.0)
    assert walk.busy_s == {Work.WALK: 10.0, Work.SELECT: 0.0, Work.TRAIN: 10.0}


def test_workers_that_were_two_groups_before_count_as_both():
    apart = {**SLURM, "train": {"walltime": 3600, "cores_per_node": 8, "cores_per_worker": 8, "max_blocks": 1}}
    first, last = begun(0.0, apart), resumed(100.0, SLURM)
    alone = {use.workers.name: use for use in activity([first, stopped(100.0)]).utilisation(None).whole}
    both = {
        use.workers.name: use for use in activity([first, stopped(100.0), last, stopped(200.0)]).utilisation(None).whole
    }
    assert set(alone) == {"walk", "label", "train"}
    walkers = workers_of(settings(site=SLURM))[0]
    assert both["walk"].slot_s == alone["walk"].slot_s + alone["train"].slot_s + 100.0 * walkers.slots
    assert both["label"].slot_s == 2 * alone["label"].slot_s


def test_a_campaign_without_labels_has_no_time_between_them():
    found = activity([begun(0.0)]).utilisation(5.0)
    assert found.labelling == ()
    assert all(use.slot_s == 5.0 * use.workers.slots and use.busy == 0.0 for use in found.whole)
    assert activity([]).utilisation(None).whole == ()
