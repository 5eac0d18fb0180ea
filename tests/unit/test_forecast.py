"""When a campaign will be over: made-up histories whose future is known."""

import math
from dataclasses import replace

import numpy as np
import pytest
from fabricated import TIMING, settings
from test_state import BEGIN, label_failed, labelled, trained

from pipeline.events import EndReason, Requeued, Resumed, Stopped
from pipeline.fold import apply, begin
from pipeline.forecast import crossing, forecast
from pipeline.pace import History
from pipeline.records import Scores

STREAM = {"schedule": "streaming", "labels__budget": 1000, "labels__initial": 10}
WITH_GPU = {"site": {"kind": "local_htex", "gpus": 1}}
LABEL_S = 6.0
"""A label every so many seconds, and after every tenth a model."""


def scores(error: float) -> Scores:
    return Scores(count=10, energy_rmse=0.1, energy_mae=0.1, force_rmse=error, force_mae=0.1)


def model(version: int, time: float, labels: int, error: float, **changes):
    fresh = scores(error) if version > 1 else None
    known = replace(trained(version - 1, labels), version=version, time=time, fresh=fresh)
    return replace(known, timing=TIMING, **changes)


class Story:
    """A campaign of events, and what a reader makes of it."""

    def __init__(self, **changes) -> None:
        self.settings = settings(**{**STREAM, **changes})
        self.events = [replace(BEGIN, time=0.0, settings=self.settings.model_dump(mode="json"))]
        self.labels = 0

    def label(self, time: float, core_s: float = 0.0) -> None:
        row = labelled(0, self.labels, self.labels)
        self.events.append(replace(row, time=time, core_s=core_s))
        self.labels += 1

    def resume(self, time: float) -> None:
        plain = self.settings.model_dump(mode="json")
        self.events.append(Resumed(time=time, settings=plain, host="h", pid=1))

    def even(self, models: int, error=lambda labels: 1.0, *, core_s: float = 0.0, gpu_s: float = 0.0) -> "Story":
        """Ten labels and a model, again and again; ``error`` of a model by the labels it knows."""
        for version in range(1, models + 1):
            for _ in range(10):
                self.label((self.labels + 1) * LABEL_S, core_s)
            before = error(self.labels - 10)
            self.events.append(model(version, self.labels * LABEL_S, self.labels, before, gpu_s=gpu_s))
        return self

    @property
    def now(self) -> float:
        return self.events[-1].time

    def seen(self, now: float | None = None):
        history, state = History(), begin(self.events[0])
        history.absorb(self.events[0])
        for event in self.events[1:]:
            history.absorb(event)
            state = apply(state, event)
        return forecast(history, state, self.settings, self.now if now is None else now)

    def of(self, key: str, now: float | None = None):
        return next(one for one in self.seen(now).prospects if one.key == key)


def test_an_even_campaign_spends_its_budgets_at_the_pace_it_has():
    limits = {**WITH_GPU, "stop__max_cpu_h": 1.0, "stop__max_gpu_h": 0.5, "stop__max_wall_h": 2.0}
    story = Story(**limits).even(12, core_s=3.0, gpu_s=30.0)
    found = story.seen()
    left = {one.key: one.left_s for one in found.prospects}
    assert found.pace is not None
    assert found.pace.labels == pytest.approx(1 / LABEL_S)
    assert found.pace.models == pytest.approx(1 / (10 * LABEL_S))
    assert left["labels.budget"] == pytest.approx((1000 - 120) * LABEL_S)
    assert left["stop.max_cpu_h"] == pytest.approx((3600 - 120 * 3.0) / (3.0 / LABEL_S))
    assert left["stop.max_gpu_h"] == pytest.approx((1800 - 12 * 30.0) / (30.0 / (10 * LABEL_S)))
    assert left["stop.max_wall_h"] == pytest.approx(7200 - 120 * LABEL_S)
    assert found.first is not None
    assert found.first.key == "stop.max_gpu_h"


def test_the_pace_is_that_of_late_and_a_standstill_slows_it_down():
    story = Story()
    for count, seconds in ((75, 10.0), (25, 2.0)):
        for _ in range(count):
            story.label(story.now + seconds)
    assert story.of("labels.budget").left_s == pytest.approx(900 * 2.0)
    assert story.of("labels.budget", story.now + 50.0).left_s == pytest.approx(900 * 4.0)


def test_the_time_between_drivers_is_no_wall_time():
    story = Story(stop__max_wall_h=1.0).even(4)
    expected = [(one.key, one.left_s) for one in story.seen().prospects]
    stopped = Stopped(time=story.now, reason=EndReason.INTERRUPTED, message="told to stop")
    story.events.append(stopped)
    story.resume(story.now + 1e6)
    assert [(one.key, one.left_s) for one in story.seen().prospects] == expected


def test_labels_that_are_tried_again_are_not_spent():
    story = Story().even(2)
    failed = replace(label_failed(0, story.labels, story.labels), time=story.now + 1.0)
    story.events.append(failed)
    assert story.of("labels.budget").present == 21
    story.events.append(Requeued(time=story.now, failures=(failed,), picks=(None,)))
    assert story.of("labels.budget").present == 20


def test_labels_that_are_tried_again_neither_stop_the_pace_nor_extend_a_driver():
    story = Story().even(4)
    failed = tuple(replace(label_failed(0, item, item), time=(item + 1) * LABEL_S) for item in range(40, 60))
    story.events.extend(failed)
    before = story.seen()
    story.events.append(Stopped(time=story.now, reason=EndReason.INTERRUPTED, message="told to stop"))
    story.events.append(Requeued(time=story.now + 1e5, failures=failed, picks=(None,) * len(failed)))
    assert before.pace is not None
    history = History()
    for event in story.events:
        history.absorb(event)
    assert (history.labels, history.answered) == (40, 60)
    assert history.sessions.ended == history.sessions.all(None)[-1].ended == 60 * LABEL_S
    story.resume(story.now + 1e5)
    after = story.seen()
    assert after.pace is not None
    assert after.pace.labels == before.pace.labels > 0


@pytest.mark.parametrize("power", [-0.3, -0.5, -1.0])
def test_a_power_law_reaches_the_target_where_it_does(power):
    story = Story(stop__target_force_eV_per_A=0.1, stop__consecutive=3)
    story.even(20, lambda labels: 0.1 * (max(labels, 1) / 400.0) ** power)
    found = story.of("stop.target_force_eV_per_A")
    models_s = 10 * LABEL_S
    assert found.left_s == pytest.approx((400 - 200) * LABEL_S + 3 * models_s)
    assert found.labels == pytest.approx(400 + 30)
    assert found.low_s == pytest.approx(found.left_s)
    assert found.high_s == pytest.approx(found.left_s)


def test_models_that_went_wrong_do_not_move_the_line():
    def error(labels: int) -> float:
        return 0.1 * (max(labels, 1) / 400.0) ** -0.5 * (5.0 if labels in (60, 110) else 1.0)

    story = Story(stop__target_force_eV_per_A=0.1, stop__consecutive=1).even(20, error)
    found = story.of("stop.target_force_eV_per_A")
    assert found.left_s == pytest.approx(200 * LABEL_S + 10 * LABEL_S, rel=1e-6)


def test_a_target_is_not_in_sight_of_few_models_of_a_flat_curve_or_far_away():
    def why(models, error):
        story = Story(stop__target_force_eV_per_A=0.1).even(models, error)
        found = story.of("stop.target_force_eV_per_A")
        assert found.left_s is None
        return found.why

    assert why(4, lambda labels: labels**-0.5 if labels else 1.0) == "needs 5 models"
    assert why(10, lambda _: 0.4) == "not in sight"
    assert why(10, lambda labels: 1.0 + labels) == "not in sight"
    assert why(10, lambda labels: 10.0 * max(labels, 1) ** -0.1) == "not in sight"


def test_below_the_target_only_models_in_a_row_are_missing():
    story = Story(stop__target_force_eV_per_A=0.2, stop__consecutive=4)
    story.even(10, lambda labels: max(labels, 1) ** -0.4)
    # the errors of models that know 60, 70, 80 and 90 labels are below 0.2
    assert story.of("stop.target_force_eV_per_A").why == "reached"
    story = Story(stop__target_force_eV_per_A=0.2, stop__consecutive=6)
    story.even(10, lambda labels: max(labels, 1) ** -0.4)
    assert story.of("stop.target_force_eV_per_A").left_s == pytest.approx(2 * 10 * LABEL_S)


def explored(models: int, *, over: int, gain: float) -> Story:
    """A campaign that follows two dihedrals."""
    two = [{"kind": "dihedral", "name": name, "atoms": [0, 1, 2, 3]} for name in ("phi", "psi")]
    story = Story(
        systems=[{"name": "a", "structures": ["a.xyz"], "variables": two}],
        stop__coverage={"gain": gain, "models": over},
    )
    story.even(models)
    return story


def with_cells(story: Story, counts):
    """The prospect of coverage when so many cells were visited as each model came."""
    history, state = History(), begin(story.events[0])
    for event in story.events:
        history.absorb(event)
        state = apply(state, event) if event is not story.events[0] else state
    masks = [{"a": (1 << count) - 1} for count in counts]
    state = replace(state, cells=type(state.cells)(masks))
    return next(
        one for one in forecast(history, state, story.settings, story.now).prospects if one.key == "stop.coverage"
    )


def test_coverage_that_stopped_growing_is_reached_and_one_that_grows_evenly_is_not_in_sight():
    story = explored(12, over=2, gain=0.01)
    assert with_cells(story, [500] * 12).why == "reached"
    assert with_cells(story, [40 * k for k in range(1, 13)]).why == "not in sight"
    few = explored(3, over=2, gain=0.01)
    assert with_cells(few, [100, 200, 300]).why == "needs 6 models"


def test_coverage_whose_gains_fall_off_is_reached_when_they_are_small_enough():
    story = explored(10, over=1, gain=0.001)
    found = with_cells(story, [round(1000 * (1 - 0.8**k)) for k in range(1, 11)])
    assert found.left_s is not None
    # the last gain is 0.005, and each is about 0.8 of the one before
    assert 5 * 10 * LABEL_S <= found.left_s <= 10 * 10 * LABEL_S
    assert found.low_s <= found.left_s <= found.high_s


def test_rounds_have_the_pace_of_whole_rounds():
    story = Story(schedule="rounds", stop__max_rounds=9)
    for index in range(3):  # a minute of walking, then ten labels at once, then a model
        for _ in range(10):
            story.label(60.0 * (index + 1))
        story.events.append(model(index + 1, 60.0 * (index + 1), story.labels, 1.0))
    found = story.seen(story.now + 30.0)
    assert found.pace is not None
    assert found.pace.labels == pytest.approx(10 / 60.0)
    assert found.first is not None
    assert found.first.key == "stop.max_rounds"


def test_nothing_is_foretold_of_a_campaign_that_just_began():
    found = Story(**WITH_GPU, stop__max_gpu_h=1.0, stop__target_force_eV_per_A=0.1).seen()
    assert found.pace is None
    assert found.first is None
    assert [one.why for one in found.prospects] == ["no pace yet", "no pace yet", "needs 5 models"]


def test_a_line_that_falls_meets_a_level_within_its_limit():
    x = [1.0, 2.0, 3.0, 4.0, 5.0]
    falling = [4.0, 3.5, 3.0, 2.5, 2.0]
    found = crossing(x, falling, 0.0, limit=10.0)
    assert found is not None
    assert (found.at, found.low, found.high) == pytest.approx((9.0, 9.0, 9.0))
    assert crossing(x, falling, 0.0, limit=8.0) is None
    assert crossing(x, [1.0] * 5, 0.0, limit=math.inf) is None


def test_where_noisy_points_meet_a_level_lies_within_the_interval_as_often_as_it_says():
    rng, inside = np.random.default_rng(1), 0
    x = np.log(np.arange(10.0, 210.0, 10.0))
    for _ in range(200):
        y = math.log(0.1) - 0.5 * (x - math.log(400.0)) + rng.normal(scale=0.1, size=len(x))
        found = crossing(x.tolist(), y.tolist(), math.log(0.1), limit=math.inf)
        assert found is not None
        assert found.low <= found.at <= found.high
        inside += found.low <= math.log(400.0) <= found.high
    assert 0.8 <= inside / 200 <= 1.0
