"""The base of all settings: frozen, and unknown keys are refused."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A frozen section of the campaign file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())
