"""Where a campaign's directory is, and whether it can be written."""

import shutil
import tempfile
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.intake import Intake

LOG = "farwalk.log"
"""Log file in the campaign directory."""


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
