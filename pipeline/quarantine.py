"""Labels that failed for good: which, why, at what cost, and how they are tried again."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.durable import sync_directory, written_into
from pipeline.errors import StoreError
from pipeline.events import Event, LabelFailed, Labelled, Requeued, Selected, Work
from pipeline.label_directory import TRIES
from pipeline.lock import DriverLock
from pipeline.records import Cause, FileRef, Try
from pipeline.requests import Request
from pipeline.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """A label that failed for good and was not made since.

    Attributes:
        failure: as it was recorded last.
        picks: the shard of the frames selected in its round; None in round 0.
        requeued: whether it is to be tried again.
    """

    failure: LabelFailed
    picks: FileRef | None
    requeued: bool = False

    @property
    def task(self) -> str:
        """Name of its task."""
        return Request(Work.LABEL, self.failure.round, self.failure.item).name

    @property
    def round(self) -> int:
        """The round that asked for it."""
        return self.failure.round

    @property
    def cause(self) -> Cause:
        """Why its last try failed."""
        return self.failure.cause

    @property
    def reason(self) -> str:
        """The same in words."""
        return self.failure.reason

    @property
    def tries(self) -> tuple[Try, ...]:
        """All tries, in their order."""
        return self.failure.tries

    @property
    def core_s(self) -> float:
        """Core seconds that all tries held."""
        return self.failure.core_s

    @property
    def directory(self) -> str:
        """Its files, relative to the campaign directory."""
        return self.failure.scratch


def quarantined(events: Iterable[Event]) -> list[Quarantined]:
    """What is quarantined after all these events, by round and item; what succeeded since is left out."""
    found: dict[tuple[int, int], Quarantined] = {}
    picks: dict[int, FileRef | None] = {}
    for event in events:
        match event:
            case Selected():
                picks[event.round] = event.picks
            case LabelFailed():
                found[event.round, event.item] = Quarantined(failure=event, picks=picks.get(event.round))
            case Labelled():
                found.pop((event.round, event.item), None)
            case Requeued():
                for failure, file in zip(event.failures, event.picks, strict=True):
                    found[failure.round, failure.item] = Quarantined(failure=failure, picks=file, requeued=True)
            case _:
                pass
    return [found[place] for place in sorted(found)]


def requeue(store: Store, tasks: Sequence[str] | None, causes: Sequence[Cause] | None) -> Requeued:
    """Have quarantined labels tried again by the next run; those that wait for it already are left out.

    Nothing of what they left is removed: only the memory of their tries gets another name, so that these begin anew.

    Args:
        store: the campaign; no driver may run it.
        tasks: names of their tasks; None: all.
        causes: only those that failed for one of these; None: for any.

    Returns:
        The event, as it was recorded.

    Raises:
        StoreError: a driver runs this campaign, a name is not that of a quarantined label, or there is nothing to do.
    """
    with DriverLock(store.lock_path):
        waiting = {row.task: row for row in quarantined(store.reading()) if not row.requeued}
        if unknown := sorted(set(tasks or ()) - waiting.keys()):
            raise StoreError(
                f"{unknown[0]} is not quarantined.", f"`farwalk failures {store.root}` lists the labels that are."
            )
        chosen = [
            row
            for name, row in waiting.items()
            if (tasks is None or name in tasks) and (causes is None or row.cause in causes)
        ]
        if not chosen:
            raise StoreError(
                "no quarantined label to try again.", f"`farwalk failures {store.root}` lists the labels that are."
            )
        event = Requeued(
            time=time.time(),
            failures=tuple(row.failure for row in chosen),
            picks=tuple(row.picks for row in chosen),
        )
        for row in chosen:  # before the event: a label that begins with its tries spent would only fail again
            _forget_tries(store.scratch_of(row.task))
        log, _ = store.open_log()
        try:
            log.append([event])
        finally:
            log.close()
    return event


def _forget_tries(scratch: Path) -> None:
    memory = scratch / TRIES
    if not memory.is_file():
        return
    number = 1
    while (aside := scratch / f"{memory.stem}-{number}{memory.suffix}").exists():
        number += 1
    with written_into(scratch):
        memory.rename(aside)
        sync_directory(scratch)
