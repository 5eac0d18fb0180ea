"""How long tasks take and what they bring, as a simulation draws it."""

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from statistics import fmean
from typing import Generic, Protocol, TypeVar

from pipeline.estimate import Costs
from pipeline.events import Work
from pipeline.settings.campaign import CampaignSettings

LABEL_S, TRAIN_S, WALK_S = 355.0, 261.0, 204.0
"""Seconds of a DFT calculation, a training and a sampling, as published for a fine-tuning campaign over several sites: what is
taken where nobody measured anything. A relaxation with CP2K took 1,513 s there."""
SELECT_S = 10.0
"""Seconds of a selection: that of 1,000 candidates of some twenty atoms takes less on one core."""
SPREAD = 0.3
"""Standard deviation of the logarithm of durations where nothing was measured."""
KNOWN = 0.5
"""Share of new candidates that need no label, where nothing was measured: duplicates, and what the model knows."""
NEAR = 4
"""Measured values are drawn from the quarter that is nearest in the number of labels."""
SAMPLES = 400
"""Tasks that means are taken of."""

T = TypeVar("T")


class Lasting(Protocol):
    """How long tasks of a kind take."""

    def seconds(self, random: Random, *, labels: int, epochs: int) -> float:
        """One of them.

        Args:
            random: where chance comes from.
            labels: known at that time.
            epochs: of a training; 0: none.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """Log-normal around a mean, seconds; ``sigma`` is the standard deviation of the logarithm."""

    mean_s: float
    sigma: float = SPREAD

    def seconds(self, random: Random, *, labels: int = 0, epochs: int = 0) -> float:
        """The same for any number of labels and epochs."""
        if not self.sigma:
            return self.mean_s
        return self.mean_s * random.lognormvariate(-(self.sigma**2) / 2, self.sigma)


@dataclass(frozen=True, slots=True, kw_only=True)
class PerStructure:
    """Training that takes so many seconds per structure and epoch; ``share`` of the labels are trained on."""

    structure_epoch_s: float
    share: float = 1.0

    def seconds(self, random: Random, *, labels: int, epochs: int) -> float:
        """In proportion to both."""
        return self.structure_epoch_s * self.share * labels * epochs


@dataclass(frozen=True, slots=True, kw_only=True)
class Near(Generic[T]):
    """Measured values and the number of labels each was measured at, rising."""

    labels: tuple[int, ...]
    values: tuple[T, ...]

    def draw(self, random: Random, labels: int) -> T:
        """One of the quarter that is nearest in the number of labels."""
        count = -(-len(self.values) // NEAR)
        middle = bisect_left(self.labels, labels)
        first = min(max(0, middle - count // 2), len(self.values) - count)
        return self.values[first + random.randrange(count)]


def always(value: T) -> Near[T]:
    """The same for any number of labels."""
    return Near(labels=(0,), values=(value,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampled:
    """Measured seconds, drawn again."""

    measured: Near[float]

    def seconds(self, random: Random, *, labels: int, epochs: int) -> float:
        """One that was measured at about so many labels."""
        return self.measured.draw(random, labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredTraining:
    """Measured trainings, from scratch and continued: seconds per label and epoch at each number of labels, rising."""

    labels: tuple[int, ...]
    label_epoch_s: tuple[float, ...]

    def seconds(self, random: Random, *, labels: int, epochs: int) -> float:
        """As the training that is nearest in the number of labels."""
        place = bisect_left(self.labels, labels)
        nearest = min((max(0, place - 1), min(place, len(self.labels) - 1)), key=lambda k: abs(self.labels[k] - labels))
        return self.label_epoch_s[nearest] * labels * epochs


@dataclass(frozen=True, slots=True)
class Segment:
    """What a batch of walkers takes and brings in a whole segment."""

    seconds: float
    candidates: int


class Segments(Protocol):
    """Segments of batches of walkers."""

    def draw(self, random: Random, labels: int) -> Segment:
        """One of them, with a model that knows so many labels."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EvenSegments:
    """Segments that bring the same number of candidates each."""

    seconds: Around
    candidates: int

    def draw(self, random: Random, labels: int) -> Segment:
        """The same for any number of labels."""
        return Segment(self.seconds.seconds(random), self.candidates)


@dataclass(frozen=True, slots=True, kw_only=True)
class Handling:
    """What surrounds a task, seconds.

    Attributes:
        first_s: from a new worker and a waiting task to its beginning.
        start_s: the same for a worker that had one before; it is idle meanwhile.
        report_s: from its end until the driver has its result on disk.
    """

    first_s: float = 0.0
    start_s: float = 0.0
    report_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """How long tasks of a campaign take and what they bring.

    Attributes:
        walk: segments of batches of walkers, cut into legs by ``site.walk_task_s``.
        handling: per kind of work; none where it is missing.
        queue_wait: of a batch job.
        known: share of new candidates that need no label, by the labels that the model knows.
        stale: share of waiting candidates that need none any more when a selection looks at them again.
        failed: share of labels that fail for good; lost: of tasks whose worker is lost.
        rejected: chance that the gate refuses a model, by the labels it was trained on.
        source: where these figures are from.
    """

    walk: Segments
    label: Lasting
    select: Lasting
    train: Lasting
    handling: Mapping[Work, Handling] = field(default_factory=dict)
    queue_wait: Around = field(default_factory=lambda: Around(mean_s=0.0))
    known: Near[float] = field(default_factory=lambda: always(KNOWN))
    stale: float = 0.0
    failed: float = 0.0
    lost: float = 0.0
    rejected: Near[float] = field(default_factory=lambda: always(0.0))
    source: str = ""

    @classmethod
    def published(cls, settings: CampaignSettings) -> "Durations":
        """Times that others published, and as many candidates as the walkers of a batch store."""
        return cls(
            walk=EvenSegments(seconds=Around(mean_s=WALK_S), candidates=stored(settings)),
            label=Around(mean_s=LABEL_S),
            select=Around(mean_s=SELECT_S),
            train=Around(mean_s=TRAIN_S),
            source="durations that others published",
        )

    @classmethod
    def of_costs(cls, costs: Costs, settings: CampaignSettings) -> "Durations":
        """Times of `farwalk check`, which measures one piece of each kind of work."""
        splits = settings.labels.splits
        segment_s = settings.walkers.segment_steps * costs.walker_step_s
        return cls(
            walk=EvenSegments(seconds=Around(mean_s=segment_s), candidates=stored(settings)),
            label=Around(mean_s=costs.label_s),
            select=Around(mean_s=SELECT_S),
            train=PerStructure(
                structure_epoch_s=costs.structure_epoch_s, share=1.0 - splits.validation - splits.calibration
            ),
            handling={Work.LABEL: Handling(first_s=costs.handling_s, start_s=costs.handling_s)},
            source="times of a check",
        )


def stored(settings: CampaignSettings) -> int:
    """Candidates of a batch of walkers in a whole segment."""
    walkers = settings.walkers
    return walkers.batch * max(1, math.floor(walkers.segment_steps / walkers.store_every))


def means(durations: Durations, settings: CampaignSettings) -> dict[str, float]:
    """Mean seconds of each kind of work at half of the labels; training as it goes on from the last model."""
    random, labels, training = Random(settings.seed), settings.labels.budget // 2, settings.training
    epochs = training.epochs if training.start == "scratch" else training.warm_epochs
    return {
        "label": fmean(durations.label.seconds(random, labels=labels, epochs=0) for _ in range(SAMPLES)),
        "walk": fmean(durations.walk.draw(random, labels).seconds for _ in range(SAMPLES)),
        "select": fmean(durations.select.seconds(random, labels=labels, epochs=0) for _ in range(SAMPLES)),
        "train": fmean(durations.train.seconds(random, labels=labels, epochs=epochs) for _ in range(SAMPLES)),
    }
