"""``farwalk export DIR``: labels or the model for other programs."""

from pathlib import Path
from typing import Annotated

import typer

from apps.cli.console import OUT
from pipeline.errors import StoreError
from pipeline.export import ExportFormat
from pipeline.export import export as export_file


def export(
    directory: Annotated[Path, typer.Argument(help="campaign directory")],
    output: Annotated[Path, typer.Option("--output", "-o", help="file to write")],
    what: Annotated[
        ExportFormat, typer.Option("--format", help="labels as extxyz or hdf5, or the newest model")
    ] = ExportFormat.EXTXYZ,
) -> None:
    """Write all labels, or the newest model, to one file."""
    if output.exists():
        raise StoreError(f"{output}: exists already.", "Remove it or give another -o.")
    if not output.absolute().parent.is_dir():
        raise StoreError(f"{output}: there is no directory {output.parent}.", "Make it or give another -o.")
    count = export_file(directory, what, output)
    content = f"model {count}" if what is ExportFormat.MODEL else f"{count} labels"
    OUT.print(f"wrote {content} to {output}", markup=False)
