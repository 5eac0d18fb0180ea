"""From a campaign file to all that a campaign starts with, or one error that lists everything wrong with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path

from pipeline.settings.campaign import CampaignSettings
from pipeline.settings.loading import problems_error, read_draft
from pipeline.structures import (
    Systems,
    collect_systems,
    read_systems,
    reference_problems,
    with_absolute_files,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """What a campaign file stands for.

    Attributes:
        settings: complete settings; files of the reference are absolute paths.
        frames: checked start structures by system name.
        path: the campaign file.
        text: its text, for the record.
    """

    settings: CampaignSettings
    frames: Systems
    path: Path
    text: str


def open_campaign(
    path: Path, overrides: Sequence[str] = (), site: str | None = None, library: Traversable | None = None
) -> Intake:
    """Read a campaign file and its structures; writes nothing.

    Args:
        path: the campaign file.
        overrides: ``key.path=value`` texts that win over the files.
        site: name or path of the site file that stands in for the campaign's ``site`` section.
        library: directory of the ready site files.

    Raises:
        SettingsError: problems of the file, and of those structures that could be looked at all the same.
        StructureError: the file is right but structures are not.
    """
    draft = read_draft(path, overrides, site=site, library=library)
    if draft.settings is None:
        frames, more = collect_systems(draft.systems, draft.base)
        if draft.reference is not None:
            more += reference_problems(draft.reference, frames, draft.base)
        raise problems_error(path, [*draft.problems, *more])
    return Intake(
        settings=with_absolute_files(draft.settings, draft.base),
        frames=read_systems(draft.settings, draft.base),
        path=path,
        text=draft.text,
    )
