"""A campaign model by model, from its directory. Reads only, also while it runs and after a crash."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.analysis.coverage import Coverage
from pipeline.analysis.intervals import share_interval
from pipeline.analysis.variables import evaluate_all
from pipeline.events import Event, Gathered, LabelFailed, Labelled, Rejected, Selected, Trained, Walked
from pipeline.frames import Frame
from pipeline.potentials import load
from pipeline.records import Label, Scores
from pipeline.settings.campaign import CampaignSettings
from pipeline.settings.schedule import StreamingSchedule
from pipeline.settings.variables import Variable
from pipeline.shards import read_candidates, read_labels
from pipeline.store import Store
from pipeline.training.scoring import score

WORK = ("walk", "label", "select", "train")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRow:
    """One trained model and what led to it.

    Attributes:
        round, version, labels: of the model; in a stream its round is the number of models before it.
        walker_steps: MD steps since the model before; stops: walkers that stopped, per reason.
        explored: per system, coverage of its variables by all walker frames and labels so far.
        labelled: the same by labels alone.
        held_out: scores on the held-out set; None without one.
        validation: scores on its validation labels.
        fresh: scores of the model before on the labels since then, which it had not seen.
        seconds: task time per kind of work since the model before, refused models counted.
    """

    round: int
    version: int
    labels: int
    walker_steps: int
    stops: dict[str, int]
    explored: dict[str, float]
    labelled: dict[str, float]
    held_out: Scores | None
    validation: Scores | None
    fresh: Scores | None
    seconds: dict[str, float]


def round_rows(store: Store, held_out: Sequence[Label] = ()) -> list[RoundRow]:
    """One row per published model, oldest first.

    Args:
        store: the campaign.
        held_out: labels the campaign never sees; every model is scored on them.

    Raises:
        StoreError: the log or a shard is missing or changed.
        ModelError: a model file is missing or changed.
    """
    settings = CampaignSettings.model_validate(store.state().settings)
    tally = _Tally(store, _with_variables(settings), is_stream=isinstance(settings.schedule, StreamingSchedule))
    rows = []
    for event in store.reading():
        tally.absorb(event)
        if isinstance(event, Trained):
            model = load(store.absolute(event.file).path, event.file.sha256) if held_out else None
            scores = score(model, held_out) if model else None
            rows.append(tally.row(event, scores))
    return rows


def fresh_coverage(rows: Sequence[RoundRow]) -> tuple[float, tuple[float, float], int]:
    """How often energy errors on new labels were within the bound the model before gave: share, 95% interval, trials.

    New labels were selected for being uncertain, so the conformal guarantee, which is for exchangeable data, does not cover
    them: this is the honest, harder number.
    """
    scored = [row.fresh for row in rows if row.fresh is not None and row.fresh.coverage_total is not None]
    trials = sum(scores.count for scores in scored)
    hits = sum(round((scores.coverage_total or 0.0) * scores.count) for scores in scored)
    return (hits / trials if trials else float("nan")), share_interval(hits, trials), trials


def system_variables(store: Store) -> dict[str, tuple[Variable, ...]]:
    """The collective variables of each system that has between one and three."""
    return _with_variables(CampaignSettings.model_validate(store.state().settings))


def _with_variables(settings: CampaignSettings) -> dict[str, tuple[Variable, ...]]:
    return {system.name: system.variables for system in settings.systems if 1 <= len(system.variables) <= 3}


def visited(store: Store, event: Walked, system: str) -> list[Frame]:
    """The frames of one system that a batch of walkers brought."""
    return [c.frame for c in read_candidates(store.absolute(event.candidates)) if c.frame.system == system]


class _Tally:
    """Sums since the newest model, and coverages over the whole campaign."""

    def __init__(self, store: Store, variables: dict[str, tuple[Variable, ...]], *, is_stream: bool) -> None:
        self._store, self._variables, self._is_stream = store, variables, is_stream
        self._explored = {system: Coverage.of(several) for system, several in variables.items()}
        self._labelled = dict(self._explored)
        self._clear()

    def _clear(self) -> None:
        self._steps = 0
        self._stops: Counter[str] = Counter()
        self._seconds = dict.fromkeys(WORK, 0.0)
        self._gathered: list[Gathered] = []

    def absorb(self, event: Event) -> None:
        """Take note of an event."""
        match event:
            case Walked():
                self._steps += event.walker_steps
                self._stops.update(event.stops)
                self._seconds["walk"] += event.timing.wall_s
                for system, found in event.found.items():
                    if system in self._variables:
                        self._explored[system] = self._explored[system].with_cells(found.cells)
            case Labelled():
                self._seconds["label"] += event.timing.wall_s
            case LabelFailed():
                self._seconds["label"] += event.timing.wall_s if event.timing else 0.0
            case Gathered():
                # in a round that labels are tried again in they are gathered anew, in a stream only those that came since
                kept = [one for one in self._gathered if self._is_stream or one.round != event.round]
                self._gathered = [*kept, event]
            case Selected():
                self._seconds["select"] += event.timing.wall_s if event.timing else 0.0
            case Trained() | Rejected():
                self._seconds["train"] += event.timing.wall_s

    def row(self, event: Trained, held_out: Scores | None) -> RoundRow:
        """The row of a model; begins the next one."""
        labels = [label for one in self._gathered for label in read_labels(self._store.absolute(one.file))]
        for label in labels:
            if label.frame.system in self._variables:
                self._visit(self._explored, label.frame.system, [label.frame])
                self._visit(self._labelled, label.frame.system, [label.frame])
        row = RoundRow(
            round=event.round,
            version=event.version,
            labels=event.labels,
            walker_steps=self._steps,
            stops=dict(self._stops),
            explored={system: coverage.value for system, coverage in self._explored.items()},
            labelled={system: coverage.value for system, coverage in self._labelled.items()},
            held_out=held_out,
            validation=event.validation,
            fresh=event.fresh,
            seconds=dict(self._seconds),
        )
        self._clear()
        return row

    def _visit(self, coverages: dict[str, Coverage], system: str, frames: Sequence[Frame]) -> None:
        coverages[system] = coverages[system].with_points(evaluate_all(self._variables[system], frames))
