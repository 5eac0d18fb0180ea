"""A campaign file becomes settings, or one message that lists everything wrong with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from pipeline.errors import SettingsError
from pipeline.settings.campaign import CampaignSettings
from pipeline.settings.labels import Reference
from pipeline.settings.overrides import apply_overrides
from pipeline.settings.problems import Place, describe, misplaced_booleans, place_of, show_value
from pipeline.settings.site_files import SECTION, as_section, read_site
from pipeline.settings.systems import SystemSettings
from pipeline.settings.yaml_source import parse_yaml

_SYSTEM: TypeAdapter[SystemSettings] = TypeAdapter(SystemSettings)
_REFERENCE: TypeAdapter[Reference] = TypeAdapter(Reference)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedCampaign:
    """Settings, the directory their relative paths start from, and the text they were read from."""

    settings: CampaignSettings
    base: Path
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A campaign file as far as it could be understood.

    Attributes:
        settings: None when there are problems.
        problems: one line each.
        systems: those sections that are right by themselves, so that their files can be checked all the same.
        reference: the reference, where that section is right.
        base: directory of the file.
    """

    path: Path
    text: str
    settings: CampaignSettings | None
    problems: tuple[str, ...]
    systems: tuple[SystemSettings, ...]
    reference: Reference | None

    @property
    def base(self) -> Path:
        """The directory relative paths start from."""
        return self.path.parent


def load_campaign(path: Path, overrides: Sequence[str] = ()) -> LoadedCampaign:
    """Read a campaign file; touches no other file.

    Args:
        path: the YAML file.
        overrides: ``key.path=value`` texts that win over the file.

    Raises:
        SettingsError: with every problem found, one per line.
    """
    draft = read_draft(path, overrides)
    if draft.settings is None:
        raise problems_error(path, draft.problems)
    return LoadedCampaign(settings=draft.settings, base=draft.base, text=draft.text)


def read_draft(
    path: Path, overrides: Sequence[str] = (), *, site: str | None = None, library: Traversable | None = None
) -> Draft:
    """Read a campaign file, and the site file it names, and collect their problems.

    Args:
        path: the YAML file.
        overrides: ``key.path=value`` texts that win over the files.
        site: name or path of the site file that stands in for the campaign's ``site`` section.
        library: directory of the ready site files.

    Raises:
        SettingsError: the file cannot be read at all, or is not a YAML mapping.
    """
    text = _read(path)
    source = parse_yaml(text, where=str(path))
    if source.data is None:
        raise SettingsError(f"{path}: the file is empty.", "`farwalk init` writes a campaign file to start from.")
    if not isinstance(source.data, dict):
        raise SettingsError(
            f"{path}: must be keys with values (key: value); found {show_value(source.data)}.",
            "`farwalk init` writes a campaign file to start from.",
        )
    given = {**source.data, SECTION: site} if site is not None else source.data
    given = {key: as_section(value) if key == SECTION else value for key, value in given.items()}
    applied = apply_overrides(given, overrides)
    data, problems = applied.data, list(applied.problems)
    places = {place: Place(line) for place, line in source.lines.items() if site is None or place[0] != SECTION}
    if SECTION in data:
        # a path on the command line starts from the working directory
        read = read_site(as_section(data[SECTION]), Path() if site is not None else path.parent, library)
        if read.problem:
            problems.append(f"{place_of((SECTION,), places)}{read.problem}")
            del data[SECTION]  # the rest is looked at all the same
        else:
            data[SECTION] = read.data
        section = {place: there for place, there in places.items() if place != (SECTION,)} if read.places else places
        places = {**read.places, **section}
    places |= {key: Place(file=f"--set {text}") for key, text in applied.texts.items()}
    settings = None
    try:
        settings = CampaignSettings.model_validate(data)
    except ValidationError as error:
        problems += describe(error, data, places)
    problems += misplaced_booleans(data, places)
    return Draft(
        path=path,
        text=text,
        settings=None if problems else settings,
        problems=tuple(problems),
        systems=_right_systems(data),
        reference=_right_reference(data),
    )


def problems_error(path: Path, problems: Sequence[str]) -> SettingsError:
    """One error that lists every problem of a campaign file."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    listing = "\n".join(f"  {line}" for line in problems)
    return SettingsError(f"{path}: {count}\n{listing}", "`farwalk schema` describes every key.")


def dump_settings(settings: CampaignSettings) -> str:
    """All settings, defaults included, as YAML that loads to equal settings."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SettingsError(f"{path}: there is no such campaign file.", "Give the path of a campaign.yaml.") from None
    except (IsADirectoryError, NotADirectoryError):
        raise SettingsError(f"{path}: not a file.", "Give the path of a campaign.yaml, not of a directory.") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: not UTF-8 text (byte {error.start}).", "Save it as UTF-8.") from None
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}.", "Check its permissions.") from None


def _right_systems(data: dict[str, Any]) -> tuple[SystemSettings, ...]:
    sections = data.get("systems")
    found = []
    for section in sections if isinstance(sections, list) else []:
        try:
            found.append(_SYSTEM.validate_python(section))
        except ValidationError:
            continue  # described already with the whole file
    return tuple(found)


def _right_reference(data: dict[str, Any]) -> Reference | None:
    labels = data.get("labels")
    try:
        return _REFERENCE.validate_python(labels.get("reference") if isinstance(labels, dict) else None)
    except ValidationError:
        return None  # described already with the whole file
