"""Of labels that wait for a worker, the most valuable one begins first."""

import hashlib
import os
from dataclasses import replace

import numpy as np
import pytest
from small_campaign import HERE, systems

from apps.steps import open_steps
from pipeline.records import LabelTask, Status
from pipeline.settings.labels import ASEReference
from pipeline.settings.site import LocalHTEXSite, LocalThreadsSite

pytestmark = [pytest.mark.parsl, pytest.mark.slow]

PRIORITIES = (5, 2, 6, 1, 4, 3)


def label(tmp_path, number: int) -> LabelTask:
    (frame,) = systems()["copper"]
    moved = frame.positions + np.random.default_rng(number).normal(0, 0.05, frame.positions.shape)
    return LabelTask(
        task=f"label-r0001-{number:04d}",
        round=1,
        item=number,
        frame=replace(frame, positions=moved),
        reference=ASEReference(calculator="counting_emt.CountingEMT"),
        scratch=str(tmp_path / f"scratch-{number}"),
        threads=1,
    )


@pytest.mark.parametrize("site", [LocalHTEXSite(walk_slots=1, label_slots=1), LocalThreadsSite()])
def test_the_best_ranked_of_queued_labels_begins_first(tmp_path, monkeypatch, site):
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("COUNT_LOG", str(tmp_path / "log"))
    tasks = [label(tmp_path, number) for number in PRIORITIES]
    with open_steps(site, tmp_path / "runinfo") as steps:
        futures = [steps.submit(task, task.item) for task in tasks]
        assert {future.result(timeout=200).status for future in futures} == {Status.DONE}
    numbers = {hashlib.sha256(task.frame.positions.tobytes()).hexdigest(): task.item for task in tasks}
    order = [numbers[line] for line in (tmp_path / "log").read_text().split()]
    assert sorted(order) == sorted(PRIORITIES)
    if isinstance(site, LocalHTEXSite):
        assert order[1:] == sorted(order[1:])  # the first one found the worker without a task
