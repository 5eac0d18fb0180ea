"""One simulated campaign, and what came of it."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

from pipeline.driver import POLL_S, Driver
from pipeline.errors import TaskError
from pipeline.events import SCHEMA, Created, EndReason, Event, Idled, Stopped, Work
from pipeline.fold import begin
from pipeline.settings.campaign import CampaignSettings
from pipeline.settings.schedule import StreamingSchedule
from pipeline.simulation.books import SimulatedBooks
from pipeline.simulation.clock import VirtualClock
from pipeline.simulation.durations import Durations
from pipeline.simulation.machine import Pool, SimulatedSteps, Use

LATE_S = 5.0
"""A training that has waited long enough, or the end of the wall time, is seen so late at most, seconds."""
TENTH = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """The workers of one executor.

    Attributes:
        label: of the executor; slots: its workers; nodes: of its jobs, 0 on this machine.
        tasks: begun.
        busy: share of the time of its workers in which they had a task, between the first and the last label.
        busy_whole: the same over the whole campaign.
        busy_s, held_s: worker seconds with a task, and in all.
        node_h: hours of its nodes.
    """

    label: str
    slots: int
    nodes: int
    tasks: int
    busy: float
    busy_whole: float
    busy_s: float
    held_s: float
    node_h: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Idleness:
    """Workers without a task, for one reason: share of the time of all slots of their kind, over the whole campaign."""

    work: Work
    reason: str
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """What the driver took, CPU time of this machine: each turn of its loop records what is done, decides, and hands out.

    What books and workers of the simulation take is in it; files are not.

    Attributes:
        count: turns.
        mean_ms, p99_ms, longest_ms: of all.
        most_open: the largest number of tasks under way.
        mean_at_most_ms, p99_at_most_ms: of turns with at least nine tenths of these under way.
        first_ms, last_ms: mean of the first and of the last tenth of all turns.
    """

    count: int
    mean_ms: float
    p99_ms: float
    longest_ms: float
    most_open: int
    mean_at_most_ms: float
    p99_at_most_ms: float
    first_ms: float
    last_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a simulated campaign took.

    Attributes:
        reason, message: how it ended.
        wall_s: seconds from its beginning to its end.
        labels: asked for and answered, failed ones counted; failed: those.
        models: published.
        tasks: begun.
        core_h, gpu_h: hours of cores and GPUs that tasks held; node_h: of all nodes of all jobs.
        workers: by executor.
        idle: why workers were idle, what cost most first.
        decisions: what the driver took.
        events: written.
    """

    reason: EndReason
    message: str
    wall_s: float
    labels: int
    failed: int
    models: int
    tasks: int
    core_h: float
    gpu_h: float
    node_h: float
    workers: tuple[Workers, ...]
    idle: tuple[Idleness, ...]
    decisions: Decisions
    events: int


def simulate(
    settings: CampaignSettings,
    durations: Durations,
    *,
    on_event: Callable[[Event], None] = lambda event: None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Report:
    """Run a campaign by a virtual clock: its policy and loop are those of a real one.

    What it does not foresee: how good the model becomes. So neither a target error nor a coverage ends it.

    Args:
        settings: of the campaign; its seed makes the simulation what it is.
        durations: how long tasks take and what they bring.
        on_event: called with every event.
        stop_requested: as of a real campaign.
    """
    schedule = settings.schedule
    patience_s = min(LATE_S, schedule.train_wait_s / 20) if isinstance(schedule, StreamingSchedule) else LATE_S
    clock = VirtualClock(max(POLL_S, patience_s))
    books = SimulatedBooks(settings, durations, settings.seed)
    steps = SimulatedSteps(settings.site, clock, durations, Random(settings.seed + 1))
    created = Created(
        time=0.0, schema=SCHEMA, settings=settings.model_dump(mode="json"), digest="", structures="", versions={}
    )
    idle_s: defaultdict[tuple[Work, str], float] = defaultdict(float)
    ends: list[Stopped] = []

    def watch(event: Event) -> None:
        if isinstance(event, Idled):
            idle_s[event.work, event.reason] += event.slot_s
        elif isinstance(event, Stopped):
            ends.append(event)
        on_event(event)

    driver = Driver(Path("simulation"), settings, books, steps, begin(created), watch, clock)
    with suppress(TaskError):  # told below, like any other end
        driver.run(stop_requested, stop_requested, resumes=False)
    state, wall_s = driver.state, clock.now()
    workers = tuple(_workers(pool, steps.windows.get(label)) for label, pool in steps.pools.items())
    slots = {Work.WALK: settings.site.walk_slots, Work.LABEL: settings.site.label_slots}
    idle = [
        Idleness(work=work, reason=reason, share=seconds / (slots.get(work, 1) * wall_s))
        for (work, reason), seconds in idle_s.items()
    ]
    return Report(
        reason=ends[-1].reason,
        message=ends[-1].message,
        wall_s=wall_s,
        labels=state.spent,
        failed=state.failed,
        models=len(state.models),
        tasks=sum(one.tasks for one in workers),
        core_h=state.core_s / 3600,
        gpu_h=state.gpu_s / 3600,
        node_h=sum(one.node_h for one in workers),
        workers=workers,
        idle=tuple(sorted(idle, key=lambda one: -one.share)),
        decisions=_decisions(clock),
        events=sum(books.counts.values()),
    )


def _workers(pool: Pool, window: tuple[Use, Use] | None) -> Workers:
    whole, shape = pool.use(), pool.shape
    first, last = window or (whole, whole)
    return Workers(
        label=shape.label,
        slots=shape.slots,
        nodes=shape.nodes * shape.blocks,
        tasks=pool.tasks,
        busy=_share(last.busy_s - first.busy_s, last.held_s - first.held_s),
        busy_whole=_share(whole.busy_s, whole.held_s),
        busy_s=whole.busy_s,
        held_s=whole.held_s,
        node_h=whole.held_s / shape.workers * shape.nodes / 3600,
    )


def _decisions(clock: VirtualClock) -> Decisions:
    turns = clock.turns_s
    most = max(clock.turns_open, default=0)
    full = [seconds for seconds, count in zip(turns, clock.turns_open, strict=True) if count >= 0.9 * most]
    tenth = max(1, len(turns) // TENTH)
    return Decisions(
        count=len(turns),
        mean_ms=_mean_ms(turns),
        p99_ms=_p99_ms(turns),
        longest_ms=1e3 * max(turns, default=0.0),
        most_open=most,
        mean_at_most_ms=_mean_ms(full),
        p99_at_most_ms=_p99_ms(full),
        first_ms=_mean_ms(turns[:tenth]),
        last_ms=_mean_ms(turns[-tenth:]),
    )


def _mean_ms(seconds: Sequence[float]) -> float:
    return 1e3 * sum(seconds) / len(seconds) if seconds else 0.0


def _p99_ms(seconds: Sequence[float]) -> float:
    return 1e3 * sorted(seconds)[int(0.99 * (len(seconds) - 1))] if seconds else 0.0


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
