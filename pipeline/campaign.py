"""A campaign directory, made or taken up again, and run."""

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.driver import Driver, Outcome
from pipeline.errors import SettingsError
from pipeline.events import SCHEMA, Created, Event
from pipeline.frames import Frame
from pipeline.initial import digest_of, starts_in_turn
from pipeline.ledger import Ledger
from pipeline.lock import DriverLock
from pipeline.settings.campaign import CampaignSettings
from pipeline.settings.changes import RESUMABLE, refused_changes, science_digest
from pipeline.settings.loading import dump_settings
from pipeline.state import CampaignState
from pipeline.steps import Steps
from pipeline.store import Store
from pipeline.structures import Systems

__all__ = ["Campaign", "Outcome"]


@dataclass(frozen=True, slots=True)
class Campaign:
    """A campaign directory that fits its settings and start structures, ready to run.

    Attributes:
        store: its directory.
        settings: in force from now on.
        starts: different start structures, one of each system in turn.
        is_new: whether this process has just made it; it may wait in a queue between being made and being run.
    """

    store: Store
    settings: CampaignSettings
    starts: tuple[Frame, ...]
    is_new: bool = False

    @classmethod
    def create_or_open(cls, settings: CampaignSettings, systems: Systems, directory: Path) -> "Campaign":
        """Make a campaign directory, or take up the one that is there.

        Args:
            settings: complete settings, files of the reference as absolute paths.
            systems: start structures by system.
            directory: new, empty, or a campaign's.

        Raises:
            SettingsError: the campaign there was begun with other settings or structures.
            StoreError: the directory holds something else, or is damaged.
        """
        starts = tuple(starts_in_turn(systems))
        if (directory / "events.jsonl").is_file():
            store = Store.open(directory)
            _check_same(store.state(), settings, starts, directory)
            return cls(store, settings, starts)
        created = Created(
            time=time.time(),
            schema=SCHEMA,
            settings=settings.model_dump(mode="json"),
            digest=science_digest(settings),
            structures=digest_of(starts),
            versions=_versions(),
        )
        store = Store.create(directory, settings_yaml=dump_settings(settings), first=created)
        return cls(store, settings, starts, is_new=True)

    def run(
        self,
        steps: Steps,
        *,
        on_event: Callable[[Event], None] = lambda event: None,
        stop_requested: Callable[[], bool] = lambda: False,
        leave_requested: Callable[[], bool] = lambda: False,
        lock: DriverLock | None = None,
    ) -> Outcome:
        """Run until the campaign ends or a stop is asked for.

        Args:
            steps: carries tasks out.
            on_event: called after each event is on disk.
            stop_requested: asked about twice a second; once true, no new tasks are handed out, and those in flight are
                waited for.
            leave_requested: asked as often; once true, they are not waited for any longer, but asked for again on the next run.
            lock: of this campaign, where the caller holds it already (to prepare the machine).

        Raises:
            StoreError: another driver runs this campaign, or its directory is damaged or full.
            TaskError: a task failed and the campaign cannot go on; recorded, and tried anew on the next run.
        """
        with nullcontext() if lock is not None else DriverLock(self.store.lock_path):
            self.store.discard_unfinished()
            log, state = self.store.open_log()
            try:
                state = replace(state, reference=self.store.reference(state))
                session = f"{os.getpid()}-{time.time_ns()}"
                books = Ledger(self.store, self.settings, self.starts, log, session)
                driver = Driver(self.store.root, self.settings, books, steps, state, on_event)
                return driver.run(stop_requested, leave_requested, resumes=not self.is_new or log.next_sequence > 1)
            finally:
                log.close()


def _versions() -> dict[str, str]:
    names = ("farwalk", "torch", "ase", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def _check_same(state: CampaignState, settings: CampaignSettings, starts: tuple[Frame, ...], where: Path) -> None:
    """Refuse to go on with other science than the campaign began with."""
    before: dict[str, Any] = state.created.settings
    problems = refused_changes(CampaignSettings.model_validate(before), settings)
    if problems:
        listing = "\n".join(f"  {line}" for line in problems)
        raise SettingsError(
            f"{where}: this campaign was begun with other settings:\n{listing}",
            f"Only these may change: {', '.join(RESUMABLE)}. Undo the changes, or give a new directory.",
        )
    if digest_of(starts) != state.created.structures:
        raise SettingsError(
            f"{where}: this campaign was begun with other start structures.",
            "Restore the structure files, or give a new directory.",
        )
