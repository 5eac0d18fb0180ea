"""Arguments and options that several verbs share."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

CampaignFile = Annotated[Path, typer.Argument(help="the campaign file")]
CampaignDirectory = Annotated[
    Path | None, typer.Option("--dir", help="campaign directory [default: <name>.campaign beside the file]")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change a setting, e.g. walkers.bias.tau=0")
]
SiteOption = Annotated[
    str | None,
    typer.Option("--site", metavar="SITE", help="ready site or site file, instead of the campaign's site section"),
]
SITES = files("site_configs")
"""Directory of the ready site files."""
