"""When drivers ran: what lies between two of them is neither spent nor idle time."""

from dataclasses import dataclass, field

from pipeline.events import Created, Event, Requeued, Resumed
from pipeline.settings.campaign import CampaignSettings


@dataclass(frozen=True, slots=True)
class Session:
    """One driver.

    Attributes:
        started, ended: first and last event, seconds since the epoch.
        settings: those in force.
    """

    started: float
    ended: float
    settings: CampaignSettings


@dataclass(slots=True)
class Sessions:
    """All drivers of a campaign so far, from its events.

    Attributes:
        earlier: drivers before the newest.
        earlier_s: seconds of these.
        started, ended, settings: as in :class:`Session`, of the newest.
    """

    earlier: list[Session] = field(default_factory=list)
    earlier_s: float = 0.0
    started: float = 0.0
    ended: float = 0.0
    settings: CampaignSettings | None = None

    def absorb(self, event: Event) -> None:
        """Take note of an event."""
        if isinstance(event, Requeued):  # `farwalk relabel` writes it while no driver runs
            return
        if not isinstance(event, Created | Resumed):
            self.ended = max(self.ended, event.time)
            return
        if self.settings is not None:
            self.earlier.append(Session(self.started, self.ended, self.settings))
            self.earlier_s += self.ended - self.started
        self.started = self.ended = event.time
        self.settings = CampaignSettings.model_validate(event.settings)

    def wall_s(self, time: float) -> float:
        """Seconds that drivers ran, up to a time of the newest one."""
        return self.earlier_s + max(0.0, time - self.started)

    def all(self, now: float | None) -> list[Session]:
        """All of them, oldest first.

        Args:
            now: seconds since the epoch where the newest still runs; None: it ended with its last event.
        """
        if self.settings is None:
            return []
        ended = self.ended if now is None else max(self.ended, now)
        return [*self.earlier, Session(self.started, ended, self.settings)]
