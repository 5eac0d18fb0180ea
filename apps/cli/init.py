"""``farwalk init TEMPLATE DIR``: a campaign to start from."""

import shutil
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer

from apps.cli.console import OUT
from pipeline.errors import SettingsError, StoreError

TEMPLATES = files("apps") / "templates"


def template_names() -> list[str]:
    """The templates that come with farwalk."""
    return sorted(entry.name for entry in TEMPLATES.iterdir() if (entry / "campaign.yaml").is_file())


def init(
    template: Annotated[str, typer.Argument(help="name of the template, or 'list' to see them")],
    directory: Annotated[Path, typer.Argument(help="new or empty directory")] = Path(),
) -> None:
    """Copy a commented campaign to start from."""
    if template == "list":
        OUT.print("\n".join(template_names()))
        return
    copy_template(template, directory)
    OUT.print(f"wrote {directory / 'campaign.yaml'}\nnext: farwalk check {directory / 'campaign.yaml'}", markup=False)


def copy_template(template: str, directory: Path) -> None:
    """Copy a template to a new or empty directory.

    Raises:
        SettingsError: there is no such template.
        StoreError: the directory holds something.
    """
    names = template_names()
    if template not in names:
        raise SettingsError(f"there is no template {template!r}.", f"Use one of: {', '.join(names)}.")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        what = "is not empty" if directory.is_dir() else "is a file"
        raise StoreError(f"{directory}: {what}.", "Give a new or an empty directory.")
    with as_file(TEMPLATES / template) as source:
        shutil.copytree(source, directory, dirs_exist_ok=True)
