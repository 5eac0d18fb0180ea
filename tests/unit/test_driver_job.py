"""The driver as a SLURM job: its script, what squeue says, who goes on after it."""

import shlex
import subprocess
from itertools import product
from pathlib import Path

import pytest

from apps.slurm.client import parse_clock, parse_jobs
from apps.slurm.driver_job import FRUITLESS, DriverJob, Following, who_goes_on
from apps.slurm.script import driver_script
from pipeline.errors import SettingsError
from pipeline.settings.site import SlurmSite

JOB = {"walltime": "01:00:00", "cores_per_node": 1}
PLACE = Path("/a b/c'd/100%/x.campaign")


def script(overrides: tuple[str, ...] = (), **driver: object) -> str:
    site = SlurmSite.model_validate(
        {"account": "everybody", "worker_init": "module load it", "walk": JOB, "label": JOB, "driver": driver}
    )
    return driver_script(site, "farwalk-12345678", campaign=Path("/a b/$HOME.yaml"), place=PLACE, overrides=overrides)


def options(text: str) -> dict[str, str]:
    words = [shlex.split(line.removeprefix("#SBATCH "))[0] for line in text.splitlines() if line.startswith("#SBATCH")]
    return {word.split("=", 1)[0]: word.partition("=")[2] for word in words}


def test_the_script_asks_for_the_drivers_own_job() -> None:
    found = options(script(partition="long", account="mine", walltime="2-00:00:00", stop_before="00:10:00", cores=3))
    assert found["--partition"] == "long"
    assert found["--account"] == "mine"
    assert found["--time"] == "2-00:00:00"
    assert found["--cpus-per-task"] == "3"
    assert found["--mem"] == "4G"
    assert found["--signal"] == "B:TERM@600"
    assert found["--job-name"] == "farwalk-12345678-driver"
    assert {"--requeue", "--open-mode", "--dependency"} <= found.keys()
    assert options(script())["--account"] == "everybody"


def test_options_of_the_user_cannot_hide_the_driver() -> None:
    found = options(script(scheduler_options=["--job-name=other", "--output=other", "--exclude=node7"]))
    assert found["--job-name"] == "farwalk-12345678-driver"
    assert found["--output"] == str(PLACE / "driver.out").replace("%", "%%")
    assert found["--exclude"] == "node7"


def test_the_shell_hands_every_path_and_setting_on_as_it_is(tmp_path: Path) -> None:
    text = script(("labels.budget=20", "name=a'b c"), worker_init="export FROM_INIT=1")
    assert subprocess.run(["bash", "-n"], input=text, text=True, timeout=10, check=False).returncode == 0
    before, _, command = text.rpartition("\nexec ")
    assert before.index("module load it") < before.index("export FROM_INIT=1")
    shown = subprocess.run(
        ["bash", "-c", f"farwalk_fruitless=2; printf '%s\\n' {command}"],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    ).stdout.splitlines()
    assert shown[shown.index("run") + 1] == "/a b/$HOME.yaml"
    assert shown[shown.index("--dir") + 1] == str(PLACE)
    assert [shown[k + 1] for k, word in enumerate(shown) if word == "--set"] == ["labels.budget=20", "name=a'b c"]
    assert shown[-2:] == ["--as-job", "2"]


def test_squeue_is_read_whatever_the_reason_says() -> None:
    answer = (
        "12|farwalk-1-walk|RUNNING|gpu[1-2]|1-02:03:04|59:56|None\n"
        "9|farwalk-1-driver|PENDING||0:00|UNLIMITED|Nodes|reserved\n"
    )
    waiting, running = parse_jobs(answer)
    assert (waiting.id, waiting.waits, waiting.left_s, waiting.reason) == ("9", True, None, "Nodes|reserved")
    assert (running.node, running.elapsed_s, running.left_s) == ("gpu[1-2]", 93784, 3596)
    assert not running.waits
    assert not running.ends
    assert parse_jobs("") == ()


@pytest.mark.parametrize(
    ("text", "seconds"), [("0:05", 5), ("2:00:00", 7200), ("3-00:00:01", 259201), ("INVALID", None), ("", None)]
)
def test_times_of_squeue_are_seconds(text: str, seconds: int | None) -> None:
    assert parse_clock(text) == seconds


def test_a_running_job_gets_a_successor_and_a_requeued_one_is_started_again_by_slurm() -> None:
    usual = {"stop_wanted": False, "got_on": True, "fruitless": 0}
    assert who_goes_on(is_ending=False, is_requeued=False, **usual) is Following.NEW_JOB
    assert who_goes_on(is_ending=True, is_requeued=True, **usual) is Following.SAME_JOB
    assert who_goes_on(is_ending=True, is_requeued=False, **usual) is Following.NOBODY_CANCELLED


def test_no_new_job_against_the_will_of_a_person() -> None:
    for is_ending, stop_wanted, got_on, fruitless in product((False, True), (False, True), (False, True), range(4)):
        following = who_goes_on(
            is_ending=is_ending, is_requeued=False, stop_wanted=stop_wanted, got_on=got_on, fruitless=fruitless
        )
        if is_ending or stop_wanted:
            assert following not in (Following.NEW_JOB, Following.SAME_JOB)


def test_a_chain_of_drivers_that_get_nowhere_ends() -> None:
    fruitless, drivers = 0, 1
    while (
        who_goes_on(is_ending=False, is_requeued=False, stop_wanted=False, got_on=False, fruitless=fruitless)
        is Following.NEW_JOB
    ):
        fruitless, drivers = fruitless + 1, drivers + 1
    assert drivers == FRUITLESS


def test_a_driver_outside_of_a_job_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(SettingsError, match="farwalk submit"):
        DriverJob.here("farwalk-1", Path("driver.sh"), stop_before_s=60.0, fruitless=0)
