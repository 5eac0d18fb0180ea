"""One worker of every executor, in the real queue, says what it finds; what is wrong with that becomes findings."""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parsl.app.app import python_app

from apps.probe import SAME_FARWALK, mismatch, whereabouts
from apps.slurm.client import jobs_named
from apps.slurm.names import job_name
from apps.surroundings import TOKEN, Surroundings, look_around
from pipeline.errors import PipelineError, SiteError
from pipeline.settings.site import LocalHTEXSite, Site, SlurmSite

POLL_S = 2.0
"""How often the queue is looked at, seconds."""
ANSWER_S = 180.0
"""How long a worker may take from the start of its job to its answer, seconds: modules and imports from a slow disk."""
LINGER_S = 20.0
"""How long to wait for jobs that are still queued once something is found wrong, seconds: it must be mended anyway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something wrong with one executor, and what to do."""

    executor: str
    text: str
    remedy: str


@dataclass(slots=True, kw_only=True)
class Executor:
    """One executor while it is waited for.

    Attributes:
        label: of the executor.
        state: of its job as SLURM says it, e.g. ``PENDING``; empty without a batch system or before it is known.
        reason: why the job waits.
        queued_s: seconds until its job was seen to run; None without a batch system or while it waits.
        answered_s: seconds until its worker answered.
        found: the answer.
        findings: what is wrong.
        notes: what is worth knowing and no reason to stop.
    """

    label: str
    state: str = ""
    reason: str = ""
    queued_s: float | None = None
    answered_s: float | None = None
    found: Surroundings | None = None
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def phase(self) -> str:
        """In words."""
        if self.found is not None:
            return "answered"
        if self.findings:
            return "failed"
        if self.state == "PENDING":
            return f"queued ({self.reason})" if self.reason not in ("", "None") else "queued"
        if self.state:
            return "started" if self.state == "RUNNING" else self.state.lower()
        return "starting"

    def finding(self, text: str, remedy: str) -> None:
        """Something is wrong."""
        self.findings.append(Finding(executor=self.label, text=text, remedy=remedy))


def one_job_each(site: Site) -> Site:
    """The site with as little as shows whether it works: at most one job per executor."""
    if not isinstance(site, SlurmSite):
        return site
    small = {
        label: allocation.model_copy(update={"min_blocks": 0, "max_blocks": 1})
        for label, allocation in site.allocations.items()
    }
    return site.model_copy(update=small)


def jobs_for_labels(site: Site, count: int) -> Site:
    """The site with as many jobs for labels as that many labels can use, at most one of other kinds."""
    if not isinstance(site, SlurmSite):
        return site
    per_job = max(1, site.label_slots // site.label.max_blocks)
    most = min(site.label.max_blocks, -(-count // per_job))
    return one_job_each(site).model_copy(
        update={"label": site.label.model_copy(update={"min_blocks": 0, "max_blocks": most})}
    )


def executors_of(site: Site) -> tuple[str, ...]:
    """Labels of the executors with processes of their own."""
    return tuple(dict.fromkeys(site.routes.values())) if isinstance(site, LocalHTEXSite | SlurmSite) else ()


def ask_workers(
    site: Site, directory: Path, prefix: str, tell: Callable[[str], None], labels: Sequence[str] | None = None
) -> list[Executor]:
    """Ask one worker of every executor of the loaded site what it finds, and wait for all.

    Jobs may wait in the queue as long as they like; a job that runs must answer within three minutes.

    Args:
        site: as it is loaded.
        directory: existing directory on a disk that driver and workers share.
        prefix: of the job names.
        tell: is told how far all are, whenever that changes.
        labels: of the executors to ask; None: all.
    """
    token = secrets.token_hex(16)
    (directory / TOKEN).write_text(token, encoding="utf-8")
    began = time.monotonic()
    executors = [Executor(label=label) for label in executors_of(site) if labels is None or label in labels]
    pending: dict[Future[dict[str, Any]], Executor] = {
        python_app(look_around, executors=[executor.label])(str(directory), token): executor for executor in executors
    }
    said, first_finding, asked_queue = "", None, -POLL_S
    while pending:
        now = time.monotonic() - began
        if isinstance(site, SlurmSite) and now - asked_queue >= POLL_S:
            asked_queue = now
            _look_at_queue([e for e in pending.values() if e.queued_s is None], prefix, now)
        for future in [future for future in pending if future.done()]:
            _take_answer(pending.pop(future), future, site, now)
        _give_up(pending, now, first_finding)
        if first_finding is None and any(executor.findings for executor in executors):
            first_finding = now
        phases = ", ".join(f"{executor.label} {executor.phase}" for executor in executors)
        if phases != said:
            said = phases
            tell(phases)
        wait(pending, timeout=0.2)
    return executors


def _look_at_queue(executors: list[Executor], prefix: str, now: float) -> None:
    """Bring states of jobs up to date; the queue that does not answer changes nothing."""
    named = {job_name(prefix, executor.label): executor for executor in executors}
    if not named:
        return
    try:
        jobs = jobs_named(list(named))
    except SiteError:
        return
    for job in jobs:
        executor = named[job.name]
        executor.state, executor.reason = job.state, job.reason
        if not job.waits and not job.ends:
            executor.queued_s = max(now - (job.elapsed_s or 0), 0.0)


def _take_answer(executor: Executor, future: Future[dict[str, Any]], site: Site, now: float) -> None:
    error = future.exception()
    executor.answered_s = now
    if isinstance(error, PipelineError):
        executor.finding(error.message, error.remedy)
    elif error is not None:
        executor.finding(
            f"its worker cannot run this farwalk: {type(error).__name__}: {error}",
            "Install the driver's farwalk in the environment of the workers, and name that in site.python or "
            "site.worker_init.",
        )
    else:
        if isinstance(site, SlurmSite) and executor.queued_s is None:
            executor.queued_s = now  # it started and answered between two looks at the queue
        try:
            executor.found = Surroundings.from_values(future.result())
        except (KeyError, TypeError):
            executor.finding(f"its worker runs another farwalk: {future.result().get('place')}", SAME_FARWALK)
        else:
            judge(executor, executor.found, site)


def _give_up(pending: dict[Future[dict[str, Any]], Executor], now: float, first_finding: float | None) -> None:
    """Stop waiting for workers whose job runs but that stay silent, and for the queue once something must be mended."""
    for future, executor in list(pending.items()):
        if executor.queued_s is not None and now - executor.queued_s > ANSWER_S:
            del pending[future]
            executor.finding(
                f"its job runs, but no worker has called within {ANSWER_S:g} s",
                "The node may not reach the driver: name the network interface of the driver's node that it sees in "
                "site.interface; or site.worker_init takes too long.",
            )
        elif first_finding is not None and executor.queued_s is None and now - first_finding > LINGER_S:
            del pending[future]
            executor.notes.append(f"not asked: still {executor.phase}")


def judge(executor: Executor, found: Surroundings, site: Site) -> None:
    """What is wrong with an answer, as findings and notes of its executor."""
    if difference := mismatch(found.place, whereabouts()):
        executor.finding(f"its worker runs {difference}", SAME_FARWALK)
    _judge_devices(executor, found, _gpus_of(site, executor.label))
    if found.scratch_problem:
        executor.finding(
            f"scratch {found.scratch} cannot be written: {found.scratch_problem}",
            "Set site.scratch to a directory on the node's own disk that exists and is yours.",
        )
    if found.directory_problem:
        executor.finding(
            f"the disk of the campaign directory cannot be used: {found.directory_problem}",
            "Choose a --dir on a disk that all nodes share.",
        )
    threads = {"walk": site.walk_threads, "label": site.label_threads, "train": site.train_threads}
    if found.cores < threads.get(executor.label, 1):
        executor.notes.append(f"a worker may use {found.cores} cores, the site says {threads[executor.label]}")


def _judge_devices(executor: Executor, found: Surroundings, wanted: int) -> None:
    text, remedy = found.refusal
    if text:
        executor.finding(text, remedy)
    elif wanted and not found.given and not found.devices:
        executor.finding(
            f"its worker sees no GPU, and the site says {wanted} per node",
            f"Ask for them with site.{executor.label}.gpus_per_node or gres, in a partition that has them; and install "
            "a torch for them.",
        )
    elif found.devices > 1:
        executor.finding(
            f"its worker sees {found.devices} GPUs instead of its own ({_variables(found.given)})",
            "Each worker needs exactly one: let gpus_per_node and gres ask for as many as there are workers.",
        )
    elif wanted and not found.devices:
        executor.notes.append(f"a GPU was given ({_variables(found.given)}), but torch {found.torch} sees none")


def _gpus_of(site: Site, label: str) -> int:
    if isinstance(site, SlurmSite):
        return site.allocations[label].gpus_per_node
    return site.gpus if isinstance(site, LocalHTEXSite) and label in ("walk", "train") else 0


def _variables(given: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in given.items()) or "no variable set"
