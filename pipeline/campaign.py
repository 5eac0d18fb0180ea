"""The loop: ask the policy, hand tasks out, wait for the first, record, repeat."""

import importlib.metadata
import logging
import os
import platform
import socket
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import LostWorkerError, PipelineError, SettingsError, TaskError
from pipeline.event_log import EventLog
from pipeline.events import (
    SCHEMA,
    Created,
    EndReason,
    Event,
    Resumed,
    Stopped,
    Submitted,
    TaskFailed,
    Work,
)
from pipeline.frames import Frame
from pipeline.initial import digest_of, starts_in_turn
from pipeline.lock import DriverLock
from pipeline.policy import Decision, End, Request, decide
from pipeline.recording import Finished, Recorder, nothing_to_select
from pipeline.records import Result
from pipeline.settings.campaign import CampaignSettings
from pipeline.settings.changes import refused_changes, science_digest
from pipeline.settings.loading import dump_settings
from pipeline.state import CampaignState, apply, fold
from pipeline.steps import Steps
from pipeline.store import Store
from pipeline.structures import Systems
from pipeline.tasks import Job, TaskMaker

logger = logging.getLogger(__name__)

POLL_S = 0.5
"""How often the loop looks for a soft stop and the wall-time limit while it waits, seconds."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, and what is known then."""

    reason: EndReason
    message: str
    state: CampaignState


@dataclass(frozen=True, slots=True)
class Campaign:
    """A campaign directory that fits its settings and start structures, ready to run.

    Attributes:
        store: its directory.
        settings: in force from now on.
        starts: different start structures, one of each system in turn.
        is_new: made just now.
    """

    store: Store
    settings: CampaignSettings
    starts: tuple[Frame, ...]
    is_new: bool

    @classmethod
    def create_or_open(cls, settings: CampaignSettings, systems: Systems, directory: Path) -> "Campaign":
        """Make a campaign directory, or take up the one that is there.

        Args:
            settings: complete settings, files of the reference as absolute paths.
            systems: start structures by system.
            directory: new, empty, or a campaign's.

        Raises:
            SettingsError: the campaign there was begun with other settings or structures.
            StoreError: the directory holds something else, or is damaged.
        """
        starts = tuple(starts_in_turn(systems))
        if (directory / "events.jsonl").is_file():
            store = Store.open(directory)
            _check_same(store.state(), settings, starts, directory)
            return cls(store, settings, starts, is_new=False)
        created = Created(
            time=time.time(),
            schema=SCHEMA,
            settings=settings.model_dump(mode="json"),
            digest=science_digest(settings),
            structures=digest_of(starts),
            versions=_versions(),
        )
        store = Store.create(directory, settings_yaml=dump_settings(settings), first=created)
        return cls(store, settings, starts, is_new=True)

    def run(
        self,
        steps: Steps,
        *,
        on_event: Callable[[Event], None] = lambda event: None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> Outcome:
        """Run until the campaign ends or a stop is asked for; nothing is in flight on return.

        Args:
            steps: carries tasks out.
            on_event: called after each event is on disk.
            stop_requested: asked about twice a second; once true, no new tasks are handed out.

        Raises:
            StoreError: another driver runs this campaign, or its directory is damaged or full.
            TaskError: a task failed and the campaign cannot go on; recorded, and tried anew on the next run.
        """
        with DriverLock(self.store.lock_path):
            self.store.discard_unfinished()
            log = self.store.open_log()
            try:
                driver = _Driver(self, steps, log, on_event)
                return driver.run(stop_requested)
            finally:
                log.close()


@dataclass(slots=True)
class _Driver:
    """One run of a campaign: the only part with changing state.

    Attributes:
        waiting: requests that are asked for but not handed out.
        running: tasks handed out.
        bug: the first exception of a task that has a bug.
    """

    campaign: Campaign
    steps: Steps
    log: EventLog
    on_event: Callable[[Event], None]
    waiting: deque[Request] = field(default_factory=deque)
    running: dict[Future[Result], Job] = field(default_factory=dict)
    bug: BaseException | None = None
    state: CampaignState = field(init=False)
    maker: TaskMaker = field(init=False)
    recorder: Recorder = field(init=False)

    def __post_init__(self) -> None:
        store, settings = self.campaign.store, self.campaign.settings
        session = f"{os.getpid()}-{time.time_ns()}"
        self.state = fold(self.log.events)
        self.maker = TaskMaker(store, settings, self.campaign.starts, session)
        self.recorder = Recorder(store, settings)

    def run(self, stop_requested: Callable[[], bool]) -> Outcome:
        """The loop."""
        if not self.campaign.is_new or len(self.log.events) > 1:
            resumed = _resumed(self.campaign.settings)
            stopped = self.state.stopped
            end = self._decide(apply(self.state, resumed)).end
            if stopped is not None and end is not None and end.reason is stopped.reason:
                return Outcome(stopped.reason, stopped.message, self.state)
            self._tell(resumed)
        while True:
            end = self._hand_out(stop_requested())
            if end is not None and not self.running:
                return self._finish(end)
            wait(self.running, timeout=POLL_S, return_when=FIRST_COMPLETED)
            self._record_done()

    def _decide(self, state: CampaignState) -> Decision:
        waiting = {request.name for request in self.waiting}
        running = {job.request.name for job in self.running.values()}
        return decide(state, self.campaign.settings, now=time.time(), in_flight=frozenset(waiting | running))

    def _hand_out(self, stop: bool) -> End | None:
        """Bring everything into flight that can be; says why not, when the campaign ends."""
        decision = self._decide(self.state)
        while decision.gather and not stop:
            self._tell(self.recorder.gather(self.state, now=time.time()))
            decision = self._decide(self.state)
        end = decision.end
        if stop:
            end = End(EndReason.INTERRUPTED, "stopped on request; run it again to go on")
        if end is not None:
            self.waiting.clear()
            return end
        self._announce(decision.requests)
        self._fill()
        return None

    def _announce(self, requests: tuple[Request, ...]) -> None:
        if not requests:
            return
        first = requests[0]
        if first.work is Work.SELECT and not any(walk.count for walk in self.state.walked):
            self._tell(nothing_to_select(self.state, now=time.time()))
            return
        names = tuple(request.name for request in requests)
        self._tell(Submitted(time=time.time(), work=first.work, round=first.round, tasks=names))
        self.waiting.extend(requests)

    def _fill(self) -> None:
        """Hand out waiting requests up to the capacity of the steps."""
        while self.waiting:
            work = self.waiting[0].work
            busy = sum(job.request.work is work for job in self.running.values())
            if busy >= self.steps.capacity(work):
                return
            job = self.maker.make(self.waiting.popleft(), self.state)
            self.running[self.steps.submit(job.task)] = job

    def _record_done(self) -> None:
        done = [future for future in self.running if future.done()]
        finished, failures = [], []
        for future in done:
            job = self.running.pop(future)
            error = future.exception()
            if error is None:
                finished.append(Finished(job, future.result()))
            elif isinstance(error, LostWorkerError) and job.request.work is Work.LABEL:
                finished.append(Finished(job, None, str(error)))
            else:
                failures.append(self._failed(job, error))
        now = time.time()
        events = self.recorder.record(finished, self.state, now=now, sequence=self.log.next_sequence)
        self._tell(*events, *failures)
        for one in finished:
            if one.result is not None and not _keeps_scratch(one):
                self.campaign.store.clear_scratch(one.job.request.name)

    def _failed(self, job: Job, error: BaseException) -> TaskFailed:
        """A task whose worker raised: a bug, or a machine that does not work."""
        logger.error("%s raised", job.request.name, exc_info=error)
        self.bug = self.bug or error
        reason = str(error) if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}"
        request = job.request
        return TaskFailed(time=time.time(), work=request.work, round=request.round, task=request.name, reason=reason)

    def _tell(self, *events: Event) -> None:
        """Events on disk first, then in the state, then to whoever watches."""
        self.log.append(events)
        for event in events:
            self.state = apply(self.state, event)
            self.on_event(event)

    def _finish(self, end: End) -> Outcome:
        self._tell(Stopped(time=time.time(), reason=end.reason, message=end.message))
        if end.reason is EndReason.TASK_FAILED:
            raise TaskError(
                f"the campaign stopped: {end.message}.", "Mend the cause, then run it again: it goes on from there."
            ) from self.bug
        if end.reason is EndReason.LABELS_FAILED:
            raise TaskError(
                f"the campaign stopped: {end.message}.",
                "Mend labels.reference or the start structures, then start in a new directory.",
            )
        return Outcome(end.reason, end.message, self.state)


def _keeps_scratch(finished: Finished) -> bool:
    return finished.result is not None and finished.result.status.value == "failed"


def _resumed(settings: CampaignSettings) -> Resumed:
    return Resumed(
        time=time.time(), settings=settings.model_dump(mode="json"), host=socket.gethostname(), pid=os.getpid()
    )


def _versions() -> dict[str, str]:
    names = ("farwalk", "torch", "ase", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def _check_same(state: CampaignState, settings: CampaignSettings, starts: tuple[Frame, ...], where: Path) -> None:
    """Refuse to go on with other science than the campaign began with."""
    before: dict[str, Any] = state.created.settings
    problems = refused_changes(CampaignSettings.model_validate(before), settings)
    if problems:
        listing = "\n".join(f"  {line}" for line in problems)
        raise SettingsError(
            f"{where}: this campaign was begun with other settings:\n{listing}",
            "Only labels.budget, stop and site may change. Undo the changes, or give a new directory.",
        )
    if digest_of(starts) != state.created.structures:
        raise SettingsError(
            f"{where}: this campaign was begun with other start structures.",
            "Restore the structure files, or give a new directory.",
        )
