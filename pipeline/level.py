"""One level of theory: what may have changed it since a campaign began."""

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

from pipeline.events import Created
from pipeline.settings.labels import Reference


def other_level(found: str, known: str, reference: Reference, created: Created) -> str:
    """Why a label is not taken: what it is, what the others are, and what has changed, as far as that can be seen.

    Args:
        found: digest of the label's level of theory; known: of the labels before it.
        reference: settings with the files behind it.
        created: how the campaign began.
    """
    changed = [*_changed_files(reference, created.time), *_changed_packages(created)]
    what = (
        f"changed since the campaign began: {', '.join(changed)}"
        if changed
        else ("a file of labels.reference or the version of its package changed since the campaign began")
    )
    return f"it is of another level of theory ({found}) than the labels before it ({known}); {what}"


def _changed_files(reference: Reference, since: float) -> Iterator[str]:
    for value in reference.model_dump().values():
        for text in value if isinstance(value, tuple | list) else (value,):
            path = Path(text) if isinstance(text, str) else Path()
            if path.is_absolute():
                files = sorted(path.iterdir()) if path.is_dir() else [path]
                yield from (str(file) for file in files if not file.is_file() or file.stat().st_mtime > since)


def _changed_packages(created: Created) -> Iterator[str]:
    for name, before in created.versions.items():
        if name in ("farwalk", "python"):
            continue
        try:
            now = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            now = "none"
        if now != before:
            yield f"{name} {before} to {now}"
