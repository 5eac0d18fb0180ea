"""Per fault: how soon it was told, what it cost, what a person reads."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

NOTICE_S = 60
"""How soon a fault must be told, seconds, with the heartbeats that farwalk ships."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One fault.

    Attributes:
        fault: what was done.
        noticed_s: until it was told, seconds; None: there was nothing to tell.
        tasks_again: tasks that were begun again because of it.
        line: what a person reads.
    """

    fault: str
    noticed_s: float | None
    tasks_again: int
    line: str


@dataclass(slots=True)
class Figures:
    """Those of all tests of a session."""

    rows: list[Figure] = field(default_factory=list)

    def add(self, fault: str, noticed_s: float | None, tasks_again: int, line: str) -> None:
        """One more; it must have been told soon enough."""
        row = Figure(fault, None if noticed_s is None else round(noticed_s, 1), tasks_again, line)
        self.rows.append(row)
        assert noticed_s is None or noticed_s < NOTICE_S, row

    def table(self) -> list[str]:
        """For people."""
        lines = [f"{'fault':34} {'noticed s':>9} {'again':>5}  line"]
        for row in self.rows:
            noticed = "-" if row.noticed_s is None else f"{row.noticed_s:.1f}"
            lines.append(f"{row.fault:34} {noticed:>9} {row.tasks_again:>5}  {row.line}")
        return lines

    def save(self, path: Path) -> None:
        """For programs."""
        path.write_text(json.dumps([asdict(row) for row in self.rows], indent=2, ensure_ascii=False) + "\n")
