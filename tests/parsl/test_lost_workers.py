"""A worker that dies costs a retry; a task that kills every worker becomes an error that says so; failures are not retried."""

import os

import pytest
from small_campaign import HERE, systems

from apps.steps import open_steps
from pipeline.errors import LostWorkerError
from pipeline.records import LabelTask, Status
from pipeline.settings.labels import ASEReference
from pipeline.settings.site import LocalHTEXSite

pytestmark = [pytest.mark.parsl, pytest.mark.slow]

WAIT_S = 200


def label(tmp_path, name: str, **reference: object) -> LabelTask:
    (frame,) = systems()["copper"]
    return LabelTask(
        task=name,
        round=0,
        item=0,
        frame=frame,
        reference=ASEReference(**reference),
        scratch=str(tmp_path / name),
        threads=1,
    )


def test_lost_workers_are_retried_and_failures_are_not(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]))
    with open_steps(LocalHTEXSite(), tmp_path / "runinfo") as steps:
        marker = {"marker": str(tmp_path / "marker")}
        once = steps.submit(label(tmp_path, "once", calculator="deadly.Deadly", arguments=marker))
        assert once.result(timeout=WAIT_S).status is Status.DONE

        always = steps.submit(label(tmp_path, "always", calculator="deadly.Deadly"))
        error = always.exception(timeout=WAIT_S)
        assert isinstance(error, LostWorkerError), error

        wrong = steps.submit(label(tmp_path, "wrong", calculator="no.such.Calculator"))
        result = wrong.result(timeout=WAIT_S)
        assert result.status is Status.FAILED
        assert "no" in result.reason
