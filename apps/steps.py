"""Where the pipeline's tasks meet Parsl."""

import concurrent.futures
import logging
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import parsl
from parsl.app.app import python_app
from parsl.config import Config
from parsl.errors import ParslError

from apps.notices import Notices
from apps.probe import mismatch, whereabouts
from apps.retries import LOST, RetryHandler, lost_for_good
from apps.slurm.names import job_name
from apps.worker import DRIVER_VARIABLE, carry_out, driver_code, this_node
from pipeline.errors import SiteError
from pipeline.events import Work
from pipeline.inline import InlineSteps
from pipeline.records import LabelTask, Result, SelectTask, Task, TrainTask, WalkTask
from pipeline.settings.site import InlineSite, LocalHTEXSite, LocalThreadsSite, Site, SlurmSite
from pipeline.steps import Notice, Steps
from site_configs import LABELS, local_htex, local_threads, slurm

PROBE_S = 180.0
"""How long workers of this machine may take to start, seconds."""
MOST_WAITING = 64
"""Labels that wait for a worker, at most: enough for the next ones to be at hand, few enough to stop soon."""


class ParslSteps:
    """Carries tasks out on the loaded Parsl configuration.

    Args:
        site: slots per kind of task, and the executor of each.
        notices: what happens to the machine.
    """

    def __init__(self, site: LocalThreadsSite | LocalHTEXSite | SlurmSite, notices: Notices) -> None:
        self._notices = notices
        self._has_priorities = not isinstance(site, LocalThreadsSite)
        routes = {Work(work): label for work, label in site.routes.items()}
        # by reference under its own name: a function that is decorated in place would travel by value
        self._apps = {work: python_app(carry_out, executors=[label]) for work, label in routes.items()}
        described = site.allocations if isinstance(site, SlurmSite) else ()
        self._sections = {work: f"site.{label}" if label in described else None for work, label in routes.items()}
        self._capacity = {
            Work.WALK: site.walk_slots,
            # labels can be short: the next ones wait at the engine
            Work.LABEL: site.label_slots + min(site.label_slots, MOST_WAITING),
            Work.SELECT: 1,
            Work.TRAIN: 1,
        }

    def capacity(self, work: Work) -> int:
        """Enough to keep all workers busy."""
        return self._capacity[work]

    def notices(self) -> tuple[Notice, ...]:
        """What was noticed since the last call."""
        return self._notices.take()

    def submit(self, task: Task, priority: int = 0) -> Future[Result]:
        """Hand a task to the executor of its kind; worker processes take the lowest priority first, threads any."""
        work = work_of(task)
        future: Future[Result] = Future()
        keywords = {"parsl_resource_specification": {"priority": priority}} if self._has_priorities else {}
        inner: Future[Result] = self._apps[work](task, **keywords)
        inner.add_done_callback(lambda done: _pass_on(done, future, self._sections[work]))
        return future


def work_of(task: Task) -> Work:
    """Kind of a task."""
    match task:
        case WalkTask():
            return Work.WALK
        case SelectTask():
            return Work.SELECT
        case LabelTask():
            return Work.LABEL
        case TrainTask():
            return Work.TRAIN


def _pass_on(done: Future[Result], future: Future[Result], section: str | None) -> None:
    error = done.exception()
    if error is None:
        future.set_result(done.result())
    elif isinstance(error, LOST):
        future.set_exception(lost_for_good(error, section))
    elif isinstance(error, ParslError):
        future.set_exception(
            SiteError(f"Parsl could not run the task: {error}.", "Look at runinfo/ and the site section.")
        )
    else:
        future.set_exception(error)


@contextmanager
def open_steps(site: Site, run_dir: Path, *, prefix: str = "farwalk") -> Iterator[Steps]:
    """Everything that is needed to carry tasks out, running while the block does.

    Call it in the main thread: worker processes are told to end with the thread that started them. On leaving, all jobs are
    cancelled, also those that still wait in the queue.

    Args:
        site: the ``site`` section.
        run_dir: where the engine may write its logs; on a cluster, a directory that all nodes see.
        prefix: what the names of batch jobs begin with.

    Raises:
        SiteError: workers do not start, or are of another farwalk.
    """
    if isinstance(site, InlineSite):
        with InlineSteps(this_node()) as inline:
            yield inline
        return
    notices = Notices()
    retry_handler = RetryHandler(notices)
    exports = {DRIVER_VARIABLE: driver_code()}
    match site:
        case LocalThreadsSite():
            config = local_threads.make_config(run_dir, site)
        case LocalHTEXSite():
            config = local_htex.make_config(run_dir, site, retry_handler=retry_handler, exports=exports)
        case SlurmSite():
            config = slurm.make_config(
                run_dir,
                site,
                job_names={label: job_name(prefix, label) for label in site.allocations},
                retry_handler=retry_handler,
                notify=notices.add,
                exports=exports,
            )
    with _loaded(config, site):
        if isinstance(
            site, LocalHTEXSite
        ):  # workers of a cluster may wait for hours: each checks itself at its first task
            _probe(site)
        yield ParslSteps(site, notices)


@contextmanager
def _loaded(config: Config, site: Site) -> Iterator[None]:
    """Parsl with this configuration; all of its processes, threads and jobs are gone afterwards.

    Raises:
        SiteError: a kind of task has no executor.
    """
    labels = {executor.label for executor in config.executors}
    if homeless := [work for work in LABELS if site.routes[work] not in labels]:
        raise SiteError(f"the site has no executor for {', '.join(homeless)} tasks.", f"It has {', '.join(labels)}.")
    logging.getLogger("parsl").setLevel(logging.WARNING)
    kernel = parsl.load(config)
    try:
        yield
    finally:
        kernel.cleanup()
        parsl.clear()


def _probe(site: LocalHTEXSite) -> None:
    """Wait until the workers answer, and check that each is of this farwalk.

    Raises:
        SiteError: they are not, or do not answer.
    """
    slots = {"walk": site.walk_slots, "label": site.label_slots, "select": 1, "train": 1}
    asked: dict[Any, str] = {
        python_app(whereabouts, executors=[label])(): label for label, count in slots.items() for _ in range(count)
    }
    done, late = concurrent.futures.wait(asked, timeout=PROBE_S)
    if late:
        labels = sorted({asked[future] for future in late})
        raise SiteError(f"workers for {', '.join(labels)} did not start within {PROBE_S:g} s.", "Look at runinfo/.")
    here = whereabouts()
    for future in done:
        error = future.exception()
        if error is not None:
            raise SiteError(
                f"a worker for {asked[future]} cannot import farwalk: {type(error).__name__}: {error}.",
                "Install farwalk in the environment of the workers.",
            ) from error
        if problem := mismatch(future.result(), here):
            raise SiteError(
                f"a worker for {asked[future]} is of {problem}.",
                "Start the driver from the environment that the workers use.",
            )
