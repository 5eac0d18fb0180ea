"""What the jobs of a SLURM site ask for, which device a worker takes, and what the scheduler's answers mean."""

import pickle
import shlex
import subprocess
from pathlib import Path

import pytest
from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost

from apps.notices import Notices
from apps.retries import RetryHandler, lost_for_good
from apps.worker import chosen_device, find_node
from pipeline.errors import SiteError
from pipeline.settings.allocation import Allocation
from pipeline.settings.site import SlurmSite
from site_configs import slurm_commands
from site_configs.slurm import STARTING_S, address_of, drain_period
from site_configs.slurm_commands import SchedulerError, job_number, refusal
from site_configs.slurm_executor import pause_after
from site_configs.slurm_fate import fate_of, never_starts, why_no_worker
from site_configs.slurm_jobs import VANISHED, Job, Queue, SlurmJobs
from site_configs.slurm_script import JobKind, clock, script
from site_configs.workers import RETRIES, worker_command


def site(walk=None, **others) -> SlurmSite:
    gpu = {"walltime": "1-01:30:00", "cores_per_node": 8, "gpus_per_node": 4, **(walk or {})}
    return SlurmSite.model_validate({"kind": "slurm", "walk": gpu, "label": {**gpu, "gpus_per_node": 0}, **others})


def text_of(settings: SlurmSite, label: str = "walk", output: Path = Path("/shared/walk-0")) -> str:
    kind = JobKind(label, f"farwalk-1a2b3c4d-{label}", settings, settings.allocations[label], {"FARWALK_DRIVER": "a b"})
    return script(kind, "start workers", output)


def options_of(text: str) -> list[str]:
    return [shlex.split(line)[1] for line in text.splitlines() if line.startswith("#SBATCH")]


def test_a_job_asks_for_what_the_site_says():
    walk = {
        "partition": "gpu",
        "qos": "long",
        "constraint": "a100&hbm80g",
        "memory_GB_per_node": 100,
        "exclusive": True,
    }
    options = options_of(text_of(site(walk, account="mat")))
    expected = "partition=gpu qos=long constraint=a100&hbm80g mem=100G exclusive account=mat nodes=1 ntasks-per-node=1"
    assert {f"--{word}" for word in expected.split()} <= set(options)
    assert {"--cpus-per-task=8", "--gpus-per-node=4", "--time=1-01:30:00", "--no-requeue"} <= set(options)


def test_an_allocation_s_own_account_and_gres_come_before_the_site_s_and_the_number_of_gpus():
    options = options_of(text_of(site({"account": "gpu-mat", "gres": "gpu:a100:4"}, account="mat")))
    assert "--account=gpu-mat" in options
    assert "--account=mat" not in options
    assert "--gres=gpu:a100:4" in options
    assert not any(option.startswith("--gpus-per-node") for option in options)


def test_name_and_output_of_a_job_are_the_campaign_s_whatever_the_user_s_options_say():
    walk = {"scheduler_options": ["--job-name=mine", "--requeue", "--exclude=node7"]}
    options = options_of(text_of(site(walk), output=Path("/shared/100% mine/walk-0")))
    assert [option for option in options if "job-name" in option][-1] == "--job-name=farwalk-1a2b3c4d-walk"
    assert options.index("--no-requeue") > options.index("--requeue")
    assert "--output=/shared/100%% mine/walk-0.out" in options  # SLURM reads % as a pattern
    assert "--exclude=node7" in options


def test_jobs_are_not_exclusive_and_ask_for_no_gpu_unless_told():
    options = options_of(text_of(site(), "label"))
    assert not any("gpu" in option or "gres" in option or option == "--exclusive" for option in options)


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(60, "0-00:01:00"), (90, "0-00:02:00"), (86400, "1-00:00:00"), (172800 + 3661, "2-01:02:00")],
)
def test_wall_times_beyond_a_day_and_parts_of_minutes_are_written_right(seconds, written):
    assert clock(seconds) == written


def ran(text: str, last: str, **environment: str) -> str:
    """What the script's environment holds where the worker would start."""
    body = text.replace("start workers", f"bash -c {shlex.quote(last)}")
    run = {"PATH": "/usr/bin:/bin", **environment}
    return subprocess.run(["bash", "-c", body], env=run, capture_output=True, text=True, check=True).stdout.strip()


def test_the_node_expands_variables_in_the_name_of_the_scratch_directory_and_nothing_else(tmp_path):
    settings = site(scratch='$PLACE/"my `date` scratch"')
    told = ran(text_of(settings), 'echo "$FARWALK_SCRATCH|$TMPDIR"', PLACE=str(tmp_path))
    assert told == f'{tmp_path}/"my `date` scratch"|{tmp_path}/"my `date` scratch"'


def test_a_scratch_directory_that_cannot_be_made_does_not_become_the_temporary_one():
    told = ran(text_of(site(scratch="/proc/no")), 'echo "$FARWALK_SCRATCH|$TMPDIR"')
    assert told == "/proc/no|"


def test_workers_know_when_their_job_ends(tmp_path):
    settings = site(scratch=str(tmp_path))
    left = ran(text_of(settings), "echo $(( FARWALK_JOB_ENDS - $(date +%s) ))")
    assert 91_790 <= int(left) <= 91_800
    assert ran(text_of(settings), "echo $FARWALK_JOB_ENDS", SLURM_JOB_END_TIME="1234") == "1234"


def test_workers_take_tasks_until_the_drain_also_when_they_start_late():
    drain, last = 180, {}
    for walltime in (600, 86_400):
        allocation = Allocation(walltime=walltime, cores_per_node=1, drain=drain)
        last[walltime] = walltime - drain_period(allocation) - drain
    assert last == {600: STARTING_S, 86_400: STARTING_S}
    assert drain_period(Allocation(walltime=60, cores_per_node=1)) == 20, "short jobs do something all the same"
    assert drain_period(Allocation(walltime=181, cores_per_node=1, drain=180)) == 1


def test_worker_init_of_the_site_comes_before_the_allocation_s_and_both_before_the_worker(tmp_path):
    settings = site({"worker_init": "export SEEN=$SEEN-own"}, worker_init="export SEEN=site", scratch=str(tmp_path))
    assert ran(text_of(settings), "echo $SEEN") == "site-own"


def test_workers_without_gpus_see_none(tmp_path):
    told = ran(
        text_of(site(scratch=str(tmp_path)), "label"), 'echo "[$CUDA_VISIBLE_DEVICES]"', CUDA_VISIBLE_DEVICES="3"
    )
    assert told == "[]"


def test_several_nodes_are_started_by_srun_with_one_pool_and_all_cores_on_each():
    text = text_of(site({"nodes_per_block": 3, "launcher_options": "--cpu-bind=none"}))
    step = "exec srun --nodes=3 --ntasks=3 --ntasks-per-node=1 --cpus-per-task=8 --overlap --cpu-bind=none bash -c"
    assert step in text
    assert "srun" not in text_of(site()).split("exec")[1]


def test_worker_pools_are_started_by_the_site_s_python_as_a_module():
    command = worker_command("/opt/my env/bin/python")
    assert command.startswith("'/opt/my env/bin/python' -P -m parsl.executors.high_throughput.process_worker_pool ")
    assert '--cert_dir "{cert_dir}"' in command


def environment(rank=0, workers=1, gpus=1, **others) -> dict[str, str]:
    counts = {"PARSL_WORKER_RANK": str(rank), "PARSL_WORKER_COUNT": str(workers), "FARWALK_GPUS_PER_NODE": str(gpus)}
    return {**counts, **others}


CUDA, ROCR, HIP = "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("given", "amd", "expected"),
    [
        (environment(gpus=0), False, ""),
        (environment(**{CUDA: "2"}), False, "2"),  # the second job on a node: SLURM's own number, not 0
        (environment(1, 4, 4, **{CUDA: "0,1,2,3"}), False, "1"),
        (environment(3, 4, 2, **{CUDA: "GPU-a,GPU-b"}), False, "GPU-b"),  # two workers on each
        (environment(1, 4, 2, **{CUDA: "4,6"}), False, "4"),
        (environment(3, 4, 4), False, "3"),  # SLURM sets nothing: the rank
        (environment(1, 2, 2, **{ROCR: "0,1", CUDA: "0,1"}), True, "1"),
        (environment(1, 2, 2, **{CUDA: "0,1"}), True, "1"),
        (environment(2, 8, 8), True, "2"),
    ],
)
def test_each_worker_takes_one_of_the_devices_that_its_job_was_given(given, amd, expected):
    assert chosen_device(given, amd=amd)[1] == expected


def test_on_amd_only_one_variable_is_set_because_they_index_one_into_another():
    given = environment(1, 2, 2, **{ROCR: "0,1", CUDA: "0,1"})
    assert chosen_device(given, amd=True)[0] == {ROCR: "1", HIP: None, CUDA: None}
    assert chosen_device(given, amd=False)[0] == {CUDA: "1"}
    assert chosen_device(environment(1, 2, 2), amd=True)[0] == {ROCR: "1", HIP: None, CUDA: None}


@pytest.mark.parametrize(
    "given",
    [
        environment(**{CUDA: "0,1"}),  # two GPUs for one worker
        environment(0, 4, 4, **{CUDA: "0,1"}),
        environment(0, 3, 2, **{CUDA: "0,1"}),
        environment(**{CUDA: "NoDevFiles"}),
    ],
)
def test_devices_that_do_not_fit_the_workers_are_refused(given):
    with pytest.raises(SiteError, match="GPUs"):
        chosen_device(given, amd=False)


def test_a_worker_finds_the_end_of_its_job_and_a_cache_of_its_own_user():
    node = find_node({"FARWALK_SCRATCH": "/local", "FARWALK_JOB_ENDS": "1800000000"})
    assert node.ends == 1_800_000_000.0
    assert node.cache is not None
    assert node.cache.parent == Path("/local")
    assert find_node({}).cache is None


LIMITS = (
    "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("Batch job submission failed: Invalid account or account/partition combination specified", "account"),
        ("Batch job submission failed: Invalid qos specification", "qos"),
        ("Batch job submission failed: Invalid feature specification", "constraint"),
        ("Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)", "walltime"),
        ("Batch job submission failed: Invalid generic resource (gres) specification", "gres"),
        ("Batch job submission failed: Requested node configuration is not available", "cores_per_node"),
        ("sbatch: unrecognized option '--nonsense'", "scheduler_options"),
        (f"QOSMaxWallDurationPerJobLimit; {LIMITS}", "walltime"),
        (f"QOSMaxCpuPerJobLimit; {LIMITS}", "cores_per_node"),
    ],
)
def test_refusals_that_do_not_pass_name_the_key_at_fault(words, key):
    verdict = refusal(words, "label", trusted=True)
    assert verdict.final
    assert f"{key}" in verdict.remedy.split(":")[0]
    assert "site.label" in verdict.remedy


@pytest.mark.parametrize(
    "words",
    [
        f"QOSMaxSubmitJobPerUserLimit; {LIMITS}",
        f"AssocMaxSubmitJobLimit; {LIMITS}",
        LIMITS,
        "Batch job submission failed: Resource temporarily unavailable",
        "Unable to contact slurm controller (connect failure)",
        "Batch job submission failed: Socket timed out on send/recv operation",
        "sbatch timed out after 30 s",
    ],
)
def test_refusals_that_pass_are_asked_again(words):
    assert not refusal(words, "label", trusted=False).final


def test_a_refusal_of_unknown_kind_is_final_until_a_job_was_accepted():
    assert refusal("the moon is full", "label", trusted=False).final
    assert not refusal("the moon is full", "label", trusted=True).final


def test_a_driver_that_is_a_job_does_not_hand_its_own_allocation_on(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_CPUS_PER_TASK", "CUDA_VISIBLE_DEVICES", "SLURM_CONF", "SBATCH_ACCOUNT"):
        monkeypatch.setenv(name, "set")
    seen = slurm_commands.call(["env"]).splitlines()
    assert {"SLURM_CONF=set", "SBATCH_ACCOUNT=set"} <= set(seen)
    assert not any(line.startswith(("SLURM_JOB_ID", "SLURM_CPUS", "CUDA")) for line in seen)


def test_a_command_that_fails_hangs_or_is_missing_says_so():
    for command, words in [
        (["no-such-command"], "not found"),
        (["sleep", "5"], "timed out"),
        (["sh", "-c", "echo 'sbatch: error: not today' >&2; exit 1"], "^not today$"),
    ]:
        with pytest.raises(slurm_commands.SchedulerError, match=words):
            slurm_commands.call(command, timeout_s=0.3)


def test_the_end_of_a_job_says_what_to_change_where_a_person_must():
    def fate(state):
        return fate_of(Job("12", Path("/x/walk-0"), 0.0, state=state), "walk")

    assert "site.walk.drain" in fate("TIMEOUT").remedy
    assert "memory" in fate("OUT_OF_MEMORY").remedy
    assert fate("COMPLETED").text == ""
    assert all(fate(state).excused for state in ("CANCELLED", "PREEMPTED", "NODE_FAIL"))


def test_a_job_that_can_never_start_is_told_with_its_key_and_one_that_waits_is_not():
    assert "site.walk.walltime" in never_starts("PartitionTimeLimit", "walk")
    assert never_starts("QOSMaxWallDurationPerJobLimit", "walk")
    assert never_starts("Priority", "walk") == never_starts("Resources", "walk") == ""
    assert never_starts("QOSMaxJobsPerUserLimit", "walk") == ""


def test_jobs_without_a_worker_end_with_the_last_lines_they_wrote(tmp_path):
    job = Job("12", tmp_path / "parsl.walk.block-0", 0.0, state="FAILED", node="gpu1")
    (tmp_path / "parsl.walk.block-0.err").write_text("\n".join(f"line {n}" for n in range(100)))
    error = why_no_worker(job, "walk", 3)
    assert "line 99" in error.message
    assert "line 50" not in error.message
    assert "gpu1" in error.message
    (tmp_path / "parsl.walk.block-0.err").write_text("ConnectionError: no route")
    assert "site.interface" in why_no_worker(job, "walk", 1).remedy


def prices(*errors: Exception) -> tuple[list[str], bool]:
    """What is told of a task that ends so again and again, and whether it may still be tried."""
    notices = Notices()
    handler = RetryHandler(notices)
    record = {"fail_cost": 0.0, "args": (), "func_name": "carry_out"}
    for error in errors:
        record["fail_cost"] += handler(error, record)
    return [notice.text for notice in notices.take()], record["fail_cost"] <= RETRIES


def test_a_worker_that_dies_is_replaced_twice_a_job_four_times_and_a_failure_never():
    worker, manager = WorkerLost(1, "gpu2"), ManagerLost(b"abc", "gpu2")
    told, again = prices(worker, worker)
    assert again
    assert told == [
        "carry_out: worker 1 on node gpu2 died; tried again (1 of 2)",
        "carry_out: worker 1 on node gpu2 died; tried again (2 of 2)",
    ]
    assert not prices(worker, worker, worker)[1]
    assert prices(manager, manager, manager, manager)[1]
    told, again = prices(*[manager] * 5)
    assert not again
    assert told[-1].endswith("given up")
    assert prices(ValueError("wrong")) == ([], False)


def test_a_task_that_was_lost_for_good_says_what_to_change():
    assert "site.label.memory_GB_per_node" in lost_for_good(WorkerLost(0, "cpu1"), "site.label").remedy
    error = lost_for_good(ManagerLost(b"abc", "cpu1"), "site.label")
    assert "site.label.walltime" in error.remedy
    assert "site" not in lost_for_good(WorkerLost(0, "laptop"), None).remedy
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_an_interface_that_is_not_there_is_told_with_those_that_are():
    assert address_of("lo") == "127.0.0.1"
    with pytest.raises(SiteError, match=r"hsn9.*lo"):
        address_of("hsn9")


def test_what_users_set_for_their_own_hands_does_not_reach_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "SBATCH_JOB_NAME",
        "SQUEUE_PARTITION",
        "SCANCEL_STATE",
        "SINFO_FORMAT",
        "SLURM_JOB_ID",
        "FARWALK_SCRATCH",
    ):
        monkeypatch.setenv(name, "x")
    for name in ("SLURM_CONF", "SLURM_JWT", "MODULEPATH"):
        monkeypatch.setenv(name, "x")
    left = slurm_commands.environment()
    assert {"SLURM_CONF", "SLURM_JWT", "MODULEPATH"} <= set(left)
    assert not [
        name for name in left if name.startswith(("SBATCH_", "SQUEUE_", "SCANCEL_", "SINFO_", "SLURM_JOB", "FARWALK_"))
    ]


@pytest.mark.parametrize(
    "answer",
    ["123\n", "123;cluster\n", "Welcome!\n123\nHave a nice day\n", "Submitted batch job 123 on cluster x\n"],
)
def test_the_number_of_a_job_is_found_in_whatever_wraps_sbatch_says(answer):
    assert job_number(answer) == "123"


def test_an_answer_of_sbatch_without_a_number_is_a_refusal():
    for answer in ("", "thank you\n"):
        with pytest.raises(SchedulerError, match="no job number"):
            job_number(answer)


def test_a_job_is_gone_when_two_looks_at_the_queue_miss_it_and_a_new_one_after_minutes(monkeypatch):
    cancelled = []
    monkeypatch.setattr("site_configs.slurm_jobs.call", cancelled.append)
    kind = JobKind("walk", "farwalk-1a2b3c4d-walk", site(), site().walk, {})
    jobs = SlurmJobs(kind, Queue((), lambda problem: None))
    jobs.jobs["7"] = job = Job("7", Path("walk-0"), submitted=1.0)
    jobs.jobs["8"] = new = Job("8", Path("walk-1"), submitted=1.0)
    jobs._update(6.0, {"7": ("RUNNING", "gpu1", "None")})
    jobs._update(11.0, {})
    jobs._update(11.0, {})  # the same look again
    assert job.state == "RUNNING"
    jobs._update(16.0, {"7": ("RUNNING", "gpu1", "None")})
    jobs._update(21.0, {})
    assert job.state == "RUNNING"
    jobs._update(26.0, {})
    assert (job.state, new.state) == (VANISHED, "PENDING")
    jobs._update(130.0, {})
    assert new.state == VANISHED
    assert [command[-1] for command in cancelled] == ["7", "8"]


def test_pauses_double_up_to_the_longest_however_often_it_was_in_vain():
    assert [pause_after(times) for times in (1, 2, 3, 4, 5, 100_000)] == [30.0, 60.0, 120.0, 240.0, 300.0, 300.0]
