"""What the policy says: tasks to hand out, labels to gather, or the end."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.events import EndReason, Work
from pipeline.requests import Request


@dataclass(frozen=True, slots=True)
class End:
    """The campaign is over, until its settings change or a person acts.

    Attributes:
        remedy: what a person must do; empty where nothing is wrong.
        scratch: directory of an example, relative to the campaign's; empty where there is none.
    """

    reason: EndReason
    message: str
    remedy: str = ""
    scratch: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now: hand out tasks that are not in flight yet, or gather labels for a training, or end.

    Attributes:
        idle: why kinds of work have no more tasks.
    """

    requests: tuple[Request, ...] = ()
    gather: bool = False
    end: End | None = None
    idle: Mapping[Work, str] = field(default_factory=dict)
