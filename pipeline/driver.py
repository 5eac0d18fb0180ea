"""The loop: ask the policy, hand tasks out, take what is done, record, repeat.

What a wake-up costs depends on what happened since the last one, not on how many tasks are outstanding or were ever made.
"""

import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

from pipeline.clock import Clock, WallClock
from pipeline.decisions import Decision, End
from pipeline.errors import DiskFullError, NotBegunError, TaskError
from pipeline.events import EndReason, Event, Noticed, Resumed, Stopped, Submitted, TaskFailed, TaskLost, Work
from pipeline.fold import apply
from pipeline.idling import Idling
from pipeline.ledger import Books
from pipeline.losses import label_cause, task_lost, unknown_so_far
from pipeline.policy import decide
from pipeline.recording import Finished, nothing_to_select
from pipeline.records import Result
from pipeline.requests import Request
from pipeline.settings.campaign import CampaignSettings
from pipeline.settings.site import InlineSite
from pipeline.state import CampaignState
from pipeline.steps import Notice, Steps
from pipeline.tasks import Job

logger = logging.getLogger(__name__)

POLL_S = 0.5
"""How often the loop looks for a stop, notices and the wall-time limit while nothing is done, seconds."""
GATHER_S = 0.005
"""How long it waits for more once something is done, seconds: one shard and one write of the log serve all of it."""
QUIET_S = 600.0
"""A notice is not repeated within this time, seconds."""
LATER_S = 15.0
"""How long a task waits that a worker handed back because its job ends too soon, seconds: the worker would take it again."""
ROOM_S = 2.0
"""How often a full disk is tried again, seconds."""

REACHED = (EndReason.TARGET, EndReason.COVERAGE, EndReason.BUDGET)
"""Ends that nothing under way can undo."""
PAID = (Work.LABEL, Work.TRAIN)
"""Work that is waited for."""
OUT_OF_TIME = (EndReason.MAX_WALL, EndReason.MAX_CPU, EndReason.MAX_GPU)
"""Ends that do not wait long for what is in flight."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, and what is known then."""

    reason: EndReason
    message: str
    state: CampaignState


@dataclass(slots=True)
class Driver:
    """One run of a campaign: the only part with changing state.

    Attributes:
        root: the campaign directory, for messages.
        settings: the settings in force.
        books: make tasks and write what came of them.
        steps: carry tasks out.
        state: what is known.
        on_event: called after each event is on disk.
        clock: what time it is.
        waiting: requests that are asked for but not handed out, per kind of work.
        later: requests that wait before they are handed out again, and when they may be.
        running: tasks handed out.
        busy: how many of these of each kind.
        in_flight: names of all these.
        done: tasks handed out that are over, filled by other threads.
        told: notices and when they were last told.
        idling: workers without a task.
        paused: why labelling pauses; what comes until then does not undo it.
        ended: when it became known that no more tasks are handed out.
        bug: the first exception of a task that has a bug.
        leave_requested: whether what is not finished should be left behind.
    """

    root: Path
    settings: CampaignSettings
    books: Books
    steps: Steps
    state: CampaignState
    on_event: Callable[[Event], None]
    clock: Clock = field(default_factory=WallClock)
    waiting: dict[Work, deque[Request]] = field(default_factory=lambda: {work: deque() for work in Work})
    later: deque[tuple[float, Request]] = field(default_factory=deque)
    running: dict[Future[Result], Job] = field(default_factory=dict)
    busy: Counter[Work] = field(default_factory=Counter)
    in_flight: set[str] = field(default_factory=set)
    done: SimpleQueue[Future[Result]] = field(default_factory=SimpleQueue)
    told: dict[str, float] = field(default_factory=dict)
    idling: Idling = field(default_factory=Idling)
    paused: End | None = None
    ended: float | None = None
    bug: BaseException | None = None
    leave_requested: Callable[[], bool] = lambda: False

    def run(self, stop_requested: Callable[[], bool], leave_requested: Callable[[], bool], *, resumes: bool) -> Outcome:
        """The loop, until the campaign ends or a stop is asked for.

        Args:
            stop_requested: whether no new tasks shall be handed out.
            leave_requested: whether what is in flight shall be left behind.
            resumes: whether another driver was here before.

        Raises:
            StoreError: the campaign directory is damaged or full.
            TaskError: a task failed and the campaign cannot go on.
        """
        self.leave_requested = leave_requested
        if resumes:
            resumed = _resumed(self.settings, self.clock.now())
            stopped = self.state.stopped
            end = self._decide(apply(self.state, resumed)).end
            if stopped is not None and end is not None and end.reason is stopped.reason:
                return self._outcome(end)
            self._tell(resumed)
            self.books.tidy(self.state)
        while True:
            leave = leave_requested()
            end = self._hand_out(stop_requested() or leave)
            if end is not None and (leave or not self.running or self._is_overdue(end)):
                return self._finish(end)
            self._record(self._wait())
            self._notice(self.steps.notices())

    def _decide(self, state: CampaignState) -> Decision:
        return decide(state, self.settings, now=self.clock.now(), in_flight=self.in_flight)

    def _hand_out(self, stop: bool) -> End | None:
        """Bring everything into flight that can be; says why not, when the campaign ends."""
        decision = self._decide(self.state)
        while decision.gather and not stop and self.paused is None:
            self._tell(self._patiently(lambda: self.books.gather(self.state, now=self.clock.now())))
            decision = self._decide(self.state)
        end = self.paused or decision.end
        if end is not None and end.reason is EndReason.LABELS_PAUSED:
            self.paused = end
        if stop and self.paused is None:  # the next driver would only go on with what fails
            end = End(EndReason.INTERRUPTED, "told to stop; run it again to go on")
        if end is not None:
            self._withdraw()
            self._look(dict.fromkeys(Work, "the campaign ends"))
            return end
        self._announce(decision.requests)
        self._fill()
        self._look(decision.idle)
        return None

    def _withdraw(self) -> None:
        """Nothing more is handed out."""
        left = [request for _, request in self.later]
        for requests in self.waiting.values():
            left += requests
            requests.clear()
        self.in_flight.difference_update(request.name for request in left)
        self.later.clear()

    def _announce(self, requests: tuple[Request, ...]) -> None:
        for work, group in groupby(requests, key=lambda request: request.work):
            several = tuple(group)
            nothing_walked = self.state.flow is None and not any(walk.count for walk in self.state.walked)
            if work is Work.SELECT and nothing_walked:
                self._tell(nothing_to_select(self.state, now=self.clock.now()))
                return
            names = tuple(request.name for request in several)
            self._tell(Submitted(time=self.clock.now(), work=work, round=self.state.round, tasks=names))
            self.waiting[work].extend(several)
            self.in_flight.update(names)

    def _fill(self) -> None:
        """Hand out waiting requests up to the capacity of the steps."""
        while self.later and self.later[0][0] <= self.clock.monotonic():
            request = self.later.popleft()[1]
            self.waiting[request.work].append(request)
        for work, requests in self.waiting.items():
            while requests and self.busy[work] < self.steps.capacity(work):
                request = requests.popleft()
                job = self._patiently(partial(self.books.make, request, self.state))
                self.busy[work] += 1
                future = self.steps.submit(job.task, request.priority)
                self.running[future] = job
                future.add_done_callback(self.done.put)

    def _look(self, why: Mapping[Work, str]) -> None:
        """Note workers that have no task, where walkers and labels have workers of their own."""
        site = self.settings.site
        if isinstance(site, InlineSite):
            return
        on_walkers = sum(self.busy[work] for work in Work if site.routes[work] == site.routes[Work.WALK])
        idle = {
            Work.WALK: max(0, site.walk_slots - on_walkers),
            Work.LABEL: max(0, site.label_slots - self.busy[Work.LABEL]),
        }
        self._tell(*self.idling.look(self.clock.now(), idle, why))

    def _is_overdue(self, end: End) -> bool:
        """Whether tasks in flight had their time after the end was known: they may wait in the machine's queue for hours."""
        failure = self.state.failure
        # labels may take long and are dear: after a failure they are waited for
        if end.reason in REACHED:  # what walks and selections still bring is not needed
            return not any(job.request.work in PAID for job in self.running.values())
        if end.reason not in OUT_OF_TIME and (failure is None or failure.work is Work.LABEL):
            return False
        now = self.clock.monotonic()
        if self.ended is None:
            self.ended = now
        return now - self.ended >= self.settings.site.walk_task_s

    def _wait(self) -> list[Future[Result]]:
        """What is done: soon after the first task that is, or nothing after a while."""
        first = self.clock.wait(self.done, POLL_S)
        if first is None:
            return []
        done, last = [first], self.clock.monotonic() + GATHER_S
        while len(done) < len(self.running):
            following = self.clock.wait(self.done, last - self.clock.monotonic())
            if following is None:
                break
            done.append(following)
        return done

    def _record(self, done: Sequence[Future[Result]]) -> None:
        """Results on disk, as files and events; what they left in scratch goes."""
        if not done:
            return
        finished: list[Finished] = []
        errors: list[tuple[Request, BaseException]] = []
        for future in done:
            job = self.running.pop(future)
            self.busy[job.request.work] -= 1
            self.in_flight.discard(job.request.name)
            error = future.exception()
            if error is None:
                finished.append(Finished(job, future.result()))
            elif isinstance(error, NotBegunError):
                self.in_flight.add(job.request.name)
                self.later.append((self.clock.monotonic() + LATER_S, job.request))
                self._notice([Notice(text=error.message, remedy=error.remedy)])
            elif (cause := label_cause(job.request, error, self.state.lost.count(job.request.name))) is not None:
                finished.append(Finished(job, None, str(error), cause))
            else:
                errors.append((job.request, error))
        before = self.state
        events = self._patiently(lambda: self.books.record(finished, before, now=self.clock.now()))
        self._tell(*events)
        failures = [self._failed(request, error) for request, error in errors]
        self._tell(*unknown_so_far(failures, self.state.failure))
        self.books.clear(finished, events, before, now=self.clock.now())
        for one in finished:
            if one.result is not None:
                self._notice(Notice(text=remark.text, remedy=remark.remedy) for remark in one.result.remarks)

    def _failed(self, request: Request, error: BaseException) -> TaskLost | TaskFailed:
        """A task whose worker raised: it was lost, has a bug, or the machine does not work."""
        if isinstance(error, DiskFullError):
            self._patiently(self.books.check_room)
        event = task_lost(request, error, self.state.lost.count(request.name), now=self.clock.now())
        if isinstance(event, TaskFailed):
            logger.error("%s raised", request.name, exc_info=error)
            self.bug = self.bug or error
        return event

    def _notice(self, notices: Iterable[Notice]) -> None:
        """Record what happened to the machine, the same only once in a while."""
        now = self.clock.monotonic()
        new = {one.text: one for one in notices if now - self.told.get(one.text, -QUIET_S) >= QUIET_S}
        if new:
            self.told = {text: when for text, when in self.told.items() if now - when < QUIET_S}
            self.told.update(dict.fromkeys(new, now))
            self._tell(*(Noticed(time=self.clock.now(), text=one.text, remedy=one.remedy) for one in new.values()))

    def _tell(self, *events: Event) -> None:
        """Events on disk first, then in the state, then to whoever watches."""
        self._patiently(lambda: self.books.append(events))
        for event in events:
            self.state = apply(self.state, event)
            self.on_event(event)

    def _patiently(self, write: Callable[[], T]) -> T:
        """Write something, and wait while the disk takes no more: what is done must not be made again for want of space.

        Raises:
            DiskFullError: nobody wants to wait for it any longer.
        """
        since = 0.0
        while True:
            try:
                done = write()
                break
            except DiskFullError as error:
                if self.leave_requested():
                    raise
                if not since:  # told, not recorded: there is no room for it
                    text = f"{error.message.rstrip('.')}; waiting for space"
                    self.on_event(Noticed(time=self.clock.now(), text=text, remedy=error.remedy))
                since = since or self.clock.monotonic()
                self.clock.sleep(ROOM_S)
        if since:
            waited = self.clock.monotonic() - since
            self._notice([Notice(text=f"the campaign's disk was full for {waited:.0f} s; it takes files again")])
        return done

    def _finish(self, end: End) -> Outcome:
        self._notice(self.steps.notices())
        self._tell(Stopped(time=self.clock.now(), reason=end.reason, message=end.message, remedy=end.remedy))
        return self._outcome(end)

    def _outcome(self, end: End) -> Outcome:
        """How the run ended.

        Raises:
            TaskError: a person must act.
        """
        message = f"the campaign stopped: {end.message.rstrip('.')}."
        if end.reason is EndReason.TASK_FAILED:
            remedy = end.remedy.strip() or "Mend the cause."
            raise TaskError(message, f"{remedy} Then run it again: it goes on from there.") from self.bug
        if end.reason in (EndReason.LABELS_PAUSED, EndReason.LABELS_FAILED):
            place = str(self.root / end.scratch) if end.scratch else ""
            files = f" Its files: {place}." if place not in message else ""
            again = f"Then `farwalk relabel {self.root}` to try failed labels again, and `farwalk run`."
            raise TaskError(f"{message}{files}", f"{end.remedy} {again}")
        return Outcome(end.reason, end.message, self.state)


def _resumed(settings: CampaignSettings, now: float) -> Resumed:
    return Resumed(time=now, settings=settings.model_dump(mode="json"), host=socket.gethostname(), pid=os.getpid())
