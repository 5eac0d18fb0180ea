"""Durations of a campaign that ran, or runs, from its events."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random
from statistics import fmean

from pipeline.errors import SettingsError
from pipeline.events import (
    Event,
    LabelFailed,
    Labelled,
    Rejected,
    Resumed,
    Selected,
    Submitted,
    TaskLost,
    Trained,
    Walked,
    Work,
)
from pipeline.fold import apply, begin
from pipeline.records import Timing
from pipeline.requests import Request
from pipeline.settings.campaign import CampaignSettings
from pipeline.settings.site import SlurmSite
from pipeline.simulation.durations import (
    KNOWN,
    SELECT_S,
    Around,
    Durations,
    Handling,
    MeasuredTraining,
    Near,
    Resampled,
    Segment,
    T,
    always,
    stored,
)
from pipeline.state import CampaignState
from pipeline.store import Store

BEYOND = ("surplus", "thinned")
"""Why candidates are dropped that a label might have been spent on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSegments:
    """Measured segments, drawn again."""

    measured: Near[Segment]

    def draw(self, random: Random, labels: int) -> Segment:
        """One that was measured with a model of about so many labels."""
        return self.measured.draw(random, labels)

    def lasting(self, mean_s: float) -> "MeasuredSegments":
        """With other seconds, of this mean, and the candidates that were found."""
        longer = mean_s / fmean(one.seconds for one in self.measured.values)
        values = tuple(Segment(longer * one.seconds, one.candidates) for one in self.measured.values)
        return MeasuredSegments(measured=Near(labels=self.measured.labels, values=values))


@dataclass(slots=True)
class _Tally:
    """Sums over events, each seen with what was known before it.

    Attributes:
        segments, labels, selections, trainings: labels known, and what was measured.
        half: seconds and candidates of segments that are not over, by batch.
        asked: when a task was asked for, by name; ended: when each worker ended its last one.
        judged: labels known, and whether the gate refused the model (1 or 0).
        firsts, starts, reports: of each kind of work, see :class:`Handling`.
        judged_rows: of each selection the labels known, new candidates, kept ones, and of both those that need no label.
        waiting, saved: candidates that waited for a label when a selection looked at them, and those that needed none.
        counts: of labels that failed, tasks that were lost, and all labels.
    """

    segments: list[tuple[int, Segment]] = field(default_factory=list)
    labels: list[tuple[int, float]] = field(default_factory=list)
    selections: list[tuple[int, float]] = field(default_factory=list)
    trainings: list[tuple[int, float]] = field(default_factory=list)
    half: dict[int, Segment] = field(default_factory=dict)
    asked: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    judged: list[tuple[int, float]] = field(default_factory=list)
    firsts: dict[Work, list[float]] = field(default_factory=lambda: {work: [] for work in Work})
    starts: dict[Work, list[float]] = field(default_factory=lambda: {work: [] for work in Work})
    reports: dict[Work, list[float]] = field(default_factory=lambda: {work: [] for work in Work})
    judged_rows: list[tuple[int, int, int, int]] = field(default_factory=list)
    waiting: int = 0
    saved: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def absorb(self, event: Event, state: CampaignState) -> None:
        """Take note of an event; ``state`` is what was known before it."""
        match event:
            case Submitted():
                self.asked.update(dict.fromkeys(event.tasks, event.time))
            case Resumed():  # workers of another driver
                self.asked.clear()
                self.ended.clear()
                self.half.clear()
            case Walked():
                self._walked(event, state)
            case Selected():
                self._selected(event, state)
            case Labelled() | LabelFailed():
                self.counts["failed"] += isinstance(event, LabelFailed)
                self.counts["labels"] += 1
                if event.timing is not None:
                    self.labels.append((known_labels(state), event.timing.wall_s))
                    self._handled(Request(Work.LABEL, event.round, event.item), event.time, event.timing)
            case Trained() | Rejected():
                self._trained(event, state)
            case TaskLost():
                self.counts["lost"] += 1
            case _:
                pass

    def _walked(self, event: Walked, state: CampaignState) -> None:
        half = self.half.pop(event.item, Segment(0.0, 0))
        whole = Segment(half.seconds + event.timing.wall_s, half.candidates + event.count)
        if event.steps_left:
            self.half[event.item] = whole
        else:
            self.segments.append((known_labels(state), whole))
        self._handled(Request(Work.WALK, event.round, event.item, event.leg), event.time, event.timing)

    def _selected(self, event: Selected, state: CampaignState) -> None:
        if event.timing is None:
            return
        self.selections.append((known_labels(state), event.timing.wall_s))
        dropped = sum(count for reason, count in event.dropped.items() if reason not in BEYOND)
        flow, old = state.flow, 0
        if flow is None:
            looked = sum(walk.count for walk in state.walked)
        else:
            looked, old = flow.reading_count, len(flow.left.rows) if flow.left is not None else 0
            self.waiting += flow.waiting
            self.saved += event.saved
        self.judged_rows.append((known_labels(state), looked, old, dropped))
        self._handled(Request(Work.SELECT, event.round), event.time, event.timing)

    def _trained(self, event: Trained | Rejected, state: CampaignState) -> None:
        if state.models:
            self.judged.append((state.learned, float(isinstance(event, Rejected))))
        settings = CampaignSettings.model_validate(state.settings)
        epochs = epochs_of(settings, is_first=not state.models, attempt=event.attempt)
        self.trainings.append((state.learned, event.timing.wall_s / max(1, state.learned) / epochs))
        request = Request(Work.TRAIN, event.round, event.version, event.attempt)
        self._handled(request, event.time, event.timing)

    def _handled(self, request: Request, recorded: float, timing: Timing) -> None:
        asked, ended = self.asked.pop(request.name, None), self.ended.get(timing.host)
        self.ended[timing.host] = timing.ended
        self.reports[request.work].append(max(0.0, recorded - timing.ended))
        if asked is not None:
            several = self.firsts if ended is None else self.starts
            several[request.work].append(max(0.0, timing.started - max(asked, ended or asked)))


def measured(store: Store, settings: CampaignSettings) -> Durations:
    """Durations of a campaign, to simulate one like it.

    Args:
        store: its directory; only read.
        settings: of the campaign to be simulated; segments of another length count in proportion.

    Raises:
        SettingsError: it has not done every kind of work yet.
        StoreError: its log is damaged or of another version.
    """
    stream = iter(store.reading())
    state, tally = begin(next(stream)), _Tally()
    theirs = CampaignSettings.model_validate(state.settings)
    for event in stream:
        tally.absorb(event, state)
        state = apply(state, event)
    missing = [name for name in ("labels", "trainings", "segments") if not getattr(tally, name)]
    if missing:
        raise SettingsError(
            f"--from {store.root}: it has no finished {' and no finished '.join(missing)} yet.",
            "Wait for its second model, or leave --from out and give --label-seconds, --walk-seconds and --train-seconds.",
        )
    in_jobs = isinstance(theirs.site, SlurmSite)
    longer = settings.walkers.segment_steps / theirs.walkers.segment_steps
    more = stored(settings) / stored(theirs)
    segments = [(labels, Segment(longer * one.seconds, round(more * one.candidates))) for labels, one in tally.segments]
    trainings = sorted(tally.trainings)
    stale = _share(tally.saved, tally.waiting)
    known = [
        (labels, min(1.0, max(0.0, dropped - stale * old) / looked))
        for labels, looked, old, dropped in tally.judged_rows
        if looked
    ]
    return Durations(
        walk=MeasuredSegments(measured=_near(segments)),
        label=Resampled(measured=_near(tally.labels)),
        select=Resampled(measured=_near(tally.selections)) if tally.selections else Around(mean_s=SELECT_S),
        train=MeasuredTraining(
            labels=tuple(labels for labels, _ in trainings), label_epoch_s=tuple(each for _, each in trainings)
        ),
        handling={
            work: Handling(
                first_s=_mean((tally.starts if in_jobs else tally.firsts)[work]),
                start_s=_mean(tally.starts[work]),
                report_s=_mean(tally.reports[work]),
            )
            for work in Work
        },
        queue_wait=Around(mean_s=_queue_wait_s(tally) if in_jobs and isinstance(settings.site, SlurmSite) else 0.0),
        known=_near(known) if known else always(KNOWN),
        stale=stale,
        failed=_share(tally.counts["failed"], tally.counts["labels"]),
        lost=_share(tally.counts["lost"], tally.counts["lost"] + sum(map(len, tally.reports.values()))),
        rejected=_near(tally.judged) if tally.judged else always(0.0),
        source=f"measured in {store.root}",
    )


def _queue_wait_s(tally: _Tally) -> float:
    """Of batch jobs: what their workers waited for the first task, beyond what they wait for others."""
    waits = [max(0.0, first - _mean(tally.starts[work])) for work in Work for first in tally.firsts[work]]
    return _mean(waits)


def _mean(seconds: list[float]) -> float:
    return fmean(seconds) if seconds else 0.0


def known_labels(state: CampaignState) -> int:
    """Labels that the newest model knows: what is measured goes by them."""
    return state.models[-1].labels if state.models else 0


def epochs_of(settings: CampaignSettings, *, is_first: bool, attempt: int) -> int:
    """Epochs a training may have."""
    training = settings.training
    is_whole = is_first or attempt > 0 or training.start == "scratch"
    return training.epochs if is_whole else training.warm_epochs


def _near(samples: Iterable[tuple[int, T]]) -> Near[T]:
    """Samples in the order of the labels known."""
    ordered = sorted(samples, key=lambda one: one[0])
    return Near(labels=tuple(labels for labels, _ in ordered), values=tuple(value for _, value in ordered))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
