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

from apps.probe import whereabouts
from apps.retries import LOST, retry_handler
from pipeline.errors import LostWorkerError, SiteError
from pipeline.events import Work
from pipeline.inline import InlineSteps
from pipeline.label import run_label
from pipeline.records import LabelTask, Result, SelectTask, Task, TrainTask, WalkTask
from pipeline.select import run_select
from pipeline.settings.site import InlineSite, LocalHTEXSite, LocalThreadsSite, ResourceSettings, Site, SlurmSite
from pipeline.steps import Notice, Steps
from pipeline.train import run_train
from pipeline.walk import run_walk
from site_configs import LABELS, local_htex, local_threads

# other names than the functions': decorated in place they would travel by value instead of by name
walk_app = python_app(run_walk, executors=["walk"])
label_app = python_app(run_label, executors=["label"])
select_app = python_app(run_select, executors=["select"])
train_app = python_app(run_train, executors=["train"])

PROBE_S = 180.0
"""How long workers may take to start, seconds."""


class ParslSteps:
    """Carries tasks out on the loaded Parsl configuration.

    Args:
        resources: slots per kind of task.
    """

    def __init__(self, resources: ResourceSettings) -> None:
        self._capacity = {
            Work.WALK: resources.walk_slots,
            Work.LABEL: 2 * resources.label_slots,  # labels can be short: the next one waits at the worker
            Work.SELECT: 1,
            Work.TRAIN: 1,
        }

    def capacity(self, work: Work) -> int:
        """Enough to keep all workers busy."""
        return self._capacity[work]

    def notices(self) -> tuple[Notice, ...]:
        """What was noticed since the last call."""
        return ()

    def submit(self, task: Task) -> Future[Result]:
        """Hand a task to the executor of its kind."""
        future: Future[Result] = Future()
        inner: Future[Result] = _app_of(task)(task)
        inner.add_done_callback(lambda done: _pass_on(done, future))
        return future


def _app_of(task: Task) -> Any:  # noqa: ANN401  # Parsl's apps have no types
    match task:
        case WalkTask():
            return walk_app
        case SelectTask():
            return select_app
        case LabelTask():
            return label_app
        case TrainTask():
            return train_app


def _pass_on(done: Future[Result], future: Future[Result]) -> None:
    error = done.exception()
    if error is None:
        future.set_result(done.result())
    elif isinstance(error, LOST):
        future.set_exception(
            LostWorkerError(f"its worker died, three times: {error}.", "Look for memory that ran out.")
        )
    elif isinstance(error, ParslError):
        future.set_exception(
            SiteError(f"Parsl could not run the task: {error}.", "Look at runinfo/ and the site section.")
        )
    else:
        future.set_exception(error)


@contextmanager
def open_steps(site: Site, run_dir: Path, *, prefix: str = "farwalk") -> Iterator[Steps]:
    """Everything that is needed to carry tasks out, running while the block does.

    Call it in the main thread: worker processes are told to end with the thread that started them.

    Args:
        site: the ``site`` section.
        run_dir: where the engine may write its logs.
        prefix: what the names of batch jobs begin with.

    Raises:
        SiteError: workers do not start, or are of another farwalk.
    """
    match site:
        case InlineSite():
            with InlineSteps() as steps:
                yield steps
        case LocalThreadsSite():
            with _loaded(local_threads.make_config(run_dir, site)):
                yield ParslSteps(site)
        case LocalHTEXSite():
            with _loaded(local_htex.make_config(run_dir, site, retry_handler)):
                _probe(site)
                yield ParslSteps(site)
        case SlurmSite():
            raise SiteError(f"SLURM sites cannot be run yet ({prefix}).", "Use local_htex.")


@contextmanager
def _loaded(config: Config) -> Iterator[None]:
    """Parsl with this configuration; all of its processes and threads are gone afterwards."""
    assert sorted(executor.label for executor in config.executors) == sorted(LABELS)
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
    asked = {
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
        if future.result() != here:
            raise SiteError(
                f"a worker for {asked[future]} runs {future.result()}, the driver {here}.",
                "Start the driver from the environment that the workers use.",
            )
