"""A campaign ends for a reason that it tells; what is in flight then is recorded and learned."""

import re
from dataclasses import replace

import pytest
from fabricated import settings
from made_up_stream import STREAM, MadeUpStream

from pipeline.ending import batches_on_target, coverages, goal_reached, spent_resources
from pipeline.events import EndReason, Selected, Submitted, Trained, Walked, Work
from pipeline.streaming import BARREN_TURNS

VARIABLE = {"kind": "distance", "name": "d", "atoms": [0, 1], "range_A": [0.0, 10.0]}
ONE = {"systems": [{"name": "a", "structures": ["a.xyz"], "variables": [VARIABLE]}]}


def ended(seed=1, stream=None, **changes) -> MadeUpStream:
    """A stream with another stop rule, run to its end."""
    stream = stream or MadeUpStream(seed=seed, least=2, chosen=settings(**{**STREAM, "labels__budget": 400, **changes}))
    return stream.run(6000)


def learned_all(stream: MadeUpStream) -> bool:
    """Whether nothing is in flight and the newest model knows every label."""
    flow, state = stream.flow, stream.state
    return not (flow.open or flow.pending or state.arrived) and state.models[-1].labels == state.labelled


@pytest.mark.parametrize("seed", range(4))
def test_the_target_must_hold_for_several_models_in_a_row_and_labels_in_flight_are_learned(seed):
    stream = ended(seed, stop__target_force_eV_per_A=0.2, stop__consecutive=2)  # the error of version v is 1 / v
    assert stream.end.reason is EndReason.TARGET
    assert re.search(r"below 0\.2 eV/Å on 2 batches of new labels in a row \(0\.\d+, 0\.\d+\)", stream.end.message)
    assert len(stream.state.models) >= 7
    assert len(batches_on_target(stream.state, stream.chosen)) == 2
    assert learned_all(stream)
    reached = next(k for k, event in enumerate(stream.events) if isinstance(event, Trained) and event.version == 7)
    assert not [
        event for event in stream.events[reached + 1 :] if isinstance(event, Submitted) and event.work is not Work.TRAIN
    ], "nothing new is begun"


def test_a_target_that_the_last_labels_miss_was_not_reached():
    """The labels in flight when it seemed reached count as well."""
    stream = MadeUpStream(
        seed=1, least=2, chosen=settings(**STREAM, stop__target_force_eV_per_A=0.5, stop__consecutive=1)
    )
    while goal_reached(stream.state, stream.chosen) is None:
        stream.step()
    assert len(stream.state.models) == 3
    stream.error = 100.0
    stream.run()
    assert stream.end.reason is EndReason.BUDGET
    assert learned_all(stream)


@pytest.mark.parametrize("seed", range(4))
def test_the_budget_ends_a_stream_when_all_its_labels_are_learned(seed):
    stream = ended(seed, labels__budget=60)
    assert (stream.end.reason, stream.end.message) == (
        EndReason.BUDGET,
        "60 of labels.budget = 60 labels are spent",
    )
    assert learned_all(stream)
    asked = next(
        k
        for k, event in enumerate(stream.events)
        if isinstance(event, Submitted) and event.work is Work.LABEL and len(asked_for(stream, k)) == 60
    )
    # the same decision may still begin others
    woken = next(k for k in range(asked, len(stream.events)) if not isinstance(stream.events[k], Submitted))
    late = [event for event in stream.events[woken:] if isinstance(event, Submitted)]
    assert {event.work for event in late} <= {Work.TRAIN}, "nobody walks or selects for labels that cannot be asked for"


def asked_for(stream: MadeUpStream, upto: int) -> set[str]:
    """Names of all labels that were asked for up to an event."""
    asked = (e for e in stream.events[: upto + 1] if isinstance(e, Submitted) and e.work is Work.LABEL)
    return {name for event in asked for name in event.tasks}


def test_a_stream_ends_when_walkers_cover_nothing_new():
    # the made-up walkers visit four cells of 32
    rule = {"gain": 0.01, "models": 3}
    chosen = settings(**{**STREAM, **ONE, "labels__budget": 400, "stop": {"coverage": rule}})
    stream = ended(stream=MadeUpStream(seed=1, least=2, chosen=chosen))
    assert stream.end.reason is EndReason.COVERAGE
    assert learned_all(stream)
    (values,) = coverages(stream.state, chosen).values()
    assert 4 <= len(values) <= len(stream.state.models)
    assert values[-1] - values[-4] < 0.01
    assert values[-1] == pytest.approx((4 / 32 + 2 / 16 + 1 / 8 + 1 / 4 + 1 / 2) / 5)
    assert f"coverage ({values[-1]:.2f} of a) grew by less than 0.01 over 3 models" in stream.end.message


def test_coverage_ends_nothing_before_walkers_found_anything():
    rule = {"gain": 0.01, "models": 1}
    chosen = settings(**{**STREAM, **ONE, "stop": {"coverage": rule}})
    stream = MadeUpStream(seed=1, chosen=chosen, known=0.0)
    while len(stream.state.models) < 4:
        stream.step()
        blind = replace(stream.state, cells=type(stream.state.cells)({} for _ in stream.state.models))
        assert goal_reached(blind, chosen) is None


@pytest.mark.parametrize(
    ("key", "limit", "reason", "unit"),
    [
        ("max_cpu_h", 600 / 3600, EndReason.MAX_CPU, "core hours"),
        ("max_gpu_h", 60 / 3600, EndReason.MAX_GPU, "GPU hours"),
        ("max_wall_h", 90 / 3600, EndReason.MAX_WALL, "h"),
    ],
)
@pytest.mark.parametrize("schedule", ["streaming", "rounds"])
def test_resources_that_are_spent_end_a_campaign_and_more_let_it_go_on(key, limit, reason, unit, schedule):
    site = {**STREAM["site"], "kind": "local_htex", "gpus": 1}
    changes = {**STREAM, "labels__budget": 400, f"stop__{key}": limit, "schedule": schedule, "site": site}
    stream = MadeUpStream(seed=1, least=2, chosen=settings(**changes)).run()
    assert stream.end.reason is reason
    assert f"stop.{key} is {limit:g}" in stream.end.message
    assert f" {unit}," in stream.end.message
    labelled = stream.state.labelled
    again = MadeUpStream(seed=1, least=2, chosen=stream.chosen)
    again.events, again.state, again.time = list(stream.events), stream.state, stream.time
    again.shards, again.made, again.name = dict(stream.shards), dict(stream.made), stream.name
    again.take_up()
    again.hand_out()
    assert again.end is not None, "a new driver does not begin anew"
    assert again.end.reason is reason
    again.take_up(settings(**{**changes, f"stop__{key}": 3 * limit}))
    again.run()
    assert again.state.labelled > labelled


def test_what_tasks_held_is_summed_up():
    stream = MadeUpStream(seed=1, least=2, failing=0.2).run()
    kinds = [type(event) for event in stream.events]
    core_s = 3.0 * (kinds.count(Walked) + kinds.count(Selected)) + 10.0 * stream.state.spent
    assert stream.state.core_s == pytest.approx(core_s)
    assert stream.state.gpu_s == 2.0 * kinds.count(Walked) + 5.0 * kinds.count(Trained)
    no_limit = spent_resources(stream.state, stream.chosen, 1e12)
    assert no_limit is None


def test_a_stream_ends_when_every_batch_found_nothing_worth_a_label_several_times():
    stream = MadeUpStream(seed=1, least=2, known=1.0).run()
    assert stream.end.reason is EndReason.NOTHING_NEW
    assert "nothing worth a label" in stream.end.message
    assert len(stream.of(Walked)) >= BARREN_TURNS * stream.flow.batches
    assert learned_all(stream)
    assert not [event for event in stream.of(Selected) if event.count]
    before = len(stream.of(Walked))
    stream.known = 0.0
    stream.take_up()  # whoever takes it up wants it to go on
    stream.run()
    assert len(stream.of(Walked)) > before
    assert stream.end.reason is EndReason.BUDGET


def test_something_found_in_between_counts_from_anew():
    stream = MadeUpStream(seed=1, least=2, known=1.0)
    while stream.flow.fruitless < BARREN_TURNS * stream.flow.batches - 1:
        stream.step()
    stream.known = 0.0
    stream.run()
    assert stream.end.reason is EndReason.BUDGET
