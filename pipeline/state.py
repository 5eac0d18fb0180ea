"""What a campaign knows at one moment."""

from dataclasses import dataclass, field
from typing import Any

from rpds import HashTrieMap

from pipeline.events import (
    Created,
    Gathered,
    LabelFailed,
    Labelled,
    Selected,
    Stopped,
    TaskFailed,
    Trained,
    Walked,
)
from pipeline.flow import Flow, Place
from pipeline.records import FileRef
from pipeline.rows import Rows

MAX_STARTS = 64
"""Labelled structures handed to a batch of walkers to start from."""
MOST_RECENT = 1000
"""Labels of finished rounds that are looked at for a fault that hits them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """A quarantined label that is tried again.

    Attributes:
        failure: as it was recorded.
        picks: the shard of the frames selected in its round; None in round 0.
    """

    failure: LabelFailed
    picks: FileRef | None

    @property
    def place(self) -> Place:
        """Its round and item."""
        return self.failure.round, self.failure.item


@dataclass(frozen=True, slots=True, kw_only=True)
class Explored:
    """What walkers of one system found.

    Attributes:
        count: candidates since the newest model; bounds: their largest atom-based uncertainties, summed up, eV/Å.
        mean_bound: their mean when that model came, eV/Å; None: no walker had been there.
        cells: visited cells of the grid of its variables, as bits.
    """

    count: int = 0
    bounds: float = 0.0
    mean_bound: float | None = None
    cells: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignState:
    """A campaign at one moment. File references are relative to its directory.

    Labels that a model knows are counted, not kept: what it holds grows with the models, not with the labels.

    Attributes:
        created: how it began.
        settings: the settings now in force, plain values.
        session_started: when the present driver took over, seconds since the epoch.
        earlier_wall_s: wall time of all drivers before it.
        last_time: time of the last event.
        flow: what is under way in a stream; None with rounds.
        round: the present round, 0 labels the initial frames; in a stream the number of selections.
        walked, selected: what the present round has so far; ``walked`` holds every leg, a batch's in their order.
        arrived, round_failures: labels of the present round and those that failed, in the order they came; in a stream the
            labels that are not gathered yet.
        retries: quarantined labels, of any round, that are to be tried again.
        retried: items of the present round that were ever tried again.
        adopted: labels of earlier rounds that succeeded at last in the present one, whose data they join.
        labelled, failed: how many there are of both in the whole campaign; labelled_of, failed_of: the same per system.
        recent: labels that came since the last resume, in their order: the failure, or None for a good one.
        reference: digest of the level of theory, fixed by the first label; empty before.
        first_number: number of the present round's first label: all asked for in earlier rounds.
        newest: system -> its newest labels that a model knows, at most 64, by number; with rounds all of one training.
        gathered: one shard per round or training that has all its labels, oldest first; learned: labels in them.
        unlearned: gathered labels that the running model does not know.
        models: published ones, oldest first, without their training histories.
        versions: models published or given up; attempt: 1 while one is trained anew that the gate refused.
        walkers: of each batch its last leg, which names the shard with its walkers.
        explored: per system, what walkers found; cells: the visited cells of each when models came, in a stream when every
            batch had walked since the entry before; legs: of walkers since the last entry.
        barren: rounds in a row that brought no new label.
        lost: tasks whose worker was lost for good since the newest model, once for each time.
        core_s, gpu_s: core and GPU seconds that all tasks held.
        failure: a task that failed and keeps the campaign from going on.
        stopped: how the last driver ended; None while one runs, or when it was killed.
    """

    created: Created
    settings: dict[str, Any]
    session_started: float
    earlier_wall_s: float = 0.0
    last_time: float
    flow: Flow | None = None
    round: int = 0
    walked: Rows[Walked] = field(default_factory=Rows)
    selected: Selected | None = None
    arrived: Rows[Labelled] = field(default_factory=Rows)
    round_failures: Rows[LabelFailed] = field(default_factory=Rows)
    retries: tuple[Retry, ...] = ()
    retried: frozenset[int] = frozenset()
    adopted: tuple[Labelled, ...] = ()
    labelled: int = 0
    labelled_of: dict[str, int] = field(default_factory=dict)
    failed: int = 0
    failed_of: dict[str, int] = field(default_factory=dict)
    recent: Rows[LabelFailed | None] = field(default_factory=Rows)
    reference: str = ""
    first_number: int = 0
    newest: dict[str, tuple[Labelled, ...]] = field(default_factory=dict)
    gathered: Rows[Gathered] = field(default_factory=Rows)
    learned: int = 0
    unlearned: tuple[Labelled, ...] = ()
    models: Rows[Trained] = field(default_factory=Rows)
    versions: int = 0
    attempt: int = 0
    walkers: "HashTrieMap[int, Walked]" = field(default_factory=HashTrieMap)
    explored: dict[str, Explored] = field(default_factory=dict)
    cells: Rows[dict[str, int]] = field(default_factory=Rows)
    legs: int = 0
    barren: int = 0
    lost: tuple[str, ...] = ()
    core_s: float = 0.0
    gpu_s: float = 0.0
    failure: TaskFailed | None = None
    stopped: Stopped | None = None

    @property
    def spent(self) -> int:
        """Reference calculations asked for and answered at least once, failed ones counted."""
        return self.labelled + self.failed + len(self.retries)

    @property
    def answered(self) -> int:
        """Labels of the present round that are there, or failed."""
        return len(self.arrived) + len(self.round_failures)

    @property
    def ever_failed(self) -> int:
        """Labels of the present round that failed at least once, whatever came of them since."""
        return len({row.item for row in self.round_failures} | self.retried)

    @property
    def round_labels(self) -> tuple[Labelled, ...]:
        """The data that are gathered next, in the order of their numbers: labels of the round, and earlier ones tried again."""
        return tuple(sorted([*self.arrived, *self.adopted], key=lambda row: row.number))

    @property
    def loose(self) -> tuple[Labelled, ...]:
        """Labels that lie in no gathered shard, in the order of their numbers."""
        return () if self.flow is None and self.is_gathered else self.round_labels

    def retry_of(self, round_index: int, item: int) -> Retry | None:
        """The label of a round that is to be tried again; None where it is not one."""
        return next((retry for retry in self.retries if retry.place == (round_index, item)), None)

    @property
    def is_gathered(self) -> bool:
        """Whether the labels of the round lie in one shard; in a stream, whether some do that no model was trained on."""
        if self.flow is not None:
            return self.flow.pending
        return bool(self.gathered) and self.gathered[-1].round == self.round

    def wall_s(self, now: float) -> float:
        """Wall time over all drivers, seconds."""
        return self.earlier_wall_s + max(now - self.session_started, 0.0)
