"""From results to files and events."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.estimate import share_of
from pipeline.events import (
    Event,
    Gathered,
    LabelFailed,
    Labelled,
    Rejected,
    Selected,
    TaskFailed,
    Trained,
    Walked,
    Work,
)
from pipeline.label_directory import Tries, read_tries
from pipeline.level import other_level
from pipeline.records import (
    Cause,
    Label,
    LabelResult,
    LabelTask,
    Result,
    SelectResult,
    SelectTask,
    Status,
    Timing,
    TrainResult,
    TrainTask,
    WalkResult,
    WalkTask,
)
from pipeline.settings.campaign import CampaignSettings
from pipeline.splits import split_in
from pipeline.state import CampaignState
from pipeline.store import Store
from pipeline.tasks import Job


@dataclass(frozen=True, slots=True)
class Finished:
    """A job that is over: its result, or why its worker gave none.

    Attributes:
        reason, cause: of a label whose worker gave no result.
    """

    job: Job
    result: Result | None
    reason: str = ""
    cause: Cause = Cause.WORKER_LOST


class Recorder:
    """Writes the files of finished jobs and says which events they make. Files are written before their event is.

    Args:
        store: the campaign directory.
        settings: the settings in force.
    """

    def __init__(self, store: Store, settings: CampaignSettings) -> None:
        self._store, self._settings = store, settings

    def record(self, finished: Sequence[Finished], state: CampaignState, *, now: float, sequence: int) -> list[Event]:
        """Events of jobs that ended at one wake-up, in the order of their requests; good labels go into one shard.

        Args:
            finished: the jobs.
            state: what is known before.
            now: time of the events.
            sequence: number of the next event, which makes file names unique.

        Raises:
            StoreError: a file cannot be written, or a model is not the one its worker wrote.
        """
        ordered = sorted(finished, key=lambda one: one.job.request)
        labels = [one for one in ordered if isinstance(one.job.task, LabelTask)]
        others = [one for one in ordered if not isinstance(one.job.task, LabelTask)]
        events = self._labels(labels, state, now, sequence)
        return events + [self._other(one, state, now) for one in others]

    def gather(self, state: CampaignState, *, now: float) -> Gathered:
        """Write labels that no model knows to one shard, in the order of their numbers."""
        labels = self._store.rows(state.round_labels)
        number = state.round if state.flow is None else state.versions
        file = self._store.put_labels(f"labels-r{number:04d}", labels)
        return Gathered(time=now, round=number, file=file, count=len(labels))

    def _labels(self, finished: Sequence[Finished], state: CampaignState, now: float, sequence: int) -> list[Event]:
        good = [one for one in finished if one.result is not None and one.result.status is Status.DONE]
        bad = [one for one in finished if one.result is None or one.result.status is not Status.DONE]
        failed: list[Event] = [self._failed(one, state, now) for one in bad]
        level = state.reference or next((_level(one) for one in good), "")
        failed += [self._of_other_level(one, level, state, now) for one in good if _level(one) != level]
        good = [one for one in good if _level(one) == level]
        if not good:
            return failed
        labels = [self._label(one, state) for one in good]
        file = self._store.put_labels(f"labels-{sequence:08d}", labels)
        done: list[Event] = []
        for row, (one, label) in enumerate(zip(good, labels, strict=True)):
            assert isinstance(one.result, LabelResult)
            done.append(
                Labelled(
                    time=now,
                    round=label.round,
                    item=one.job.request.item,
                    number=self._number(one, state),
                    identity=label.frame.identity,
                    system=label.frame.system,
                    split=label.split,
                    file=file,
                    row=row,
                    timing=one.result.timing,
                    reference=label.reference,
                    tries=one.result.tries,
                    measures=one.result.measures,
                    core_s=one.result.core_s,
                )
            )
        return done + failed

    def _number(self, one: Finished, state: CampaignState) -> int:
        request = one.job.request
        if state.flow is not None:
            return state.flow.open[request.round, request.item].number
        retry = state.retry_of(request.round, request.item)
        return state.first_number + request.item if retry is None else retry.failure.number

    def _label(self, one: Finished, state: CampaignState) -> Label:
        task, result = one.job.task, one.result
        assert isinstance(task, LabelTask)
        assert isinstance(result, LabelResult)
        assert result.energy is not None
        assert result.forces is not None
        return Label(
            frame=task.frame,
            energy=result.energy,
            forces=result.forces,
            stress=result.stress,
            split=split_in(self._number(one, state), self._settings),
            round=task.round,
            origin=one.job.origin,
            # a program takes its time in processes of its own
            cost_cpu_s=result.core_s if result.program else result.timing.cpu_s,
            reference=result.reference,
            charges=result.charges,
            magnetic_moments=result.magnetic_moments,
            program=result.program,
        )

    def _of_other_level(self, one: Finished, level: str, state: CampaignState, now: float) -> LabelFailed:
        reason = other_level(_level(one), level, self._settings.labels.reference, state.created)
        return replace(self._failed(one, state, now), reason=reason, cause=Cause.OTHER_LEVEL)

    def _failed(self, one: Finished, state: CampaignState, now: float) -> LabelFailed:
        task, result = one.job.task, one.result
        assert isinstance(task, LabelTask)
        assert result is None or isinstance(result, LabelResult)
        # a worker that was lost leaves what it had tried before
        left = read_tries(task, state.reference) if result is None else Tries()
        return LabelFailed(
            time=now,
            round=task.round,
            item=task.item,
            number=self._number(one, state),
            identity=task.frame.identity,
            system=task.frame.system,
            reason=one.reason if result is None else result.reason,
            scratch=f"scratch/{self._store.scratch_of(task.task).name}",
            timing=None if result is None else result.timing,
            cause=one.cause if result is None else result.cause or Cause.UNKNOWN,
            tries=left.failed if result is None else result.tries,
            core_s=left.core_s if result is None else result.core_s,
        )

    def _other(self, one: Finished, state: CampaignState, now: float) -> Event:
        request, result = one.job.request, one.result
        if result is None or result.status is not Status.DONE:
            reason = one.reason if result is None else result.reason
            return TaskFailed(time=now, work=request.work, round=request.round, task=request.name, reason=reason)
        match result:
            case WalkResult():
                return self._walked(one.job, result, now)
            case SelectResult():
                return self._selected(one.job, result, now)
            case TrainResult():
                return self._trained(one.job, result, state, now)
            case LabelResult():
                raise AssertionError("labels are recorded together")

    def _walked(self, job: Job, result: WalkResult, now: float) -> Walked:
        assert isinstance(job.task, WalkTask)
        assert result.candidates is not None
        assert result.walkers is not None
        core_s, gpu_s = self._held(Work.WALK, result.timing)
        name = f"r{job.task.round:04d}-b{job.task.item:04d}-l{job.task.leg:02d}"
        return Walked(
            time=now,
            round=job.request.round,
            item=job.request.item,
            leg=job.task.leg,
            version=job.task.model.version,
            candidates=self._store.publish_shard(result.candidates, f"candidates-{name}"),
            walkers=self._store.publish_shard(result.walkers, f"walkers-{name}"),
            count=result.count,
            stops=result.stops,
            walker_steps=result.walker_steps,
            steps=result.steps,
            steps_left=result.steps_left,
            born=result.born,
            timing=result.timing,
            found=result.found,
            core_s=core_s,
            gpu_s=gpu_s,
        )

    def _selected(self, job: Job, result: SelectResult, now: float) -> Selected:
        assert isinstance(job.task, SelectTask)
        assert result.picks is not None
        core_s, gpu_s = self._held(Work.SELECT, result.timing)
        picks = self._store.publish_shard(result.picks, f"picks-r{job.request.round:04d}")
        return Selected(
            time=now,
            round=job.request.round,
            picks=picks,
            count=result.count,
            dropped=result.dropped,
            timing=result.timing,
            kept=result.kept,
            version=job.task.model.version,
            saved=result.saved,
            core_s=core_s,
            gpu_s=gpu_s,
        )

    def _trained(self, job: Job, result: TrainResult, state: CampaignState, now: float) -> Trained | Rejected:
        assert isinstance(job.task, TrainTask)
        core_s, gpu_s = self._held(Work.TRAIN, result.timing)
        if result.gate is not None and not result.gate.passed:
            return Rejected(
                time=now,
                round=job.request.round,
                version=job.task.version,
                attempt=job.task.attempt,
                gate=result.gate,
                fresh=result.fresh,
                epochs=result.epochs,
                timing=result.timing,
                core_s=core_s,
                gpu_s=gpu_s,
            )
        assert result.file is not None
        return Trained(
            time=now,
            round=job.request.round,
            version=job.task.version,
            file=self._store.publish_model(result.file, job.task.version),
            labels=state.learned,
            fresh=result.fresh,
            train=result.train,
            validation=result.validation,
            factors=result.factors,
            epochs=result.epochs,
            history=result.history,
            timing=result.timing,
            gate=result.gate,
            attempt=job.task.attempt,
            core_s=core_s,
            gpu_s=gpu_s,
        )

    def _held(self, work: Work, timing: Timing) -> tuple[float, float]:
        """Core and GPU seconds that a task held: its worker's share of the machine while it ran."""
        share = share_of(work.value, self._settings.site)
        return timing.wall_s * share.cores, timing.wall_s * share.gpus


def _level(one: Finished) -> str:
    """Digest of the level of theory of a label."""
    assert isinstance(one.result, LabelResult)
    return one.result.reference


def nothing_to_select(state: CampaignState, *, now: float) -> Selected:
    """The selection of a round in which no walker proposed a frame."""
    return Selected(time=now, round=state.round, picks=None, count=0, dropped={}, timing=None)
