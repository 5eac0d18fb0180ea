"""What Parsl really sends: a task with its function, packed as for the wire."""

from pathlib import Path

import pytest
from parsl.serialize import pack_apply_message, serialize, unpack_apply_message
from small_campaign import run, settings, systems

from apps.worker import carry_out
from pipeline.events import Work
from pipeline.requests import Request
from pipeline.store import Store
from pipeline.tasks import TaskMaker

pytestmark = pytest.mark.parsl

LARGEST = 100_000
"""Bytes."""


@pytest.fixture(scope="module")
def campaign(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("sizes") / "c"
    run(directory, settings())
    return directory


@pytest.mark.parametrize("work", list(Work))
def test_tasks_and_results_are_small_on_the_wire(campaign, work):
    store = Store.open(campaign)
    maker = TaskMaker(store, settings(), list(systems()["copper"]), "1-1")
    state = store.state()
    request = Request(
        work, 0 if work is Work.LABEL else state.round, len(state.models) + 1 if work is Work.TRAIN else 0
    )
    task = maker.make(request, state).task
    packed = pack_apply_message(carry_out, (task,), {})
    assert len(packed) < LARGEST / 10
    function, arguments, options = unpack_apply_message(packed)
    result = function(*arguments, **options)
    assert result.task == request.name
    assert not result.reason
    assert len(serialize(result)) < LARGEST / 10
