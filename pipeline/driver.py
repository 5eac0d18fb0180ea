"""The loop: ask the policy, hand tasks out, take what is done, record, repeat.

What a wake-up costs depends on what happened since the last one, not on how many tasks are outstanding or were ever made.
"""

import functools
import logging
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence, Set
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeVar

from pipeline.errors import DiskFullError, NotBegunError, TaskError
from pipeline.event_log import EventLog
from pipeline.events import (
    EndReason,
    Event,
    Labelled,
    Noticed,
    Resumed,
    Stopped,
    Submitted,
    TaskFailed,
    TaskLost,
    Walked,
    Work,
)
from pipeline.frames import Frame
from pipeline.losses import label_cause, task_lost, unknown_so_far
from pipeline.policy import Decision, End, Request, decide
from pipeline.recording import Finished, Recorder, nothing_to_select
from pipeline.records import LabelResult, LabelTask, Result, Status
from pipeline.settings.campaign import CampaignSettings
from pipeline.state import CampaignState, apply
from pipeline.steps import Notice, Steps
from pipeline.store import Store
from pipeline.tasks import Job, TaskMaker

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
        store, settings, starts: the campaign.
        steps: carry tasks out.
        log: of events; hold the lock of the campaign.
        state: what is known.
        on_event: called after each event is on disk.
        waiting: requests that are asked for but not handed out.
        later: requests that wait before they are handed out again, and when they may be.
        running: tasks handed out.
        busy: how many of these of each kind.
        in_flight: names of all these.
        done: tasks handed out that are over, filled by other threads.
        told: notices and when they were last told.
        paused: why labelling pauses; what comes until then does not undo it.
        ended: when it became known that no more tasks are handed out.
        bug: the first exception of a task that has a bug.
        leave_requested: whether what is not finished should be left behind.
    """

    store: Store
    settings: CampaignSettings
    starts: Sequence[Frame]
    steps: Steps
    log: EventLog
    state: CampaignState
    on_event: Callable[[Event], None]
    waiting: deque[Request] = field(default_factory=deque)
    later: deque[tuple[float, Request]] = field(default_factory=deque)
    running: dict[Future[Result], Job] = field(default_factory=dict)
    busy: Counter[Work] = field(default_factory=Counter)
    in_flight: set[str] = field(default_factory=set)
    done: SimpleQueue[Future[Result]] = field(default_factory=SimpleQueue)
    told: dict[str, float] = field(default_factory=dict)
    paused: End | None = None
    ended: float | None = None
    bug: BaseException | None = None
    leave_requested: Callable[[], bool] = lambda: False
    maker: TaskMaker = field(init=False)
    recorder: Recorder = field(init=False)

    def __post_init__(self) -> None:
        session = f"{os.getpid()}-{time.time_ns()}"
        self.maker = TaskMaker(self.store, self.settings, self.starts, session)
        self.recorder = Recorder(self.store, self.settings)

    def run(self, stop_requested: Callable[[], bool], leave_requested: Callable[[], bool]) -> Outcome:
        """The loop, until the campaign ends or a stop is asked for.

        Raises:
            StoreError: the campaign directory is damaged or full.
            TaskError: a task failed and the campaign cannot go on.
        """
        self.leave_requested = leave_requested
        if self.log.next_sequence > 1:
            resumed = _resumed(self.settings)
            stopped = self.state.stopped
            end = self._decide(apply(self.state, resumed)).end
            if stopped is not None and end is not None and end.reason is stopped.reason:
                return self._outcome(end)
            self._tell(resumed)
            for row in self.state.round_labels:  # a killed driver may have recorded labels and not cleared up
                self.store.clear_scratch(Request(Work.LABEL, row.round, row.item).name)
        while True:
            leave = leave_requested()
            end = self._hand_out(stop_requested() or leave)
            if end is not None and (leave or not self.running or self._is_overdue(end)):
                return self._finish(end)
            self._record(self._wait())
            self._notice(self.steps.notices())

    def _decide(self, state: CampaignState) -> Decision:
        return decide(state, self.settings, now=time.time(), in_flight=self.in_flight)

    def _hand_out(self, stop: bool) -> End | None:
        """Bring everything into flight that can be; says why not, when the campaign ends."""
        decision = self._decide(self.state)
        while decision.gather and not stop and self.paused is None:
            self._tell(self._patiently(lambda: self.recorder.gather(self.state, now=time.time())))
            decision = self._decide(self.state)
        end = self.paused or decision.end
        if end is not None and end.reason is EndReason.LABELS_PAUSED:
            self.paused = end
        if stop and self.paused is None:  # the next driver would only go on with what fails
            end = End(EndReason.INTERRUPTED, "told to stop; run it again to go on")
        if end is not None:
            self.waiting.extend(request for _, request in self.later)
            self.in_flight.difference_update(request.name for request in self.waiting)
            self.waiting.clear()
            self.later.clear()
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
        self._tell(Submitted(time=time.time(), work=first.work, round=self.state.round, tasks=names))
        self.waiting.extend(requests)
        self.in_flight.update(names)

    def _fill(self) -> None:
        """Hand out waiting requests up to the capacity of the steps."""
        while self.later and self.later[0][0] <= time.monotonic():
            self.waiting.append(self.later.popleft()[1])
        while self.waiting:
            work = self.waiting[0].work
            if self.busy[work] >= self.steps.capacity(work):
                return
            request = self.waiting.popleft()
            job = self._patiently(functools.partial(self.maker.make, request, self.state))
            self.busy[work] += 1
            future = self.steps.submit(job.task)
            self.running[future] = job
            future.add_done_callback(self.done.put)

    def _is_overdue(self, end: End) -> bool:
        """Whether tasks in flight had their time after the end was known: they may wait in the machine's queue for hours."""
        failure = self.state.failure
        # labels may take long and are dear: after a failure they are waited for
        if end.reason is not EndReason.MAX_WALL and (failure is None or failure.work is Work.LABEL):
            return False
        now = time.monotonic()
        if self.ended is None:
            self.ended = now
        return now - self.ended >= self.settings.site.walk_task_s

    def _wait(self) -> list[Future[Result]]:
        """What is done: soon after the first task that is, or nothing after a while."""
        try:
            done = [self.done.get(timeout=POLL_S)]
        except Empty:
            return []
        last = time.monotonic() + GATHER_S
        while len(done) < len(self.running):
            rest = last - time.monotonic()
            try:
                done.append(self.done.get(timeout=rest) if rest > 0 else self.done.get_nowait())
            except Empty:
                break
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
                self.later.append((time.monotonic() + LATER_S, job.request))
                self._notice([Notice(text=error.message, remedy=error.remedy)])
            elif (cause := label_cause(job.request, error, self.state.lost.count(job.request.name))) is not None:
                finished.append(Finished(job, None, str(error), cause))
            else:
                errors.append((job.request, error))
        events = self._patiently(
            lambda: self.recorder.record(finished, self.state, now=time.time(), sequence=self.log.next_sequence)
        )
        walked = {(event.round, event.item) for event in events if isinstance(event, Walked)}
        superseded = [leg.walkers for leg in self.state.walkers if (leg.round, leg.item) in walked]
        self._tell(*events)
        for file in superseded:  # walkers between two legs: a long segment would leave hundreds of them
            self.store.discard_shard(file)
        failures = [self._failed(request, error) for request, error in errors]
        self._tell(*unknown_so_far(failures, self.state.failure))
        labelled = {(event.round, event.item) for event in events if isinstance(event, Labelled)}
        for one in finished:
            if one.result is not None:
                self._notice(Notice(text=remark.text, remedy=remark.remedy) for remark in one.result.remarks)
                self._clear(one.job, one.result, labelled)

    def _clear(self, job: Job, result: Result, labelled: Set[tuple[int, int]]) -> None:
        """Remove what a task left in scratch; restart files are kept elsewhere, and all of a label that was not taken stays."""
        scratch = self.store.scratch_of(job.request.name)
        if isinstance(job.task, LabelTask) and isinstance(result, LabelResult):
            if (job.request.round, job.request.item) not in labelled:
                return
            if result.guess:
                self.maker.guesses.keep(job.task.frame, Path(result.guess), scratch, time.time())
        if result.status is not Status.FAILED:
            self.store.clear_scratch(job.request.name)

    def _failed(self, request: Request, error: BaseException) -> TaskLost | TaskFailed:
        """A task whose worker raised: it was lost, has a bug, or the machine does not work."""
        if isinstance(error, DiskFullError):
            self._patiently(self.store.check_room)
        event = task_lost(request, error, self.state.lost.count(request.name), now=time.time())
        if isinstance(event, TaskFailed):
            logger.error("%s raised", request.name, exc_info=error)
            self.bug = self.bug or error
        return event

    def _notice(self, notices: Iterable[Notice]) -> None:
        """Record what happened to the machine, the same only once in a while."""
        now = time.monotonic()
        new = {one.text: one for one in notices if now - self.told.get(one.text, -QUIET_S) >= QUIET_S}
        if new:
            self.told = {text: when for text, when in self.told.items() if now - when < QUIET_S}
            self.told.update(dict.fromkeys(new, now))
            self._tell(*(Noticed(time=time.time(), text=one.text, remedy=one.remedy) for one in new.values()))

    def _tell(self, *events: Event) -> None:
        """Events on disk first, then in the state, then to whoever watches."""
        self._patiently(lambda: self.log.append(events))
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
                    self.on_event(Noticed(time=time.time(), text=text, remedy=error.remedy))
                since = since or time.monotonic()
                time.sleep(ROOM_S)
        if since:
            waited = time.monotonic() - since
            self._notice([Notice(text=f"the campaign's disk was full for {waited:.0f} s; it takes files again")])
        return done

    def _finish(self, end: End) -> Outcome:
        self._notice(self.steps.notices())
        self._tell(Stopped(time=time.time(), reason=end.reason, message=end.message, remedy=end.remedy))
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
            place = str(self.store.root / end.scratch) if end.scratch else ""
            files = f" Its files: {place}." if place not in message else ""
            again = f"Then `farwalk relabel {self.store.root}` to try failed labels again, and `farwalk run`."
            raise TaskError(f"{message}{files}", f"{end.remedy} {again}")
        return Outcome(end.reason, end.message, self.state)


def _resumed(settings: CampaignSettings) -> Resumed:
    return Resumed(
        time=time.time(), settings=settings.model_dump(mode="json"), host=socket.gethostname(), pid=os.getpid()
    )
