"""Where a campaign's directory is, and whether it can be written."""

import shutil
import tempfile
from pathlib import Path

from apps.slurm.script import SCRIPT
from pipeline.errors import StoreError
from pipeline.events import Created, Resumed
from pipeline.intake import Intake
from pipeline.settings import CampaignSettings
from pipeline.settings.site import Site, SlurmSite
from pipeline.store import Store

LOG = "farwalk.log"
"""Log file in the campaign directory."""

STOP = "stop"
"""File in the campaign directory by which a driver is asked to stop, see :mod:`apps.cli.interrupt`."""


def campaign_directory(intake: Intake, wanted: Path | None) -> Path:
    """The wanted directory, or ``<name>.campaign`` beside the campaign file; absolute, as workers need it."""
    return (wanted or intake.path.parent / f"{intake.settings.name}.campaign").absolute()


def check_writable(directory: Path) -> int:
    """Try to write where the directory is or would be made, leaving nothing behind.

    Returns:
        Free bytes there.

    Raises:
        StoreError: nothing can be written there.
    """
    nearest = next(place for place in (directory, *directory.parents) if place.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".farwalk-", dir=nearest):
            return shutil.disk_usage(nearest).free
    except OSError as error:
        raise StoreError(
            f"{directory}: cannot be written: {nearest}: {error.strerror}.", "Choose another directory with --dir."
        ) from None


def may_have_jobs(store: Store) -> bool:
    """Whether a campaign's drivers may be in SLURM's queue: its site has one, or a driver was submitted."""
    return (store.root / SCRIPT).is_file() or isinstance(site_in_force(store), SlurmSite)


def site_in_force(store: Store) -> Site:
    """The site that the newest driver of a campaign was given.

    Raises:
        StoreError: the event log is damaged.
    """
    newest = next(event for event in reversed(store.events()) if isinstance(event, Created | Resumed))
    return CampaignSettings.model_validate(newest.settings).site
