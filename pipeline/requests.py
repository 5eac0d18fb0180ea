"""What can be asked for: a task that is not made yet."""

import re
from dataclasses import dataclass

from pipeline.events import Work

_NAME = re.compile(r"(walk|select|label)-r(\d+)-(\d+)(?:-l(\d+))?|train-v(\d+)(?:-a(\d+))?")
LAST = 1_000_000_000
"""Priority of walks: they never end, so whatever shares their workers comes first."""


@dataclass(frozen=True, slots=True, order=True)
class Request:
    """A task to be made: what, in which round, which one.

    Attributes:
        round: round of the campaign; in a stream the selection that a label is of, the segment of a batch of walkers, and the
            versions before that of a training.
        item: which one; for training the model version.
        leg: a walk is cut into legs, one task after the other; for training, 1 is the one from scratch after the gate
            refused a model.
    """

    work: Work
    round: int
    item: int = 0
    leg: int = 0

    @property
    def name(self) -> str:
        """Unique in the campaign, the same on every run."""
        if self.work is Work.TRAIN:
            return f"train-v{self.item:04d}" + (f"-a{self.leg}" if self.leg else "")
        leg = f"-l{self.leg:02d}" if self.work is Work.WALK else ""
        return f"{self.work.value}-r{self.round:04d}-{self.item:04d}{leg}"

    @property
    def priority(self) -> int:
        """Where it stands among tasks that wait for the same workers: lower is sooner; labels by their rank."""
        match self.work:
            case Work.LABEL:
                return self.item + 1
            case Work.WALK:
                return LAST
            case Work.SELECT | Work.TRAIN:
                return 0


def request_of(name: str) -> Request:
    """The request of a task name, but for the round of a training, which its name does not tell (0)."""
    found = _NAME.fullmatch(name)
    assert found is not None, name
    work, round_index, item, leg, version, attempt = found.groups()
    if work is None:
        return Request(Work.TRAIN, 0, int(version), int(attempt or 0))
    return Request(Work(work), int(round_index), int(item), int(leg or 0))
