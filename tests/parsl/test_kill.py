"""A driver killed at any instant loses nothing that was finished and labels nothing twice."""

import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from small_campaign import HERE, run, run_in_own_group, settings
from test_same_everywhere import dataset

from pipeline.errors import StoreError
from pipeline.event_log import read_events
from pipeline.events import EndReason, Labelled
from pipeline.lock import holder_of
from pipeline.settings.campaign import CampaignSettings
from pipeline.store import Store

pytestmark = [pytest.mark.parsl, pytest.mark.slow]

CALCULATOR = "counting_emt.CountingEMT"


def labelled(directory: Path) -> dict[str, int]:
    try:
        events = read_events(directory / "events.jsonl")
    except StoreError:
        return {}
    return {event.identity: event.number for event in events if isinstance(event, Labelled)}


def kill_again_and_again(directory: Path, chosen: CampaignSettings, kills: int, longest_s: float, seed: int) -> int:
    """Kill the driver's whole process group so many times, each at a random instant; then let it finish.

    Drivers are children of a server that has imported everything: one that starts in no time can be killed early.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["small_campaign", "counting_emt", "pipeline.inline"])
    arguments = (directory, chosen, str(directory.parent / "evaluations"))
    instants, done = random.Random(seed), 0
    while done < kills:
        process = context.Process(target=run_in_own_group, args=arguments)
        process.start()
        while process.is_alive() and not holder_of(directory / "lock"):
            time.sleep(0.002)
        process.join(instants.uniform(0, longest_s))
        if not process.is_alive():
            assert process.exitcode == 0
            return done
        before = labelled(directory)
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        assert before.items() <= labelled(directory).items(), "a finished label is gone"
        done += 1
    process = context.Process(target=run_in_own_group, args=arguments)
    process.start()
    process.join(300)
    assert process.exitcode == 0
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


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    directory = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        patch.setenv("COUNT_LOG", str(directory / "uninterrupted"))
        run(directory / "c", settings("inline", CALCULATOR))
    return dataset(directory / "c")


def test_a_driver_killed_twenty_times_gives_the_campaign_of_one_that_was_not(tmp_path, expected):
    (tmp_path / "killed").mkdir()
    directory = tmp_path / "killed" / "c"
    kills = kill_again_and_again(directory, settings("inline", CALCULATOR), kills=20, longest_s=0.5, seed=1)
    assert kills >= 10, "the campaign was over before it could be killed often enough"
    check_result(directory, expected, in_flight=1, kills=kills)


def test_workers_of_a_killed_driver_end_and_do_no_harm(tmp_path, expected):
    (tmp_path / "killed").mkdir()
    directory = tmp_path / "killed" / "c"
    kills = kill_again_and_again(directory, settings("local_htex", CALCULATOR), kills=2, longest_s=4.0, seed=2)
    assert kills >= 1
    check_result(directory, expected, in_flight=10, kills=kills)
    deadline = time.monotonic() + 60
    while left := [line for line in processes_with(str(directory)) if "forkserver" not in line]:
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
