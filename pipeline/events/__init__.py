"""What happened in a campaign, as facts: the only thing a campaign remembers besides its files.

An event is written after the files it names and before anything is done because of it. File paths are relative to the
campaign directory, so that it can be moved and copied.
"""

from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from pipeline.errors import StoreError
from pipeline.events.driving import Created, Idled, Noticed, Resumed, Stopped, Submitted, TaskFailed, TaskLost
from pipeline.events.kinds import EndReason, Work
from pipeline.events.results import Gathered, LabelFailed, Labelled, Rejected, Requeued, Selected, Trained, Walked

__all__ = [
    "SCHEMA",
    "Created",
    "EndReason",
    "Event",
    "Gathered",
    "Idled",
    "LabelFailed",
    "Labelled",
    "Noticed",
    "Rejected",
    "Requeued",
    "Resumed",
    "Selected",
    "Stopped",
    "Submitted",
    "TaskFailed",
    "TaskLost",
    "Trained",
    "Walked",
    "Work",
    "from_plain",
    "to_plain",
]

SCHEMA = 3
"""Version of the events. Reading refuses any other."""

Event = (
    Created
    | Resumed
    | Submitted
    | Walked
    | Selected
    | Labelled
    | LabelFailed
    | Requeued
    | Gathered
    | Trained
    | Rejected
    | TaskFailed
    | TaskLost
    | Noticed
    | Idled
    | Stopped
)

_ADAPTER: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


def to_plain(event: Event) -> dict[str, Any]:
    """The event as JSON-able values."""
    plain: dict[str, Any] = _ADAPTER.dump_python(event, mode="python")
    return plain


def from_plain(plain: dict[str, Any], *, where: str) -> Event:
    """The event of :func:`to_plain`, after JSON.

    Raises:
        StoreError: no such event, or fields that do not fit.
    """
    try:
        return _ADAPTER.validate_python(plain)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise StoreError(
            f"{where}: not an event this version knows ({place}: {first['msg']}).",
            "Open the campaign with the farwalk version that wrote it, or restore events.jsonl from a copy.",
        ) from error
