"""Ctrl-C in a terminal reaches every process of the foreground group: tasks in flight are finished all the same."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ase.io import write
from small_campaign import settings, systems

from pipeline.errors import StoreError
from pipeline.event_log import read_events
from pipeline.events import EndReason, Stopped, TaskFailed, Walked
from pipeline.settings.loading import dump_settings
from pipeline.store import Store

pytestmark = [pytest.mark.parsl, pytest.mark.slow]


def events_of(directory: Path):
    try:
        return read_events(directory / "events.jsonl")
    except StoreError:
        return ()


def start(tmp_path: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "apps.cli", "run", str(tmp_path / "campaign.yaml"), "--dir", str(tmp_path / "c")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_ctrl_c_lets_running_tasks_finish_and_the_next_run_goes_on(tmp_path):
    chosen = settings("local_htex")
    chosen = chosen.model_copy(update={"walkers": chosen.walkers.model_copy(update={"segment_steps": 400})})
    write(tmp_path / "unused.xyz", systems()["copper"][0].to_atoms(), format="extxyz")
    (tmp_path / "campaign.yaml").write_text(dump_settings(chosen))
    process = start(tmp_path)
    while process.poll() is None and not any(getattr(e, "work", "") == "walk" for e in events_of(tmp_path / "c")):
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()
    time.sleep(0.3)  # the walk tasks are at work now
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, out + err
    events = events_of(tmp_path / "c")
    assert sum(isinstance(event, Walked) for event in events) == 2, "a task in flight was thrown away"
    assert not any(isinstance(event, TaskFailed) for event in events)
    assert isinstance(events[-1], Stopped)
    assert events[-1].reason is EndReason.INTERRUPTED

    process = start(tmp_path)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, out + err
    state = Store(tmp_path / "c").state()
    assert state.spent == 32
    assert state.stopped is not None
    assert state.stopped.reason is EndReason.BUDGET
