"""Site files: the ``site`` section as a YAML file of its own, chosen by name or path, with single keys changed over it.

``site: perlmutter`` (a ready one), ``site: ./mycluster.yaml`` (the user's own) or ``site: {file: perlmutter, account: m1234}``.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pipeline.errors import SettingsError
from pipeline.settings.keys import nearest
from pipeline.settings.problems import Place, show_value
from pipeline.settings.yaml_source import KeyPath, Plain, parse_yaml, show_path

SECTION = "site"
FILE = "file"
"""The key beside which other keys of the section change those of a site file."""
SUFFIX = ".yaml"


@dataclass(frozen=True, slots=True)
class SiteSection:
    """The ``site`` section with its files read.

    Attributes:
        data: the section; None where it cannot be known, see ``problem``.
        places: key path (from the campaign file's top) -> where it was read.
        problem: why a file could not be used, in one line; empty when all is well.
    """

    data: Plain
    places: dict[KeyPath, Place] = field(default_factory=dict)
    problem: str = ""


def ready_sites(library: Traversable | None) -> list[str]:
    """Names of the site files of a directory."""
    entries = library.iterdir() if library is not None else ()
    return sorted(entry.name.removesuffix(SUFFIX) for entry in entries if entry.name.endswith(SUFFIX))


def anchored(named: str) -> str:
    """The same site from any working directory: paths become absolute, names stay."""
    return str(Path(named).expanduser().absolute()) if _is_path(named) else named


def as_section(value: Plain) -> Plain:
    """A section for its short form, a name or path alone."""
    return {FILE: value} if isinstance(value, str) else value


def read_site(section: Plain, base: Path, library: Traversable | None, *, above: tuple[str, ...] = ()) -> SiteSection:
    """Put the keys of a section over those of the file it names, if any; that file may name another one.

    Args:
        section: what stands under ``site``.
        base: directory that relative paths start from.
        library: directory of the ready site files.
        above: files that led here.
    """
    if not isinstance(section, dict) or FILE not in section:
        return SiteSection(section)
    named = section[FILE]
    if not isinstance(named, str) or not named.strip():
        return _useless(f"must be the name or path of a site file; found {show_value(named)}")
    if _is_path(named):
        source: Traversable = base / Path(named).expanduser()
    elif library is not None and named in ready_sites(library):
        source = library / f"{named}{SUFFIX}"
    else:
        return _useless(_unknown(named, ready_sites(library)))
    name = str(source)
    if name in above:
        return _useless(f"{name} names itself as its site file")
    try:
        read = parse_yaml(source.read_text(encoding="utf-8"), where=name)
    except OSError as error:
        return _useless(f"{name}: {error.strerror or error}; give the name of a ready site or the path of a site file")
    except UnicodeDecodeError as error:
        return _useless(f"{name}: not UTF-8 text (byte {error.start})")
    except SettingsError as error:
        return _useless(str(error))
    if not isinstance(read.data, dict):
        return _useless(f"{name}: must be the keys of a site section (kind: slurm, ...); found {show_value(read.data)}")
    if set(read.data) == {SECTION}:
        return _useless(f"{name}: holds a whole site: section; write its keys without the site: above them")
    below = read_site(read.data, base=Path(name).parent, library=library, above=(*above, name))
    if below.problem:
        return SiteSection(None, problem=below.problem)
    places = {(SECTION, *path): Place(line, name) for path, line in read.lines.items() if path != (FILE,)}
    own = {key: value for key, value in section.items() if key != FILE}
    return SiteSection(_over(below.data, own), {(SECTION,): Place(1, name), **below.places, **places})


def _useless(problem: str) -> SiteSection:
    return SiteSection(None, problem=f"{show_path((SECTION,))}: {problem}")


def _is_path(named: str) -> bool:
    return "/" in named or named.startswith((".", "~")) or named.endswith((SUFFIX, ".yml"))


def _unknown(named: str, ready: list[str]) -> str:
    close = nearest(named, ready)
    known = f"; ready ones are {', '.join(ready)}" if ready else ""
    hint = f" (did you mean {close}?)" if close else f"; a file of your own is given as a path: ./{named}{SUFFIX}"
    return f"there is no ready site {named!r}{known}{hint}"


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a mapping with another over it; sections are merged, all else is replaced."""
    merged = copy.deepcopy(dict(below))
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _over(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return merged
