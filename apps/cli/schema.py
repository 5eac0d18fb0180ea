"""``farwalk schema``: what a campaign file may hold, as JSON schema."""

import json

import typer

from pipeline.settings import CampaignSettings


def schema() -> None:
    """Print the JSON schema of campaign.yaml: every key, its unit, default and limits (editors can use it too)."""
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", **CampaignSettings.model_json_schema()}
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
