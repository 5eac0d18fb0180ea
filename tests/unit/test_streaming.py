"""A stream keeps its laws whatever comes, fails, is lost or refused, in any order; made-up events, no files."""

from collections import Counter
from itertools import pairwise

import pytest
from fabricated import settings
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from made_up_stream import SLOTS, STREAM, MadeUpStream

from pipeline.events import (
    EndReason,
    LabelFailed,
    Labelled,
    Rejected,
    Requeued,
    Resumed,
    Selected,
    Submitted,
    TaskLost,
    Trained,
    Walked,
    Work,
)
from pipeline.fold import apply, fold
from pipeline.plan import fresh_labels
from pipeline.requests import request_of
from pipeline.streaming import pool_size

AHEAD = 1
"""Labels handed out beyond the slots where there are four."""

POOL = pool_size(settings(**STREAM))

streams = st.builds(
    MadeUpStream,
    seed=st.integers(0, 2**32),
    failing=st.sampled_from([0.0, 0.3]),
    losing=st.sampled_from([0.0, 0.3]),
    refusing=st.sampled_from([0.0, 0.4]),
    known=st.sampled_from([0.0, 0.3, 0.8]),
)


def check_labels(stream: MadeUpStream) -> None:
    """Every label counts once, and what it is used for follows from its number."""
    answered = [event for event in stream.events if isinstance(event, Labelled | LabelFailed)]
    done = stream.of(Labelled)
    places = [(event.round, event.item) for event in answered]
    assert {event.number for event in answered} == set(range(stream.flow.numbers))
    assert len(set(places)) == stream.flow.numbers == stream.state.spent
    assert len({event.identity for event in answered}) == stream.flow.numbers, "the same structure twice"
    assert len({event.number for event in done}) == len(done) == stream.state.labelled
    assert stream.state.failed == stream.flow.numbers - len(done)
    # every gathered label lies in one shard, and every model knows all that were gathered before it
    assert sum(event.count for event in stream.state.gathered) == len(done)


def check_concurrency(stream: MadeUpStream) -> None:
    """Never more labels than slots and one ahead, one selection, one training, one task per batch, two walks."""
    state, flights = fold(stream.events[:1]), {work: set() for work in Work}
    for event in stream.events[1:]:
        match event:
            case Submitted():
                assert not flights[event.work] & set(event.tasks)
                flights[event.work] |= set(event.tasks)
            case TaskLost():
                flights[event.work].discard(event.task)
            case Resumed():
                flights = {work: set() for work in Work}
            case Walked():
                flights[Work.WALK].discard(f"walk-r{event.round:04d}-{event.item:04d}-l{event.leg:02d}")
            case Labelled() | LabelFailed():
                flights[Work.LABEL].discard(f"label-r{event.round:04d}-{event.item:04d}")
            case Selected():
                flights[Work.SELECT].clear()
            case Trained() | Rejected():
                flights[Work.TRAIN].clear()
        state = apply(state, event)
        assert state.flow is not None
        assert len(flights[Work.LABEL]) <= len(state.flow.open) <= SLOTS + AHEAD
        assert len(flights[Work.SELECT]) <= 1
        assert len(flights[Work.TRAIN]) <= 1
        assert len(flights[Work.WALK]) <= 2
        walking = [request_of(name).item for name in flights[Work.WALK]]
        assert len(set(walking)) == len(walking)
        assert sorted([*state.flow.idle, *walking]) == list(range(state.flow.batches))
    assert state == stream.state


def check_staleness(stream: MadeUpStream) -> None:
    """No candidate is asked for that waited while a newer model came, before it was judged again."""
    opened: set[str] = set()
    judged = True  # whether the newest selection came after the newest model, or ended after it
    for event in stream.events:
        match event:
            case Trained():
                judged = False
            case Selected():
                judged = True
            case Submitted(work=Work.LABEL):
                new = [name for name in event.tasks if name not in opened]
                opened |= set(new)
                assert judged or not [name for name in new if request_of(name).round > 0]
            case _:
                pass
    versions = {}
    asked_with = 0
    for event in stream.events:
        match event:
            case Trained():
                asked_with = event.version
            case Submitted(work=Work.SELECT):
                versions[event.tasks[0]] = asked_with
            case Selected():
                assert event.version == versions[f"select-r{event.round:04d}-0000"]
            case _:
                pass
    assert stream.flow.saved == sum(event.saved for event in stream.of(Selected))


def check_models(stream: MadeUpStream) -> None:
    """Versions rise; a refused model is trained anew once, then waits for more labels; no selected one is forgotten."""
    verdicts = [event for event in stream.events if isinstance(event, Trained | Rejected)]
    assert verdicts[0].attempt == 0
    for before, after in pairwise(verdicts):
        again = isinstance(before, Rejected) and before.attempt == 0
        assert (after.version, after.attempt) == ((before.version, 1) if again else (before.version + 1, 0))
    state, unlearned = fold(stream.events[:1]), set()
    for event in stream.events[1:]:
        if isinstance(event, Trained):
            unlearned = set()
        before, state = state, apply(state, event)
        if before.models and len(state.gathered) > len(before.gathered):
            unlearned |= {row.number for row in before.round_labels if row.round > 0}
        if state.models:
            assert {row.number for row in fresh_labels(state)} == unlearned


def check(stream: MadeUpStream) -> None:
    check_labels(stream)
    check_concurrency(stream)
    check_staleness(stream)
    check_models(stream)


@effort(max_examples=25, deadline=None)
@given(streams)
def test_a_stream_keeps_its_laws_and_spends_its_budget(stream):
    stream.run()
    check(stream)
    assert stream.end is not None
    if stream.end.reason is EndReason.BUDGET:
        assert stream.state.spent == 60
    else:
        assert stream.end.reason in (EndReason.NOTHING_NEW, EndReason.TASK_FAILED)
    last = max(k for k, event in enumerate(stream.events) if isinstance(event, Trained | Rejected))
    assert not [event for event in stream.events[last:] if isinstance(event, Labelled)], "labels nobody learned"


@effort(max_examples=25, deadline=None)
@given(streams, st.floats(0.0, 0.1), st.integers(0, 3))
def test_whatever_is_killed_failed_and_tried_again_counts_once(stream, killed, requeues):
    """Drivers are killed at any event, what failed is tried again: the campaign still ends, with everything once."""
    for _ in range(requeues + 1):
        while stream.step():
            assert len(stream.events) < 4000
            if stream.random.random() < killed:
                stream.take_up()
        if not stream.requeue():
            break
        stream.take_up()
    stream.failing = 0.0
    stream.requeue()
    stream.take_up()
    stream.run(8000)
    check(stream)
    assert stream.state.failed == 0
    assert not stream.state.retries


@pytest.mark.parametrize("seed", range(3))
def test_resumed_after_any_event_it_ends_with_nothing_labelled_twice(seed):
    whole = MadeUpStream(seed=seed, failing=0.1, losing=0.1, refusing=0.3).run()
    for kept in range(1 + seed, len(whole.events), 23):
        events = whole.events[:kept]
        known = {(e.round, e.item) for e in events if isinstance(e, Labelled | LabelFailed)}
        again = MadeUpStream(seed=kept, refusing=0.3)
        again.events, again.state, again.time, again.name = list(events), fold(events), float(kept), 10_000
        again.shards = dict(whole.shards)
        open_ones = {f"label-r{r:04d}-{i:04d}" for r, i in again.flow.open}
        again.take_up()
        again.hand_out()
        first = next((e for e in again.events[kept:] if isinstance(e, Submitted) and e.work is Work.LABEL), None)
        assert set(first.tasks[: len(open_ones)] if first else ()) == open_ones, "in flight ones come first"
        again.run()
        check(again)
        made = Counter((e.round, e.item) for e in again.events if isinstance(e, Labelled | LabelFailed))
        assert set(made.values()) == {1}
        assert again.end.reason in (EndReason.BUDGET, EndReason.NOTHING_NEW)
        asked = {(request_of(n).round, request_of(n).item) for n in again.asked if n.startswith("label")}
        assert not asked & known


def test_nobody_waits_at_a_barrier_when_a_campaign_is_taken_up():
    """Labels that were in flight are asked for again while walkers walk."""
    stream = MadeUpStream(seed=2, least=3)
    budget, pool = stream.chosen.labels.budget, pool_size(stream.chosen)
    while (
        not stream.flow.selections
        or len(stream.flow.open) < SLOTS + AHEAD
        or stream.flow.numbers >= budget
        or stream.flow.pool >= pool
    ):
        assert stream.step()
    open_ones = set(stream.flow.open)
    before = len(stream.events)
    stream.take_up()
    stream.hand_out()
    handed = stream.events[before:]
    asked = {(request_of(n).round, request_of(n).item) for e in handed if isinstance(e, Submitted) for n in e.tasks}
    assert open_ones <= asked
    assert Work.WALK in {event.work for event in handed if isinstance(event, Submitted)}


def test_walkers_pause_at_the_full_pool_and_go_on_when_there_is_room():
    stream = MadeUpStream(seed=1, known=0.0, least=5)
    while stream.flow.pool < POOL:
        stream.step()
    decision = stream.decide()
    assert not [request for request in decision.requests if request.work is Work.WALK]
    assert decision.idle[Work.WALK] == "the pool of candidates is full"
    walked = len(stream.of(Walked))
    while stream.flow.pool >= POOL:
        stream.step()
    stream.run()
    assert len(stream.of(Walked)) > walked
    assert stream.end.reason is EndReason.BUDGET


def test_a_stream_never_holds_more_candidates_than_the_pool_and_what_was_on_its_way():
    stream = MadeUpStream(seed=3, known=0.0, least=5)
    while stream.step():
        assert stream.flow.pool < POOL + 2 * 5


def test_a_refused_model_is_trained_from_scratch_and_given_up_when_it_is_refused_again():
    stream = MadeUpStream(seed=4, refusing=1.0).run()
    refused = stream.of(Rejected)
    assert [event.attempt for event in refused] == [0, 1] * (len(refused) // 2)
    assert [model.version for model in stream.state.models] == [1], "the first one stays"
    assert stream.state.versions == 1 + len(refused) // 2
    assert stream.end.reason is EndReason.BUDGET
    late = {row.number for row in stream.of(Labelled)} - {row.number for row in stream.of(Labelled)[:10]}
    assert {row.number for row in stream.state.unlearned} >= late
    assert stream.asked["train-v0002"] == stream.asked["train-v0002-a1"] == 1


def test_rounds_know_the_gate_as_well():
    chosen = settings(labels__budget=60, labels__recovery={"pause_share": 1.0})
    for refusing in (0.5, 1.0):
        stream = MadeUpStream(seed=5, chosen=chosen, refusing=refusing, least=3).run()
        verdicts = [event for event in stream.events if isinstance(event, Trained | Rejected)]
        for before, after in pairwise(verdicts):
            again = isinstance(before, Rejected) and before.attempt == 0
            assert (after.version, after.attempt) == ((before.version, 1) if again else (before.version + 1, 0))
            assert (after.round == before.round) is again
        if refusing == 1.0:
            known = {row.number for row in stream.of(Labelled) if row.round == 0}
            assert {row.number for row in stream.state.unlearned} == set(range(60)) - known
            assert [model.version for model in stream.state.models] == [1]
        assert stream.end.reason is EndReason.BUDGET
        assert stream.state.spent == 60


def test_a_label_tried_again_in_a_stream_keeps_its_number_and_goes_first():
    stream = MadeUpStream(seed=6, failing=0.3).run()
    failed = {event.number: event for event in stream.of(LabelFailed)}
    assert failed
    stream.failing = 0.0
    assert stream.requeue() == len(failed)
    stream.take_up()
    stream.hand_out()
    assert {name for name in stream.in_flight} <= {f"label-r{e.round:04d}-{e.item:04d}" for e in failed.values()}
    stream.run()
    check(stream)
    made = {event.number: event for event in stream.of(Labelled)}
    for number, failure in failed.items():
        assert made[number].identity == failure.identity
    assert stream.end.reason is EndReason.BUDGET
    assert stream.state.models[-1].labels == 60
    assert len(stream.of(Requeued)) == 1


def test_a_budget_raised_after_the_end_goes_on_without_a_barrier():
    stream = MadeUpStream(seed=7, least=3).run()
    assert stream.state.spent == 60
    before = len(stream.events)
    stream.take_up(settings(**{**STREAM, "labels__budget": 90}))
    stream.hand_out()
    kinds = {event.work for event in stream.events[before:] if isinstance(event, Submitted)}
    assert Work.WALK in kinds
    stream.run()
    check(stream)
    assert stream.state.spent == 90


def test_an_old_selection_that_a_model_overtook_still_fills_free_slots():
    """Where models come faster than selections, labels do not starve."""
    stream = MadeUpStream(seed=8, least=5, known=0.0)
    while not stream.flow.is_late:
        stream.hand_out()
        # a selection ends only when a model has come since it was asked for
        names = [n for n in sorted(stream.in_flight) if not n.startswith("select") or stream.flow.overtaken]
        late = [n for n in names if n.startswith("select")]
        stream.finish(late[0] if late else stream.random.choice(names or sorted(stream.in_flight)))
        assert len(stream.events) < 2000
    free = SLOTS + AHEAD - len(stream.flow.open)
    decision = stream.decide()
    labels = [request for request in decision.requests if request.work is Work.LABEL]
    assert len(labels) == min(free, stream.flow.waiting)
    assert [request.work for request in decision.requests].index(Work.SELECT) >= len(labels)
    stream.run()
    check(stream)
