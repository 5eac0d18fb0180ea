"""A driver killed at any instant loses nothing that was finished and labels nothing twice."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from small_campaign import HERE, run, settings
from test_same_everywhere import dataset

from pipeline.errors import StoreError
from pipeline.event_log import read_events
from pipeline.events import EndReason, Labelled
from pipeline.lock import holder_of
from pipeline.store import Store

pytestmark = [pytest.mark.parsl, pytest.mark.slow]

CALCULATOR = "counting_emt.CountingEMT"


def start(directory: Path, site: str, log: Path) -> subprocess.Popen:
    environment = {**os.environ, "COUNT_LOG": str(log), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, str(HERE / "small_campaign.py"), str(directory), site, CALCULATOR],
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def labelled(directory: Path) -> dict[str, int]:
    try:
        events = read_events(directory / "events.jsonl")
    except StoreError:
        return {}
    return {event.identity: event.number for event in events if isinstance(event, Labelled)}


def kill_again_and_again(directory: Path, site: str, kills: int, longest_s: float, seed: int) -> int:
    """Kill the driver's whole process group so many times, each at a random instant; then let it finish."""
    log, instants, done = directory.parent / "evaluations", random.Random(seed), 0
    while done < kills:
        process = start(directory, site, log)
        while process.poll() is None and not holder_of(directory / "lock"):
            time.sleep(0.005)
        try:
            process.wait(instants.uniform(0, longest_s))
        except subprocess.TimeoutExpired:
            before = labelled(directory)
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            after = labelled(directory)
            assert before.items() <= after.items(), "a finished label is gone"
            done += 1
        else:
            break
    process = start(directory, site, log)
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors.decode()
    return done


def check_result(directory: Path, expected, in_flight: int, kills: int) -> None:
    state = Store(directory).state()
    assert state.stopped is not None
    assert state.stopped.reason is EndReason.BUDGET
    assert dataset(directory) == expected
    assert state.labelled == 32, "a label is recorded twice"
    assert sorted(labelled(directory).values()) == list(range(32))
    evaluations = Counter((directory.parent / "evaluations").read_text().split())
    assert len(evaluations) == 32
    # only a calculation that a kill cut off between its end and the writing of its result may have been made again
    assert evaluations.total() - 32 <= in_flight * kills // 5
    assert not any(path.name.endswith(".tmp") for path in directory.rglob("*")), "torn files stay behind"


@pytest.fixture
def expected(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("COUNT_LOG", str(tmp_path / "uninterrupted"))
    run(tmp_path / "plain" / "c", settings("inline", CALCULATOR))
    return dataset(tmp_path / "plain" / "c")


def test_a_driver_killed_twenty_times_gives_the_campaign_of_one_that_was_not(tmp_path, expected):
    (tmp_path / "killed").mkdir()
    directory = tmp_path / "killed" / "c"
    kills = kill_again_and_again(directory, "inline", kills=20, longest_s=1.0, seed=1)
    assert kills >= 10, "the campaign was over before it could be killed often enough"
    check_result(directory, expected, in_flight=1, kills=kills)


def test_workers_of_a_killed_driver_end_and_do_no_harm(tmp_path, expected):
    (tmp_path / "killed").mkdir()
    directory = tmp_path / "killed" / "c"
    kills = kill_again_and_again(directory, "local_htex", kills=3, longest_s=4.0, seed=2)
    assert kills >= 1
    check_result(directory, expected, in_flight=10, kills=kills)
    deadline = time.monotonic() + 60
    while left := processes_with(str(directory)):
        assert time.monotonic() < deadline, left
        time.sleep(1)


def processes_with(text: str) -> list[str]:
    """Command lines that hold a text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if text in line:
            found.append(line)
    return found
