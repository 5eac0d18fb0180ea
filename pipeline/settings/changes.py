"""What differs between the settings a campaign began with and those it is resumed with, and whether that is allowed."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pipeline.settings.campaign import CampaignSettings
from pipeline.settings.problems import show_value
from pipeline.settings.yaml_source import Plain

RESUMABLE = (
    "labels.budget",
    "labels.recovery",
    "labels.max_force_eV_per_A",
    "labels.max_net_force_eV_per_A",
    "labels.energy_window_eV_per_atom",
    "labels.reference.max_steps",
    "labels.reference.pseudopotentials",
    "schedule.pool",
    "schedule.train_share",
    "schedule.train_wait_s",
    "stop",
    "site",
)
"""Keys (and all below them) that may change when a campaign is resumed: they decide how long, where and what is refused, not
what a label is. Of pseudopotentials only their directory: labels know the contents."""


def changed_keys(old: CampaignSettings, new: CampaignSettings) -> dict[str, tuple[Any, Any]]:
    """Key path -> (old value, new value) of every setting that differs."""
    before, after = _comparable(old), _comparable(new)
    keys = dict.fromkeys([*before, *after])
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def is_resumable(key: str) -> bool:
    """Whether a campaign may be resumed with another value of this key."""
    return any(key == allowed or key.startswith(f"{allowed}.") for allowed in RESUMABLE)


def refused_changes(old: CampaignSettings, new: CampaignSettings) -> list[str]:
    """One line ``key: was OLD, is NEW`` per change that a resumed campaign cannot take."""
    return [
        f"{key}: was {show_value(before)}, is {show_value(after)}"
        for key, (before, after) in changed_keys(old, new).items()
        if not is_resumable(key)
    ]


def science_digest(settings: CampaignSettings) -> str:
    """sha256 of the settings that may not change on resume, as 64 hex digits."""
    fixed = {key: value for key, value in _comparable(settings).items() if not is_resumable(key)}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def _comparable(settings: CampaignSettings) -> dict[str, Plain]:
    """All settings by key path; of the reference's files only the names, so that a campaign can be moved."""
    flat = _flat(settings.model_dump(mode="json"))
    files = tuple(
        f"labels.reference.{key}" for key in ("topology", "force_field", "template", "basis_files", "potential_files")
    )
    return {k: Path(v).name if k.startswith(files) and isinstance(v, str) else v for k, v in flat.items()}


def _flat(value: Plain, path: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one mapping from key path to plain value; empty containers stay as values."""
    if isinstance(value, dict) and value:
        named = {f"{path}.{name}" if path else name: item for name, item in value.items()}
        return {k: v for name, item in named.items() for k, v in _flat(item, name).items()}
    if isinstance(value, list) and value:
        return {k: v for index, item in enumerate(value) for k, v in _flat(item, f"{path}[{index}]").items()}
    return {path: value}
