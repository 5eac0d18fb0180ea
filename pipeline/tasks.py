"""From a request to a task: everything a worker needs, read from the campaign directory."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.events import Labelled, Work
from pipeline.frames import Frame
from pipeline.initial import initial_frame
from pipeline.policy import (
    Request,
    enough_per_batch,
    fresh_labels,
    picks_allowed,
    start_labels,
    temperatures_of,
)
from pipeline.records import (
    Candidate,
    FileRef,
    LabelTask,
    ModelRef,
    SelectTask,
    Task,
    TrainTask,
    WalkerState,
    WalkTask,
)
from pipeline.seeds import Stream, seed_for
from pipeline.settings.campaign import CampaignSettings
from pipeline.shards import read_candidates, read_walkers
from pipeline.state import CampaignState
from pipeline.store import Store


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
    """

    def __init__(self, store: Store, settings: CampaignSettings, starts: Sequence[Frame], session: str) -> None:
        self._store, self._settings, self._starts, self._session = store, settings, starts, session
        self._picks: tuple[FileRef | None, list[Candidate]] = (None, [])
        self._frames: tuple[tuple[Labelled, ...], tuple[Frame, ...]] = ((), ())

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
        return WalkTask(
            task=request.name,
            round=request.round,
            item=request.item,
            model=self._model(state),
            settings=settings.walkers,
            temperatures_K=temperatures_of(request.item, settings),
            starts=self._start_frames(state),
            resume=self._walkers(request.item, state),
            steps=settings.walkers.segment_steps,
            enough=enough_per_batch(state, settings),
            seed=seed_for(settings.seed, Stream.WALK, request.round, request.item),
            threads=settings.site.walk_threads,
        )

    def _select(self, request: Request, state: CampaignState) -> SelectTask:
        settings = self._settings
        walked = sorted(state.walked, key=lambda walk: walk.item)
        return SelectTask(
            task=request.name,
            round=request.round,
            model=self._model(state),
            settings=settings.selection,
            candidates=tuple(self._store.absolute(walk.candidates) for walk in walked),
            labels=self._label_files(state),
            in_flight=(),
            count=picks_allowed(state, settings),
            seed=seed_for(settings.seed, Stream.SELECT, request.round, 0),
            threads=settings.site.train_threads,
        )

    def _label(self, request: Request, state: CampaignState) -> Job:
        if request.round == 0:
            frame, origin = initial_frame(self._starts, request.item, self._settings)
        else:
            candidate = self._pick(request.item, state)
            frame, origin = candidate.frame, origin_of(candidate)
        task = LabelTask(
            task=request.name,
            round=request.round,
            item=request.item,
            frame=frame,
            reference=self._settings.labels.reference,
            scratch=str(self._store.scratch_of(request.name)),
            threads=self._settings.site.label_threads,
            max_force_eV_per_A=self._settings.labels.max_force_eV_per_A,
        )
        return Job(request, task, origin)

    def _train(self, request: Request, state: CampaignState) -> TrainTask:
        settings = self._settings
        scratch = self._store.scratch_of(request.name)
        own = scratch / self._session
        own.mkdir(parents=True, exist_ok=True)
        return TrainTask(
            task=request.name,
            version=request.item,
            parent=self._model(state) if state.models else None,
            labels=self._label_files(state),
            fresh=tuple(row.identity for row in fresh_labels(state)),
            potential=settings.potential,
            uncertainty=settings.uncertainty,
            settings=settings.training,
            output=str(own / "model.pt"),
            progress=str(own / "progress.json"),
            seed=seed_for(settings.seed, Stream.TRAIN, request.round, request.item),
            threads=settings.site.train_threads,
        )

    def _model(self, state: CampaignState) -> ModelRef:
        newest = state.models[-1]
        return ModelRef(version=newest.version, file=self._store.absolute(newest.file))

    def _label_files(self, state: CampaignState) -> tuple[FileRef, ...]:
        return tuple(self._store.absolute(gathered.file) for gathered in state.gathered)

    def _walkers(self, item: int, state: CampaignState) -> tuple[WalkerState | None, ...]:
        last = next((walk for walk in state.walkers if walk.item == item), None)
        if last is None:
            return (None,) * self._settings.walkers.batch
        return tuple(read_walkers(self._store.absolute(last.walkers)))

    def _start_frames(self, state: CampaignState) -> tuple[Frame, ...]:
        rows = start_labels(state)
        if self._frames[0] != rows:
            self._frames = (rows, tuple(label.frame for label in self._store.rows(rows)))
        return self._frames[1]

    def _pick(self, item: int, state: CampaignState) -> Candidate:
        assert state.selected is not None
        assert state.selected.picks is not None
        if self._picks[0] != state.selected.picks:
            self._picks = (state.selected.picks, read_candidates(self._store.absolute(state.selected.picks)))
        return self._picks[1][item]
