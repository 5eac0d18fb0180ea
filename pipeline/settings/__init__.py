"""Settings: the campaign file as frozen pydantic models, one file per section."""

from pipeline.settings.campaign import CampaignSettings

__all__ = ["CampaignSettings"]
