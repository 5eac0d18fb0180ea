"""From a request to a task: everything a worker needs, read from the campaign directory."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.durable import written_into
from pipeline.energy_window import EnergyWindow
from pipeline.errors import StoreError
from pipeline.events import Labelled, Work
from pipeline.frames import Frame
from pipeline.guesses import Guesses
from pipeline.initial import initial_frame, start_volumes
from pipeline.plan import (
    conditions_of,
    enough_left,
    fresh_labels,
    last_leg,
    picks_allowed,
    start_labels,
    walker_shares,
)
from pipeline.records import (
    Candidate,
    FileRef,
    FrameRows,
    LabelTask,
    Limits,
    ModelRef,
    SelectTask,
    Task,
    TrainTask,
    WalkTask,
)
from pipeline.requests import Request
from pipeline.seeds import Stream, seed_for
from pipeline.settings.campaign import CampaignSettings
from pipeline.settings.dft import ElectronicSettings
from pipeline.shards import LIST, read_candidates, write_list
from pipeline.state import CampaignState
from pipeline.store import Store
from pipeline.streaming import kept_at_most, picks_wanted


@dataclass(frozen=True, slots=True)
class Job:
    """A task, the request it answers, and where its frame comes from (labels only)."""

    request: Request
    task: Task
    origin: dict[str, Any] = field(default_factory=dict)


def origin_of(candidate: Candidate) -> dict[str, Any]:
    """Provenance of a label whose frame a walker found, as plain values."""
    return {
        "walker": candidate.walker,
        "step": candidate.step,
        "temperature_K": candidate.temperature_K,
        "pressure_MPa": candidate.pressure_MPa,
        "tau": candidate.tau,
        "model_version": candidate.model_version,
        "reason": candidate.reason.value,
        "total_uncertainty_eV_per_atom": candidate.total_uncertainty,
        "max_atomic_uncertainty_eV_per_A": float(candidate.atomic_uncertainty.max()),
    }


class TaskMaker:
    """Makes tasks. Reads each shard once as long as it is needed again and again.

    Args:
        store: the campaign directory.
        settings: the settings in force.
        starts: start structures, different ones, in order.
        session: differs between drivers, so that a worker that outlived its driver cannot write where another one does.

    Attributes:
        guesses: restart files of labels.
    """

    def __init__(self, store: Store, settings: CampaignSettings, starts: Sequence[Frame], session: str) -> None:
        self._store, self._settings, self._starts, self._session = store, settings, starts, session
        self._volumes_A3 = start_volumes(starts)
        self._picks: tuple[FileRef | None, list[Candidate]] = (None, [])
        self._window = EnergyWindow(store, settings.labels.energy_window_eV_per_atom)
        self.guesses = Guesses(store.guesses)
        self._start_shard: tuple[tuple[Labelled, ...], FileRef] | None = None

    def make(self, request: Request, state: CampaignState) -> Job:
        """The task of a request.

        Raises:
            StoreError: a shard is missing or changed.
        """
        match request.work:
            case Work.WALK:
                return Job(request, self._walk(request, state))
            case Work.SELECT:
                return Job(request, self._select(request, state))
            case Work.LABEL:
                return self._label(request, state)
            case Work.TRAIN:
                return Job(request, self._train(request, state))

    def _walk(self, request: Request, state: CampaignState) -> WalkTask:
        settings = self._settings
        # a leg goes on where the last one ended; the first of a segment has all of it before it
        last = last_leg(state, request.item) if request.leg else None
        conditions = conditions_of(request.item, settings)
        return WalkTask(
            task=request.name,
            round=request.round,
            item=request.item,
            leg=request.leg,
            model=self._model(state),
            settings=settings.walkers,
            temperatures_K=tuple(temperature for temperature, _ in conditions),
            pressures_MPa=tuple(pressure for _, pressure in conditions),
            variables=settings.hill_variables,
            volumes_A3=self._volumes_A3,
            shares=walker_shares(state, settings),
            followed={system.name: system.variables for system in settings.systems if system.variables},
            starts=self._start_frames(state),
            resume=self._walkers(request.item, state),
            steps=settings.walkers.segment_steps if last is None else last.steps_left,
            enough=enough_left(state, request.item, settings),
            born=(0,) * settings.walkers.batch if last is None else last.born,
            seconds=settings.site.walk_task_s,
            output=str(self._output(request)),
            seed=seed_for(settings.seed, Stream.WALK, request.round, request.item),
            threads=settings.site.walk_threads,
        )

    def _select(self, request: Request, state: CampaignState) -> SelectTask:
        settings, flow = self._settings, state.flow
        learned, unlearned = _by_knowledge(state)
        if flow is None:
            walked = sorted(state.walked, key=lambda walk: (walk.item, walk.leg))
            candidates = [walk.candidates for walk in walked]
            count = keep = picks_allowed(state, settings)
        else:
            candidates = list(flow.reading)
            count, keep = picks_wanted(flow, settings), kept_at_most(settings)
        in_flight = self._in_flight(state)
        return SelectTask(
            task=request.name,
            round=request.round,
            model=self._model(state),
            settings=settings.selection,
            candidates=(self._listed(request, "candidates", candidates),),
            labels=(self._listed(request, "labels", learned),),
            unlearned=(self._listed(request, "unlearned", unlearned),),
            sigma=settings.uncertainty.sigma,
            pool=self._absolute(flow.left) if flow is not None and flow.left is not None else None,
            waiting=flow.waiting if flow is not None else 0,
            in_flight=in_flight,
            count=count,
            keep=keep,
            known_eV_per_A=settings.known_eV_per_A,
            shares=settings.shares,
            labelled=self._labels_of(state, in_flight),
            output=str(self._output(request)),
            seed=seed_for(settings.seed, Stream.SELECT, request.round, 0),
            threads=settings.site.train_threads,
            ranks=settings.site.train_ranks,
            launch=settings.site.launch,
        )

    def _absolute(self, rows: FrameRows) -> FrameRows:
        return FrameRows(file=self._store.absolute(rows.file), rows=rows.rows)

    def _in_flight(self, state: CampaignState) -> tuple[FrameRows, ...]:
        """Candidates whose labels were asked for and have not come, by the shard they were picked in; no start structures."""
        if state.flow is None:
            return ()
        rows: dict[FileRef, list[int]] = {}
        for (_, row), label in sorted(state.flow.open.items()):
            if label.picks is not None:
                rows.setdefault(label.picks, []).append(row)
        return tuple(self._absolute(FrameRows(file=file, rows=tuple(several))) for file, several in rows.items())

    def _labels_of(self, state: CampaignState, in_flight: Sequence[FrameRows]) -> dict[str, int]:
        """Labels of each system, those in flight included; empty where nobody gave shares."""
        if not self._settings.shares:
            return {}
        # whose labels fail has had its turn too: it would have every turn otherwise
        counts = Counter(state.labelled_of) + Counter(state.failed_of)
        if state.flow is not None:
            starts = [item for (number, item), label in state.flow.open.items() if number == 0 and label.picks is None]
            counts.update(self._starts[item % len(self._starts)].system for item in starts)
        for part in in_flight:
            candidates = read_candidates(part.file)
            counts.update(candidates[row].frame.system for row in part.rows)
        return dict(counts)

    def _label(self, request: Request, state: CampaignState) -> Job:
        frame, origin = self._frame(request, state)
        labels = self._settings.labels
        from_guess = isinstance(labels.reference, ElectronicSettings) and labels.reference.guess == "nearest"
        task = LabelTask(
            task=request.name,
            round=request.round,
            item=request.item,
            frame=frame,
            reference=labels.reference,
            scratch=str(self._store.scratch_of(request.name)),
            threads=self._settings.site.label_threads,
            limits=Limits.of(labels, self._window.limits(frame.numbers, state)),
            recovery=labels.recovery,
            launch=self._settings.site.label_launch,
            guess=self.guesses.nearest(frame) if from_guess else "",
            keep_guess=from_guess,
        )
        return Job(request, task, origin)

    def _train(self, request: Request, state: CampaignState) -> TrainTask:
        settings = self._settings
        output = self._output(request)
        return TrainTask(
            task=request.name,
            version=request.item,
            parent=self._model(state) if state.models else None,
            labels=(self._listed(request, "labels", [gathered.file for gathered in state.gathered]),),
            fresh=tuple(row.identity for row in fresh_labels(state)),
            potential=settings.potential,
            uncertainty=settings.uncertainty,
            settings=settings.training,
            walkers=settings.walkers,
            attempt=request.leg,
            output=str(output / "model.pt"),
            progress=str(output / "progress.json"),
            seed=seed_for(settings.seed, Stream.TRAIN, request.round, request.item),
            threads=settings.site.train_threads,
            ranks=settings.site.train_ranks,
            launch=settings.site.launch,
        )

    def _model(self, state: CampaignState) -> ModelRef:
        newest = state.models[-1]
        return ModelRef(version=newest.version, file=self._store.absolute(newest.file))

    def _listed(self, request: Request, name: str, files: Sequence[FileRef]) -> FileRef:
        """Files of the events by a list: there is one more in every round, and several in every leg."""
        directory = self._output(request)
        with written_into(directory):
            return write_list(directory / f"{name}{LIST}", [self._store.absolute(file) for file in files])

    def _walkers(self, item: int, state: CampaignState) -> FileRef | None:
        """The walkers of a batch as its last leg left them, in whichever round that was."""
        last = state.walkers.get(item)
        return None if last is None else self._store.absolute(last.walkers)

    def _start_frames(self, state: CampaignState) -> FileRef:
        """A shard of the labels that new walkers start from, the same on every run."""
        rows = start_labels(state)
        if self._start_shard is None or self._start_shard[0] != rows:
            file = self._store.put_labels(f"starts-v{state.models[-1].version:04d}", self._store.rows(rows))
            self._start_shard = (rows, self._store.absolute(file))
        return self._start_shard[1]

    def _output(self, request: Request) -> Path:
        """Where the worker of a task writes its files: nobody else's, not even that of an earlier driver."""
        return self._store.scratch_of(request.name) / self._session

    def _frame(self, request: Request, state: CampaignState) -> tuple[Frame, dict[str, Any]]:
        """The frame of a label and where it comes from.

        Raises:
            StoreError: a shard is missing or changed, or holds another frame than the one that failed.
        """
        retry = state.retry_of(request.round, request.item)
        if request.round == 0:
            frame, origin = initial_frame(self._starts, request.item, self._settings)
        else:
            candidate = self._pick(request, retry.picks if retry is not None else _picks(request, state))
            frame, origin = candidate.frame, origin_of(candidate)
        if retry is not None and retry.failure.identity != frame.identity:
            raise StoreError(
                f"{request.name}: its frame is not the one that failed ({frame.identity}, {retry.failure.identity}).",
                "Restore the campaign directory from a copy.",
            )
        return frame, origin

    def _pick(self, request: Request, picks: FileRef | None) -> Candidate:
        assert picks is not None
        if self._picks[0] != picks:
            self._picks = (picks, read_candidates(self._store.absolute(picks)))
        return self._picks[1][request.item]


def _picks(request: Request, state: CampaignState) -> FileRef | None:
    """The shard of the selection that a label is of."""
    if state.flow is not None:
        return state.flow.open[request.round, request.item].picks
    return state.selected.picks if state.selected is not None else None


def _by_knowledge(state: CampaignState) -> tuple[list[FileRef], list[FileRef]]:
    """Shards of labels that the newest model was trained on, and of those that it was not."""
    files, unlearned = [gathered.file for gathered in state.gathered], 0
    missing = len(state.unlearned)
    while missing > 0:  # the newest shards hold what was gathered since
        unlearned += 1
        missing -= state.gathered[-unlearned].count
    split = len(files) - unlearned
    loose = dict.fromkeys(row.file for row in state.loose)
    return files[:split], [*files[split:], *loose]
