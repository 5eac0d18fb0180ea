"""``--set walkers.bias.tau=0``: settings changed from the command line, as if they stood in the file."""

import copy
import difflib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_origin

from pipeline.errors import SettingsError
from pipeline.settings.keys import every_key, field_at
from pipeline.settings.yaml_source import KeyPath, Plain, parse_yaml, show_path


@dataclass(frozen=True, slots=True)
class Applied:
    """Data with overrides in it.

    Attributes:
        problems: one line for each override that could not be applied.
        texts: key path -> the override that set it.
    """

    data: dict[str, Any]
    problems: tuple[str, ...]
    texts: dict[KeyPath, str]


def parse_override(text: str) -> tuple[KeyPath, Any]:
    """Split ``walkers.bias.tau=0`` into key path and YAML value.

    Raises:
        SettingsError: no ``=``, an empty or unknown key, or a value that is not YAML.
    """
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise SettingsError(f"--set {text}: not KEY=VALUE.", "Write for example --set walkers.bias.tau=0.")
    path = _split(key.strip())
    if not _exists(path):
        plain = ".".join(str(part) for part in path if isinstance(part, str))
        close = difflib.get_close_matches(plain, list(every_key()), n=1, cutoff=0.5)
        hint = f"Did you mean {close[0]}?" if close else "`farwalk schema` lists all keys."
        raise SettingsError(f"--set {text}: unknown key {key.strip()}.", hint)
    return path, parse_yaml(value, where=f"--set {text}").data


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> Applied:
    """Put overrides into a copy of the data, the last one of two for the same key."""
    changed = copy.deepcopy(data)
    problems, texts = [], {}
    for text in overrides:
        try:
            path, value = parse_override(text)
            _set(changed, path, value, text)
        except SettingsError as error:
            problems.append(str(error))
        else:
            texts[path] = text
    return Applied(changed, tuple(problems), texts)


def _split(key: str) -> KeyPath:
    """``systems[0].name`` and ``systems.0.name`` both give ``("systems", 0, "name")``."""
    parts = [part for part in re.split(r"[.\[\]]+", key) if part]
    return tuple(int(part) if part.isdigit() else part for part in parts)


def _exists(path: KeyPath) -> bool:
    """Whether the models know this key; what is below a free mapping such as species_weights is up to the user."""
    for length in range(len(path), 0, -1):
        field = field_at(path[:length])
        if field is not None:
            below = [part for part in path[length:] if isinstance(part, str)]
            return not below or get_origin(field.annotation) is dict
    return False


def _set(data: dict[str, Any], path: KeyPath, value: Plain, text: str) -> None:
    target: Plain = data
    for part, following in itertools.pairwise(path):
        if isinstance(target, list):
            target = target[_index(target, part, path, text)]
        else:
            if target.get(part) is None:
                target[part] = {}
            target = target[part]
        if not isinstance(target, list if isinstance(following, int) else dict):
            expected = "a list" if isinstance(following, int) else "a section"
            raise SettingsError(f"--set {text}: {show_path(path[: path.index(part) + 1])} is not {expected}.", "")
    last = path[-1]
    if isinstance(target, list):
        target[_index(target, last, path, text)] = value
    else:
        target[last] = value


def _index(target: list[Any], part: str | int, path: KeyPath, text: str) -> int:
    if not isinstance(part, int) or part >= len(target):
        raise SettingsError(
            f"--set {text}: {show_path(path)} does not exist; the list has {len(target)} entries.", "Count from 0."
        )
    return part
