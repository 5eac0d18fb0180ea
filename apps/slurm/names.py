"""Job names: by them a campaign's jobs are found again, also by a driver that did not start them."""

import hashlib
from pathlib import Path

from pipeline.settings.site import WORK

DRIVER = "driver"
"""Role of the job that holds the driver; all other roles are executor labels."""


def job_prefix(campaign: Path) -> str:
    """What the names of all jobs of a campaign directory begin with, e.g. ``farwalk-1a2b3c4d``.

    It follows from where the directory is, so a copy of a campaign never takes the jobs of the original for its own.
    """
    return f"farwalk-{hashlib.sha256(str(campaign.resolve()).encode()).hexdigest()[:8]}"


def job_name(prefix: str, role: str) -> str:
    """Name of the jobs of one role, e.g. ``farwalk-1a2b3c4d-walk``."""
    return f"{prefix}-{role}"


def worker_names(prefix: str) -> tuple[str, ...]:
    """Names of all jobs of a campaign that hold workers."""
    return tuple(job_name(prefix, role) for role in WORK)
