"""``--scan cutoff_Ry=200,300,400``: one key of the reference, and the values to compare."""

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pipeline.errors import SettingsError
from pipeline.references import build_reference
from pipeline.settings.campaign import CampaignSettings
from pipeline.settings.keys import models_of, nearest
from pipeline.settings.labels import ASEReference, Reference
from pipeline.settings.model import Settings
from pipeline.settings.problems import describe, misplaced_booleans
from pipeline.settings.yaml_source import parse_yaml

FINER = {
    "cutoff_Ry": 1,
    "rel_cutoff_Ry": 1,
    "density_cutoff_Ry": 1,
    "mesh": 1,
    "spacing_per_A": -1,
    "width_eV": -1,
    "scf_convergence": -1,
    "scf_convergence_eV_per_atom": -1,
}
"""Keys whose values have an order: 1, larger ones are finer; -1, smaller ones are. Of others the last value is the finest."""
TEXTS = frozenset({"basis"})
"""Keys that hold text and can be scanned."""
UNPHYSICAL = frozenset({"max_steps"})
"""Numbers that decide whether there is a label, not what it says."""
ARGUMENTS = "arguments"
"""Section of ``kind: ase`` whose keys are the calculator's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One value of the key, and the reference that has it."""

    value: Any
    reference: Reference

    @property
    def text(self) -> str:
        """The value as one would write it in the campaign file."""
        if isinstance(self.value, tuple):
            return f"[{','.join(str(part) for part in self.value)}]"
        return f"{self.value:g}" if isinstance(self.value, float) else str(self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """A one-dimensional scan.

    Attributes:
        key: below ``labels.reference``.
        points: two or more, the finest last.
        is_ordered: whether coarse and fine mean something for this key; otherwise the order is as given.
    """

    key: str
    points: tuple[Point, ...]
    is_ordered: bool


def parse_scan(text: str, settings: CampaignSettings) -> Scan:
    """Read ``cutoff_Ry=200,300,400`` or ``kpoints.mesh=[2,2,2],[4,4,4]``; values are YAML.

    Args:
        text: key below ``labels.reference``, and values.
        settings: the campaign; files of its reference are absolute paths.

    Raises:
        SettingsError: no such key, or one that cannot be scanned; values that are wrong or fewer than two.
    """
    where = f"--scan {text}"
    key, separator, listed = text.partition("=")
    key = key.strip().removeprefix("labels.reference.")
    if not separator or not key:
        raise SettingsError(f"{where}: not KEY=VALUE,VALUE,…", "Write for example --scan cutoff_Ry=200,300,400.")
    _check_key(key, settings.labels.reference, where)
    values = parse_yaml(f"[{listed}]", where=where).data
    points: list[Point] = []
    for value in values:
        reference = _with_value(settings, key, value, where)
        if all(point.reference != reference for point in points):
            points.append(Point(value=_value_of(reference, key), reference=reference))
    if len(points) < 2:
        raise SettingsError(f"{where}: fewer than two different values.", "Give more, with commas between.")
    for point in points:
        try:
            build_reference(point.reference)
        except SettingsError as error:
            raise SettingsError(f"{where}: {point.text}: {error.message}", error.remedy) from None
    direction = FINER.get(key.rsplit(".", 1)[-1])
    if direction is not None:
        points.sort(key=lambda point: direction * _size(point.value))
    return Scan(key=key, points=tuple(points), is_ordered=direction is not None)


def keys_of(reference: Reference) -> list[str]:
    """The keys of a reference that can be scanned."""
    return list(_numbers_below(type(reference), ""))


def _numbers_below(model: type[Settings], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if (below := models_of(field.annotation)) and name not in UNPHYSICAL:
            for section in below:
                yield from _numbers_below(section, f"{prefix}{name}.")
        elif name in TEXTS or (_holds_numbers(field) and name not in UNPHYSICAL):
            yield f"{prefix}{name}"


def _holds_numbers(field: FieldInfo) -> bool:
    """Whether a field is a number or a list of numbers."""
    return bool({int, float} & set(_plain_types(field.annotation)))


def _plain_types(annotation: object) -> Iterator[object]:
    """The types a value may have, through unions, ``Annotated`` and lists; not what a mapping holds."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType, tuple) or hasattr(annotation, "__metadata__"):
        for argument in get_args(annotation):
            yield from _plain_types(argument)
    elif origin is None:
        yield annotation


def _check_key(key: str, reference: Reference, where: str) -> None:
    """Refuse keys that cannot be scanned.

    Raises:
        SettingsError: with the nearest key that can.
    """
    if getattr(reference, "template", None) is not None:
        raise SettingsError(
            f"{where}: labels.reference is a template, of which only the geometry is replaced.",
            "Scan a reference without template, or copy the template with other values and check each of them.",
        )
    if isinstance(reference, ASEReference) and key.startswith(f"{ARGUMENTS}.") and key.count(".") == 1:
        return  # whether the calculator takes it is seen when it is made
    known = keys_of(reference)
    if key in known:
        return
    shorter = {name.rsplit(".", 1)[-1]: name for name in known}
    close = nearest(key, known) or shorter.get(nearest(key.rsplit(".", 1)[-1], list(shorter)) or "")
    if isinstance(reference, ASEReference):
        hint = f"kind: ase knows {ARGUMENTS}.NAME, with the names of {reference.calculator}."
    elif not known:
        hint = f"kind: {reference.kind} has no numbers to scan."
    else:
        hint = f"Did you mean {close}?" if close else f"kind: {reference.kind} knows {', '.join(known)}."
    raise SettingsError(f"{where}: labels.reference has no key {key} that can be scanned.", hint)


def _with_value(settings: CampaignSettings, key: str, value: object, where: str) -> Reference:
    """The campaign's reference with one value changed.

    Raises:
        SettingsError: the settings do not take it.
    """
    changed = settings.labels.reference.model_dump(mode="json", exclude_unset=True)
    *sections, name = key.split(".")
    place = changed
    for section in sections:
        place[section] = dict(place.get(section) or {})
        place = place[section]
    if name in ("mesh", "spacing_per_A"):  # one replaces the other
        place.pop("mesh", None)
        place.pop("spacing_per_A", None)
    place[name] = value
    # with the campaign around it, problems have the same words as everywhere
    whole = settings.model_dump(mode="json")
    whole["labels"]["reference"] = changed
    try:
        found = CampaignSettings.model_validate(whole)
    except ValidationError as error:
        problems = describe(error, whole, {})
    else:
        problems = misplaced_booleans({"labels": {"reference": changed}}, {})
        if not problems:
            return found.labels.reference
    raise SettingsError(f"{where}: {'; '.join(problems)}.", "")


def _value_of(reference: Reference, key: str) -> Any:  # noqa: ANN401  # of whatever type the key has
    value: Any = reference
    for part in key.split("."):
        value = value[part] if isinstance(value, Mapping) else getattr(value, part)
    return value


def _size(value: Any) -> float:  # noqa: ANN401  # a number, or numbers of points along the axes
    if not isinstance(value, tuple):
        return float(value)
    points = 1.0
    for part in value:
        points *= part
    return points
