"""``farwalk schema``: what a campaign file or a site file may hold, as JSON schema."""

import json
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter

from pipeline.settings import CampaignSettings
from pipeline.settings.site import Site
from pipeline.settings.site_files import FILE, SECTION

_FILE: dict[str, Any] = {
    "type": "object",
    "description": "a site file, with other keys of the section over its own",
    "properties": {FILE: {"type": "string", "description": "name of a ready site or path of a site file"}},
    "required": [FILE],
}
_NAME = {"type": "string", "description": "name of a ready site or path of a site file"}


def schema(
    site: Annotated[bool, typer.Option("--site", help="of a site file instead")] = False,
) -> None:
    """Print the JSON schema of campaign.yaml: every key, its unit, default and limits (editors can use it too)."""
    document = site_schema() if site else campaign_schema()
    typer.echo(
        json.dumps(
            {"$schema": "https://json-schema.org/draft/2020-12/schema", **document}, indent=2, ensure_ascii=False
        )
    )


def campaign_schema() -> dict[str, Any]:
    """Schema of a campaign file; its site may be a section, a name or path, or a file with keys over it."""
    document = CampaignSettings.model_json_schema()
    section = document["properties"][SECTION]
    forms = [_NAME, _FILE, {"oneOf": section.pop("oneOf"), "discriminator": section.pop("discriminator")}]
    document["properties"][SECTION] = {**section, "anyOf": forms}
    return document


def site_schema() -> dict[str, Any]:
    """Schema of a site file, which is a whole section or changes another site file."""
    document = TypeAdapter(Site).json_schema()
    kinds = {"oneOf": document.pop("oneOf"), "discriminator": document.pop("discriminator")}
    return {"title": "site file", "anyOf": [kinds, _FILE], **document}
