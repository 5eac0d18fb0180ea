"""Which keys the campaign file knows, read from the models, and the nearest one to a typing mistake."""

import difflib
import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic.fields import FieldInfo

from pipeline.settings.campaign import CampaignSettings
from pipeline.settings.model import Settings
from pipeline.settings.yaml_source import KeyPath, Plain, show_path

_UNIT = re.compile(r"_(fs|ps|per_ps|K|A|eV|eV_per_A|h|s|GPa|MPa|nm)$")


def models_of(annotation: object) -> list[type[Settings]]:
    """The settings models an annotation can hold: through unions, ``Annotated`` and tuples."""
    arguments = get_args(annotation)
    if arguments:
        return [model for argument in arguments for model in models_of(argument)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, Settings) else []


def kind_of(model: type[Settings]) -> tuple[str, ...]:
    """The values of ``kind`` that choose this model; empty when it has none."""
    return get_args(model.model_fields["kind"].annotation) if "kind" in model.model_fields else ()


def models_at(path: KeyPath, data: Plain = None) -> list[type[Settings]]:
    """The models that may stand at a key path; the ``kind`` in ``data``, where given, decides among several."""
    models: list[type[Settings]] = [CampaignSettings]
    value = data
    for part in path:
        value = _item(value, part)
        if isinstance(part, str):
            fields = [m.model_fields[part] for m in models if part in m.model_fields]
            models = [found for f in fields for found in models_of(f.annotation)]
        elif isinstance(value, dict):
            models = _chosen(models, value)
    return _chosen(models, value) if isinstance(value, dict) else models


def field_at(path: KeyPath, data: Plain = None) -> FieldInfo | None:
    """The field a key path names, indices of lists ignored; None when there is none."""
    while path and isinstance(path[-1], int):
        path = path[:-1]
    if not path:
        return None
    for model in models_at(path[:-1], data):
        if path[-1] in model.model_fields:
            return model.model_fields[str(path[-1])]
    return None


def every_key() -> dict[str, FieldInfo]:
    """All key paths of the campaign file without list indices, e.g. ``walkers.bias.tau``."""
    return dict(_keys_below([CampaignSettings], ()))


def nearest(name: str, known: list[str]) -> str | None:
    """The known name most like a misspelt one; a name that differs only in its unit comes first."""
    stem = _UNIT.sub("", name)
    for candidate in known:
        if _UNIT.sub("", candidate).rstrip("s") == stem.rstrip("s"):
            return candidate
    lowered = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.6)
    return lowered[close[0]] if close else None


def suggestion(path: KeyPath, data: Plain = None) -> str:
    """What to write instead of an unknown key: where that name belongs, or the nearest one in its section."""
    name = str(path[-1])
    models = models_at(path[:-1], data)
    fields = {key: field for model in models for key, field in model.model_fields.items()}
    section = show_path(path[:-1]) or "the campaign file"
    others = [kind for model in models_at(path[:-1]) if name in model.model_fields for kind in kind_of(model)]
    if others:  # found without a look at the kind that the data has
        here = " or ".join(kind for model in models for kind in kind_of(model))
        return f"only kind: {' or '.join(others)} has it, and this is kind: {here}, which knows {', '.join(fields)}"
    elsewhere = [key for key in every_key() if key.rsplit(".", 1)[-1] == name and name != "kind"]
    below = [key for key in elsewhere if path[:-1] and key.startswith(f"{section}.")]
    close = nearest(name, list(fields))
    if close is not None and not below:
        return f"did you mean {close} ({fields[close].description or 'which of the kinds'})?"
    if elsewhere:
        return f"it belongs at {' or '.join(below or elsewhere)}"
    return f"{section} knows {', '.join(fields)}"


def _chosen(models: list[type[Settings]], value: dict[str, Any]) -> list[type[Settings]]:
    """Those models whose kind is the one in the data; all where none fits."""
    return [model for model in models if value.get("kind") in kind_of(model)] or models


def _item(value: Plain, part: str | int) -> Plain:
    if isinstance(part, int):
        return value[part] if isinstance(value, list) and part < len(value) else None
    return value.get(part) if isinstance(value, dict) else None


def _keys_below(models: list[type[Settings]], path: KeyPath) -> Iterator[tuple[str, FieldInfo]]:
    for model in models:
        for name, field in model.model_fields.items():
            yield show_path((*path, name)), field
            yield from _keys_below(models_of(field.annotation), (*path, name))
