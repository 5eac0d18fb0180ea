"""What a driver writes and reads: tasks from what is known, files and events from results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pipeline.event_log import EventLog
from pipeline.events import Event, Gathered, Labelled, Walked, Work
from pipeline.frames import Frame
from pipeline.recording import Finished, Recorder
from pipeline.records import FileRef, LabelResult, LabelTask, Status
from pipeline.requests import Request
from pipeline.settings.campaign import CampaignSettings
from pipeline.state import CampaignState
from pipeline.store import Store
from pipeline.tasks import Job, TaskMaker


class Books(Protocol):
    """The files and the log of a campaign, or what stands for them in a simulation."""

    def make(self, request: Request, state: CampaignState) -> Job:
        """The task of a request."""
        ...

    def record(self, finished: Sequence[Finished], state: CampaignState, *, now: float) -> list[Event]:
        """Files of finished jobs, and the events they make."""
        ...

    def gather(self, state: CampaignState, *, now: float) -> Gathered:
        """Labels that no model knows, in one shard."""
        ...

    def append(self, events: Sequence[Event]) -> None:
        """Events on disk before this returns."""
        ...

    def tidy(self, state: CampaignState) -> None:
        """Remove what a killed driver recorded and did not clear up."""
        ...

    def clear(
        self, finished: Sequence[Finished], events: Sequence[Event], before: CampaignState, *, now: float
    ) -> None:
        """Remove what is not needed once ``events`` are on disk."""
        ...

    def check_room(self) -> None:
        """Whether the disk takes files."""
        ...


class Ledger:
    """A campaign directory with its log.

    Args:
        store: the directory.
        settings: the settings in force.
        starts: start structures, different ones, in order.
        log: of events; hold the lock of the campaign.
        session: differs between drivers.
    """

    def __init__(
        self, store: Store, settings: CampaignSettings, starts: Sequence[Frame], log: EventLog, session: str
    ) -> None:
        self._store, self._log = store, log
        self._maker = TaskMaker(store, settings, starts, session)
        self._recorder = Recorder(store, settings)

    def make(self, request: Request, state: CampaignState) -> Job:
        """The task of a request.

        Raises:
            StoreError: a shard is missing or changed.
        """
        return self._maker.make(request, state)

    def record(self, finished: Sequence[Finished], state: CampaignState, *, now: float) -> list[Event]:
        """Files of finished jobs, and the events they make.

        Raises:
            StoreError: a file cannot be written, or a model is not the one its worker wrote.
        """
        return self._recorder.record(finished, state, now=now, sequence=self._log.next_sequence)

    def gather(self, state: CampaignState, *, now: float) -> Gathered:
        """Labels that no model knows, in one shard.

        Raises:
            StoreError: a shard is missing or changed, or cannot be written.
        """
        return self._recorder.gather(state, now=now)

    def append(self, events: Sequence[Event]) -> None:
        """Events on disk before this returns.

        Raises:
            StoreError: they could not be written.
        """
        self._log.append(events)

    def tidy(self, state: CampaignState) -> None:
        """Remove what a killed driver recorded and did not clear up."""
        for row in state.round_labels:
            self._store.clear_scratch(Request(Work.LABEL, row.round, row.item).name)
        if state.flow is not None:
            self._store.keep_walkers([walk.walkers for walk in state.walkers.values()])

    def clear(
        self, finished: Sequence[Finished], events: Sequence[Event], before: CampaignState, *, now: float
    ) -> None:
        """Remove scratch of what is recorded, and walkers that others have replaced.

        Args:
            finished: jobs, recorded.
            events: of these jobs, on disk.
            before: what was known before them.
            now: seconds since the epoch.
        """
        for file in _superseded(events, before):  # a long segment would leave hundreds of them
            self._store.discard_shard(file)
        labelled = {(event.round, event.item) for event in events if isinstance(event, Labelled)}
        for one in finished:
            self._clear(one, labelled, now)

    def check_room(self) -> None:
        """Whether the disk takes files.

        Raises:
            DiskFullError: it does not.
        """
        self._store.check_room()

    def _clear(self, one: Finished, labelled: set[tuple[int, int]], now: float) -> None:
        """Remove what a task left in scratch; restart files are kept elsewhere, and all of a label that was not taken stays."""
        job, result = one.job, one.result
        if result is None:
            return
        scratch = self._store.scratch_of(job.request.name)
        if isinstance(job.task, LabelTask) and isinstance(result, LabelResult):
            if (job.request.round, job.request.item) not in labelled:
                return
            if result.guess:
                self._maker.guesses.keep(job.task.frame, Path(result.guess), scratch, now)
        if result.status is not Status.FAILED:
            self._store.clear_scratch(job.request.name)


def _superseded(events: Sequence[Event], before: CampaignState) -> list[FileRef]:
    """Walkers between two legs of one segment."""
    legs = [(event, before.walkers.get(event.item)) for event in events if isinstance(event, Walked)]
    is_stream = before.flow is not None
    return [last.walkers for event, last in legs if last is not None and (is_stream or last.round == event.round)]
