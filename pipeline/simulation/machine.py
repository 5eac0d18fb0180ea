"""Simulated workers: tasks wait for one, take their time on it, and end."""

import heapq
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import cast

from pipeline.errors import LostWorkerError
from pipeline.events import Work
from pipeline.records import Result, Task
from pipeline.settings.site import InlineSite, Site, SlurmSite
from pipeline.simulation.clock import VirtualClock
from pipeline.simulation.durations import Durations, Handling
from pipeline.simulation.made_up import Fate, MadeUpResult, MadeUpTask
from pipeline.steps import Notice

INFINITE = float("inf")
IDLE_S = 600.0
"""After so long without a task a batch job is given back, as on real sites."""
MOST_WAITING = 64
"""Labels that wait for a worker, at most, as with the engine."""


@dataclass(slots=True)
class Block:
    """A batch job, or this machine.

    Attributes:
        began: seconds since the campaign began; drains: when its workers take no more tasks; busy: those that have one.
        given: tasks so far.
        idle_since: when the last of them had.
        is_over: it ended.
    """

    began: float
    drains: float
    busy: int = 0
    given: int = 0
    idle_since: float = 0.0
    is_over: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The jobs of an executor.

    Attributes:
        label: of the executor.
        workers: of one job; blocks: jobs at a time, at most; first: jobs from the beginning.
        nodes: of one job; 0 on this machine.
        drains_s: how long the workers of a job take tasks.
        idle_s: after so long without a task a job is given back, if more than ``first`` run.
    """

    label: str
    workers: int
    blocks: int = 1
    first: int = 1
    nodes: int = 0
    drains_s: float = INFINITE
    idle_s: float = INFINITE

    @property
    def slots(self) -> int:
        """Workers when all jobs run."""
        return self.workers * self.blocks


@dataclass(slots=True)
class Use:
    """Worker seconds up to one moment: with a task, and of jobs that run."""

    time: float
    busy_s: float
    held_s: float


@dataclass(slots=True)
class Pool:
    """The workers of one executor.

    Jobs are asked for once tasks wait, and wait in the machine's queue themselves. They end when they are too old or have had
    nothing to do for a while, and others follow where tasks wait.

    Attributes:
        queue: tasks that wait for a worker, most urgent first.
        free: jobs of workers without a task, those that fell free first first.
        asked: jobs that run or wait.
        running: tasks that have begun; began_s: sum of when they did; done_s: seconds of those that are over.
        jobs: that run; jobs_began_s: sum of when they did; held_s: worker seconds of those that ended.
        tasks: begun in all.
        on_free: called when there may be a worker for a task.
    """

    shape: Shape
    clock: VirtualClock
    queue_wait: Callable[[], float]
    queue: list[tuple[int, int, Future[Result], MadeUpTask]] = field(default_factory=list)
    free: deque[Block] = field(default_factory=deque)
    asked: int = 0
    running: int = 0
    began_s: float = 0.0
    done_s: float = 0.0
    jobs: int = 0
    jobs_began_s: float = 0.0
    held_s: float = 0.0
    tasks: int = 0
    on_free: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        for _ in range(self.shape.first):
            self._ask()

    def use(self) -> Use:
        """Worker seconds up to now."""
        now = self.clock.now()
        held = self.held_s + (self.jobs * now - self.jobs_began_s) * self.shape.workers
        return Use(now, self.done_s + self.running * now - self.began_s, held)

    def worker(self) -> Block | None:
        """A worker that takes a task, if there is one; asks for another job otherwise."""
        while self.free:
            block = self.free.popleft()
            if self.clock.now() < block.drains and not block.is_over:
                return block
        waiting = (self.asked - self.jobs) * self.shape.workers
        if self.asked < self.shape.blocks and len(self.queue) > waiting:
            self._ask()
        return None

    def take(self, block: Block) -> None:
        """A worker of a job is given a task."""
        block.busy += 1
        block.given += 1

    def begin(self) -> None:
        """A worker begins its task now."""
        self.running += 1
        self.began_s += self.clock.now()
        self.tasks += 1

    def leave(self, block: Block, began: float) -> None:
        """A worker ends a task that it began then."""
        block.busy -= 1
        self.running -= 1
        self.began_s -= began
        self.done_s += self.clock.now() - began
        if self.clock.now() < block.drains:
            self.free.append(block)
            if not block.busy:
                self._rest(block)
        elif not block.busy:
            self._end(block)

    def _ask(self) -> None:
        self.asked += 1
        self.clock.at(self.clock.now() + self.queue_wait(), self._start)

    def _start(self) -> None:
        now = self.clock.now()
        block = Block(now, now + self.shape.drains_s)
        self.jobs += 1
        self.jobs_began_s += now
        self.free.extend([block] * self.shape.workers)
        if block.drains < INFINITE:
            self.clock.at(block.drains, lambda: self._drain(block))
        self.on_free()
        if not block.busy:
            self._rest(block)

    def _rest(self, block: Block) -> None:
        """A job has nothing to do from now on: it may be given back."""
        block.idle_since = since = self.clock.now()

        def give_back() -> None:
            if not block.busy and block.idle_since == since and self.asked > self.shape.first:
                self._end(block)

        if self.shape.idle_s < INFINITE:
            self.clock.at(since + self.shape.idle_s, give_back)

    def _drain(self, block: Block) -> None:
        if not block.busy:
            self._end(block)

    def _end(self, block: Block) -> None:
        if block.is_over:
            return
        block.is_over = True
        self.jobs -= 1
        self.jobs_began_s -= block.began
        self.held_s += (self.clock.now() - block.began) * self.shape.workers
        self.asked -= 1
        self.on_free()


@dataclass(slots=True)
class SimulatedSteps:
    """Carries tasks out in virtual time.

    Args:
        site: workers per kind of task, and who shares them.
        clock: the time.
        durations: what surrounds a task, and how long jobs wait.
        random: where chance comes from.

    Attributes:
        pools: by label of their executor; windows: their use when the first label began, and when the last one ended.
    """

    site: Site
    clock: VirtualClock
    durations: Durations
    random: Random
    pools: dict[str, Pool] = field(init=False)
    windows: dict[str, tuple[Use, Use]] = field(default_factory=dict)
    _routes: dict[Work, str] = field(init=False)
    _order: "count[int]" = field(default_factory=count)

    def __post_init__(self) -> None:
        self._routes = {work: label for work, label in routes_of(self.site).items()}
        self.pools = {}
        for shape in shapes_of(self.site):
            own = Random(self.random.getrandbits(64))
            pool = Pool(shape, self.clock, lambda own=own: self.durations.queue_wait.seconds(own))  # type: ignore[misc]
            pool.on_free = lambda pool=pool: self._begin(pool)  # type: ignore[misc]
            self.pools[shape.label] = pool

    def submit(self, task: Task, priority: int = 0) -> Future[Result]:
        """A task waits for a worker of its kind, the lowest priority first."""
        made_up = cast(MadeUpTask, task)
        pool = self.pools[self._routes[made_up.request.work]]
        future: Future[Result] = Future()
        self.clock.open += 1
        heapq.heappush(pool.queue, (priority, next(self._order), future, made_up))
        self._begin(pool)
        return future

    def capacity(self, work: Work) -> int:
        """As with the engine."""
        if isinstance(self.site, InlineSite):
            return 2
        slots = self.site.label_slots
        most = {Work.WALK: self.site.walk_slots, Work.LABEL: slots + min(slots, MOST_WAITING)}
        return most.get(work, 1)

    def notices(self) -> tuple[Notice, ...]:
        """Nothing happens to a simulated machine that is not the fate of a task."""
        return ()

    def _begin(self, pool: Pool) -> None:
        """Tasks that wait go to workers that are free."""
        while pool.queue and (block := pool.worker()) is not None:
            _, _, future, task = heapq.heappop(pool.queue)
            self._run(pool, block, future, task)

    def _run(self, pool: Pool, block: Block, future: Future[Result], task: MadeUpTask) -> None:
        handling = self.durations.handling.get(task.request.work, Handling())
        pool.take(block)
        # new workers of a job come before those that had a task
        wait_s = handling.first_s if block.given <= pool.shape.workers else handling.start_s

        def start() -> None:
            pool.begin()
            began = self.clock.now()
            if task.request.work is Work.LABEL and not self.windows:
                self.windows = {label: (one.use(), one.use()) for label, one in self.pools.items()}
            ends = began + task.seconds
            self.clock.at(ends, lambda: self._end(pool, block, future, task, began, handling.report_s))

        if wait_s:
            self.clock.at(self.clock.now() + wait_s, start)
        else:
            start()

    def _end(
        self, pool: Pool, block: Block, future: Future[Result], task: MadeUpTask, began: float, report_s: float
    ) -> None:
        pool.leave(block, began)
        now = self.clock.now()
        if task.request.work is Work.LABEL:
            self.windows = {label: (self.windows[label][0], one.use()) for label, one in self.pools.items()}

        def report() -> None:
            self.clock.open -= 1
            if task.fate is Fate.LOST:
                future.set_exception(LostWorkerError("its simulated worker was lost."))
            else:
                future.set_result(cast(Result, MadeUpResult(started=began, ended=now)))

        if report_s:
            self.clock.at(now + report_s, report)
        else:
            report()
        self._begin(pool)


def routes_of(site: Site) -> dict[Work, str]:
    """Kind of task -> label of the executor that carries it out; this process does one thing after another."""
    if isinstance(site, InlineSite):
        return dict.fromkeys(Work, "inline")
    return {work: site.routes[work.value] for work in Work}


def shapes_of(site: Site) -> list[Shape]:
    """The executors of a site."""
    if isinstance(site, InlineSite):
        return [Shape(label="inline", workers=1)]
    if isinstance(site, SlurmSite):
        return [
            Shape(
                label=label,
                workers=site.slots(label) // job.max_blocks,
                blocks=job.max_blocks,
                first=job.min_blocks,
                nodes=job.nodes_per_block,
                drains_s=float(job.walltime - job.drain_s),
                idle_s=IDLE_S,
            )
            for label, job in site.allocations.items()
        ]
    slots = {"walk": site.walk_slots, "label": site.label_slots, "select": 1, "train": 1}
    return [Shape(label=label, workers=count) for label, count in slots.items()]
