"""One plain line per mistake in a campaign file: key path, what is wrong, the value found, what to write instead."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from pipeline.settings.keys import field_at, kind_of, models_at, nearest, suggestion
from pipeline.settings.yaml_source import KeyPath, Plain, show_path

_NUMBER_ERRORS = {"float_parsing", "float_type", "int_parsing", "int_type", "int_from_float"}
_SECTION_ERRORS = {"model_type", "model_attributes_type", "dict_type"}
_LEADING_NUMBER = re.compile(r"^\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*[^\d\s.].*$")


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a value was given: a line of a file, or a text of the command line (line 0)."""

    line: int = 0
    file: str = ""

    def __str__(self) -> str:
        """What a message begins with; empty for an unknown line of the campaign file."""
        line = f"line {self.line}" if self.line else ""
        return "".join(f"{part}: " for part in [", ".join(part for part in (self.file, line) if part)] if part)


Places = Mapping[KeyPath, Place]


def describe(error: ValidationError, data: Plain, places: Places) -> list[str]:
    """Every problem of a validation, in the order of the file.

    Args:
        error: what pydantic found.
        data: the plain data that was validated.
        places: where each key path was given, as far as known.
    """
    found: list[tuple[tuple[str, int], str]] = []
    for detail in error.errors(include_url=False):
        if detail["type"] == "too_short" and detail["input"]:
            continue  # an echo: items were given, and what is wrong with them has its own lines
        path = plain_path(detail["loc"], data)
        place = place_of(path, places)
        found += [((place.file, place.line), f"{place}{text}") for text in _texts(detail, path, data)]
    return [text for _, text in sorted(found, key=lambda item: item[0])]


def misplaced_booleans(data: Plain, places: Places, path: KeyPath = ()) -> list[str]:
    """Lines for every ``yes`` or ``true`` where a number belongs, which pydantic would read as 1."""
    if isinstance(data, bool) and path:
        field = field_at(path)
        if field is None or field.annotation is bool:
            return []
        found = f"not a number; found {'true' if data else 'false'}; give a number ({field.description or ''})"
        return [f"{place_of(path, places)}{show_path(path)}: {found}"]
    items: list[tuple[str | int, Plain]] = []
    if isinstance(data, dict):
        items = list(data.items())
    elif isinstance(data, list):
        items = list(enumerate(data))
    return [text for key, item in items for text in misplaced_booleans(item, places, (*path, key))]


def plain_path(location: KeyPath, data: Plain) -> KeyPath:
    """A pydantic location without the tags it inserts for unions told apart by ``kind``."""
    path: list[str | int] = []
    value = data
    for part in location:
        if isinstance(value, dict):
            if part not in value and part == value.get("kind"):
                continue
            value = value.get(part)
        elif isinstance(value, (list, tuple)):
            value = value[part] if isinstance(part, int) and part < len(value) else None
        if part != "[key]":
            path.append(part)
    return tuple(path)


def show_value(value: object) -> str:
    """A value as it was found, cut short."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def place_of(path: KeyPath, places: Places) -> Place:
    """Where a key was given, or the nearest section around it."""
    while path and path not in places:
        path = path[:-1]
    return places.get(path, Place())


def _texts(detail: ErrorDetails, path: KeyPath, data: Plain) -> list[str]:
    """Lines for one pydantic error; a validator may have found several problems at once."""
    key, kind = show_path(path), detail["type"]
    if kind == "value_error":
        message = str(detail.get("ctx", {}).get("error", detail["msg"]))
        return [f"{key}: {text}" if key else text for text in message.splitlines()]
    what, remedy = _explain(detail, path, data)
    shown = "" if kind in {"missing", "union_tag_not_found"} else f"; found {show_value(detail['input'])}"
    return [f"{key or 'campaign file'}: {what}{shown}{'; ' + remedy if remedy else ''}"]


def _explain(detail: ErrorDetails, path: KeyPath, data: Plain) -> tuple[str, str]:
    """What is wrong, and what to write instead."""
    kind, context = detail["type"], detail.get("ctx", {})
    field = field_at(path, data)
    meaning = (field.description or "") if field else ""
    if kind == "missing":
        return "missing", f"give {meaning or show_path(path)}"
    if kind == "extra_forbidden":
        return "unknown key", suggestion(path, data)
    if kind in {"union_tag_invalid", "union_tag_not_found"}:
        return _kind_problem(kind, path, context)
    if kind in _NUMBER_ERRORS:
        return _number_problem(detail, path, field)
    if kind in _SECTION_ERRORS:
        names = dict.fromkeys(name for model in models_at(path, data) for name in model.model_fields)
        return "must be a section of keys", f"it knows {', '.join(names)}" if names else f"give {meaning}"
    if kind == "literal_error":
        return _literal_problem(detail, context)
    if kind == "string_type":
        return "not text", f"put it in quotes ({meaning})"
    if kind in {"tuple_type", "list_type"}:
        return "must be a list", f"write [{show_value(detail['input'])}] ({meaning})"
    if kind == "string_pattern_mismatch":
        return "not allowed", f"must match {context.get('pattern')} ({meaning})"
    if kind == "invalid_key":
        return "a key that is not text", "put it in quotes"
    return _plain(detail["msg"]), meaning


def _kind_problem(kind: str, path: KeyPath, context: dict[str, Any]) -> tuple[str, str]:
    kinds = [name for model in models_at(path) for name in kind_of(model)]
    if kind == "union_tag_not_found":
        return "kind is missing", f"add kind: one of {', '.join(kinds)}"
    close = nearest(str(context.get("tag", "")), kinds)
    hint = f" (did you mean {close}?)" if close else ""
    return f"unknown kind {str(context.get('tag'))!r}", f"use kind: one of {', '.join(kinds)}{hint}"


def _number_problem(detail: ErrorDetails, path: KeyPath, field: FieldInfo | None) -> tuple[str, str]:
    whole = detail["type"].startswith("int")
    what = "not a whole number" if whole else "not a number"
    meaning = (field.description or "") if field else ""
    match = _LEADING_NUMBER.match(detail["input"]) if isinstance(detail["input"], str) else None
    if match:
        return what, f"write the bare number {match.group(1)} in the unit of the key ({meaning})"
    return what, f"give {'a whole' if whole else 'a'} number ({meaning})"


def _literal_problem(detail: ErrorDetails, context: dict[str, Any]) -> tuple[str, str]:
    expected = str(context.get("expected", ""))
    close = nearest(str(detail["input"]), re.findall(r"'([^']*)'", expected))
    return "not one of the choices", f"use {expected}" + (f" (did you mean {close}?)" if close else "")


def _plain(message: str) -> str:
    """Pydantic's wording in ours: ``Input should be greater than 0`` -> ``must be greater than 0``."""
    text = re.sub(r"^Input should (be |have )?", lambda m: f"must {m.group(1) or ''}", message)
    text = re.sub(r"^\w+ should have", "must have", text).replace("valid tuple", "list").replace("valid list", "list")
    text = re.sub(r" after validation.*$", "", text)
    return text[0].lower() + text[1:]
