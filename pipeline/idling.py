"""How long workers had nothing to do, and why."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.events import Idled, Work

LEAST_S = 1.0
"""Shorter spells are not told: a task is always on its way for some milliseconds."""
LONGEST_S = 60.0
"""Longer ones are told in parts: who looks at a running campaign learns why its workers are idle now."""


@dataclass(slots=True)
class _Spell:
    since: float
    reason: str
    count: int
    slot_s: float


class Idling:
    """Follows idle workers from one look at them to the next."""

    def __init__(self) -> None:
        self._spells: dict[Work, _Spell] = {}
        self._looked = 0.0

    def look(self, now: float, idle: Mapping[Work, int], why: Mapping[Work, str]) -> list[Idled]:
        """Spells that are over now, because the workers have tasks or idle for another reason, and parts of long ones.

        Args:
            now: seconds since the epoch.
            idle: per kind of work, workers without a task from now on.
            why: why they have none.
        """
        ended = []
        for work in {*self._spells, *idle}:
            spell = self._spells.get(work)
            count, reason = idle.get(work, 0), why.get(work, "")
            if spell is not None:
                spell.slot_s += spell.count * max(0.0, now - self._looked)
                spell.count = count
                if count and spell.reason == reason and now - spell.since < LONGEST_S:
                    continue
                del self._spells[work]
                if now - spell.since >= LEAST_S:
                    ended.append(
                        Idled(time=now, work=work, since=spell.since, reason=spell.reason, slot_s=spell.slot_s)
                    )
            if count:
                self._spells[work] = _Spell(now, reason, count, 0.0)
        self._looked = now
        return ended
