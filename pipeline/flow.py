"""What is under way in a streaming campaign: which batches walk, which candidates wait, which labels were asked for.

A pure fold of the campaign's events, like the state it is a part of. What an event costs does not depend on how many tasks are
outstanding.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from rpds import HashTrieMap

from pipeline.events import (
    Event,
    Gathered,
    LabelFailed,
    Labelled,
    Rejected,
    Selected,
    Submitted,
    TaskLost,
    Trained,
    Walked,
    Work,
)
from pipeline.records import FileRef, FrameRows
from pipeline.requests import Request, request_of

Place = tuple[int, int]
"""The selection a label is of (0: a start structure), and its row there."""


@dataclass(frozen=True, slots=True)
class Open:
    """A label that was asked for and has not come.

    Attributes:
        number: its number in the campaign.
        picks: shard of its selection; None for a start structure.
    """

    number: int
    picks: FileRef | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """What is under way.

    Attributes:
        batches: of walkers, in all.
        idle: batches without a task, those that came back first first.
        fresh: shards of candidates that no selection has seen; fresh_count: candidates in them.
        reading: those that the present selection sees; selecting: when it was asked for, seconds since the epoch; None: none
            is.
        overtaken: whether a model came while a selection with an older one was under way; is_late: whether the newest selection
            was overtaken so, and no other is under way.
        selection: the newest one.
        asked: rows of its queue that were asked for, from the first; before any selection, start structures.
        open: labels that were asked for.
        again: of these, those to be asked for once more: their worker was lost, or their driver.
        numbers: labels asked for in the whole campaign, each counted once.
        initial_failed: of the start structures, those that failed.
        pending: whether labels are gathered that no model has been trained on; training: whether one is.
        segments: of walkers that ended since a selection was asked for, with the newest model; reading_segments: those whose
            candidates the present selection sees.
        barren: those whose candidates were looked at since a selection last picked something.
        saved: candidates that waited for a label and needed none when a newer model had come.
    """

    batches: int
    idle: tuple[int, ...]
    fresh: tuple[FileRef, ...] = ()
    fresh_count: int = 0
    reading: tuple[FileRef, ...] = ()
    reading_count: int = 0
    selecting: float | None = None
    overtaken: bool = False
    is_late: bool = False
    selection: Selected | None = None
    asked: int = 0
    open: "HashTrieMap[Place, Open]" = field(default_factory=HashTrieMap)
    again: tuple[Place, ...] = ()
    numbers: int = 0
    initial_failed: int = 0
    pending: bool = False
    training: bool = False
    segments: int = 0
    reading_segments: int = 0
    barren: int = 0
    saved: int = 0

    @classmethod
    def begin(cls, batches: int) -> "Flow":
        """Nothing is under way; so many batches of walkers are."""
        return cls(batches=batches, idle=tuple(range(batches)))

    @property
    def waiting(self) -> int:
        """Picked candidates that were not asked for."""
        return max(0, self.selection.count - self.asked) if self.selection is not None else 0

    @property
    def pool(self) -> int:
        """Candidates that wait: picked, kept for later, and not looked at yet."""
        kept = self.selection.kept - self.asked if self.selection is not None else 0
        return kept + self.fresh_count + self.reading_count

    @property
    def left(self) -> FrameRows | None:
        """Candidates of the newest selection that were not asked for; None: there are none."""
        if self.selection is None or self.selection.picks is None or self.asked >= self.selection.kept:
            return None
        return FrameRows(file=self.selection.picks, rows=tuple(range(self.asked, self.selection.kept)))

    @property
    def fruitless(self) -> int:
        """Segments of walkers in a row that brought nothing worth a label, up to the last."""
        return 0 if self.fresh_count or self.reading_count else self.barren + self.segments

    @property
    def selections(self) -> int:
        """How many there were."""
        return self.selection.round if self.selection is not None else 0


def resumed(flow: Flow) -> Flow:
    """After the driver changed: what was under way is asked for once more."""
    return replace(
        flow,
        idle=tuple(range(flow.batches)),
        fresh=(*flow.reading, *flow.fresh),
        fresh_count=flow.reading_count + flow.fresh_count,
        reading=(),
        reading_count=0,
        segments=0,
        reading_segments=0,
        barren=0,
        selecting=None,
        overtaken=False,
        training=False,
        again=tuple(sorted(flow.open)),
    )


def flowed(flow: Flow, event: Event, retries: Mapping[Place, Open]) -> Flow:
    """What is under way after one more event.

    Args:
        flow: before it.
        event: what happened.
        retries: quarantined labels that may be asked for again, with the numbers they had.
    """
    match event:
        case Submitted():
            return _asked(flow, event, retries)
        case Walked():
            return replace(
                flow,
                idle=(*flow.idle, event.item),
                fresh=(*flow.fresh, event.candidates) if event.count else flow.fresh,
                fresh_count=flow.fresh_count + event.count,
                segments=flow.segments + (event.steps_left == 0),
            )
        case Selected():
            return _selected(flow, event)
        case Labelled() | LabelFailed():
            place = event.round, event.item
            is_new = isinstance(event, LabelFailed) and event.round == 0 and place not in retries
            initial_failed = flow.initial_failed + is_new
            return replace(flow, open=flow.open.discard(place), initial_failed=initial_failed)
        case Gathered():
            return replace(flow, pending=True)
        case Trained():
            # what is not worth a label to one model may be to the next
            return replace(
                flow,
                pending=False,
                training=False,
                overtaken=flow.selecting is not None,
                segments=0,
                reading_segments=0,
                barren=0,
            )
        case Rejected():
            return replace(flow, pending=event.attempt == 0, training=False)
        case TaskLost():
            return _lost(flow, request_of(event.task))
        case _:
            return flow


def _asked(flow: Flow, event: Submitted, retries: Mapping[Place, Open]) -> Flow:
    requests = [request_of(name) for name in event.tasks]
    match event.work:
        case Work.WALK:
            items = {request.item for request in requests}
            return replace(flow, idle=tuple(item for item in flow.idle if item not in items))
        case Work.SELECT:
            return replace(
                flow,
                selecting=event.time,
                is_late=False,
                reading=flow.fresh,
                reading_count=flow.fresh_count,
                reading_segments=flow.segments,
                fresh=(),
                fresh_count=0,
                segments=0,
            )
        case Work.TRAIN:
            return replace(flow, training=True)
        case Work.LABEL:
            return _labels_asked(flow, [(request.round, request.item) for request in requests], retries)


def _labels_asked(flow: Flow, places: list[Place], retries: Mapping[Place, Open]) -> Flow:
    picks = flow.selection.picks if flow.selection is not None else None
    opened, asked = flow.open, 0
    for place in places:
        if place in opened:
            continue
        if (retry := retries.get(place)) is not None:
            opened = opened.insert(place, retry)
        else:
            opened = opened.insert(place, Open(flow.numbers + asked, picks))
            asked += 1
    known = set(places)
    return replace(
        flow,
        open=opened,
        again=tuple(place for place in flow.again if place not in known),
        asked=flow.asked + asked,
        numbers=flow.numbers + asked,
    )


def _selected(flow: Flow, event: Selected) -> Flow:
    return replace(
        flow,
        selection=event,
        asked=0,
        selecting=None,
        overtaken=False,
        is_late=flow.overtaken,
        reading=(),
        reading_count=0,
        reading_segments=0,
        barren=0 if event.count else flow.barren + flow.reading_segments,
        saved=flow.saved + event.saved,
    )


def _lost(flow: Flow, request: Request) -> Flow:
    match request.work:
        case Work.WALK:
            return replace(flow, idle=(*flow.idle, request.item))
        case Work.SELECT:
            return replace(
                flow,
                selecting=None,
                overtaken=False,
                fresh=(*flow.reading, *flow.fresh),
                fresh_count=flow.reading_count + flow.fresh_count,
                reading=(),
                reading_count=0,
                segments=flow.reading_segments + flow.segments,
                reading_segments=0,
            )
        case Work.TRAIN:
            return replace(flow, training=False)
        case Work.LABEL:
            return replace(flow, again=(*flow.again, (request.round, request.item)))
