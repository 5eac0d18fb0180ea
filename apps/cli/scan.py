"""``farwalk check --scan KEY=VALUES``: what is scanned, and what was found, as tables."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from apps.cli.console import duration
from pipeline.convergence import Convergence, Row, ScanFrame, scan_frame
from pipeline.errors import SettingsError, TaskError
from pipeline.intake import Intake
from pipeline.scan import Scan, parse_scan

SMALL_FORCE_EV_PER_A = 0.01
"""Where all forces are below this, their errors say nothing of those of walkers, eV/Å."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedScans:
    """What a check is asked to scan.

    Attributes:
        scans: one after the other.
        frame: the structure of all.
        tolerance_meV_per_A: what is wanted of forces.
    """

    scans: tuple[Scan, ...]
    frame: ScanFrame
    tolerance_meV_per_A: float

    @property
    def count(self) -> int:
        """Labels they take at most."""
        return sum(len(scan.points) for scan in self.scans)


def wanted_scans(
    texts: Sequence[str], frame: str | None, tolerance_meV_per_A: float | None, intake: Intake
) -> WantedScans | None:
    """What the options ask for; None: no scan.

    Raises:
        SettingsError: a wrong key, value, structure or tolerance.
    """
    if not texts:
        if frame is not None or tolerance_meV_per_A is not None:
            option = "--scan-frame" if frame is not None else "--scan-tolerance"
            raise SettingsError(f"{option}: nothing is scanned.", "Add for example --scan cutoff_Ry=200,300,400.")
        return None
    tolerance = 10.0 if tolerance_meV_per_A is None else tolerance_meV_per_A
    if not tolerance > 0:
        raise SettingsError(f"--scan-tolerance {tolerance:g}: not above 0.", "Give meV/Å, for example 10.")
    return WantedScans(
        scans=tuple(parse_scan(text, intake.settings) for text in texts),
        frame=scan_frame(frame, intake.frames, intake.settings),
        tolerance_meV_per_A=tolerance,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanReport:
    """One scan, for people and for machines.

    Attributes:
        found: what it found.
        frame: the structure it was made with.
        moved: directory of its files as reasons name it, and as it is called afterwards.
    """

    found: Convergence
    frame: ScanFrame
    moved: tuple[str, str]

    @property
    def failed(self) -> list[Row]:
        """Values without a label."""
        rows = [row for row in self.found.rows if row.cause is not None]
        return [dataclasses.replace(row, reason=" ".join(row.reason.replace(*self.moved).split())) for row in rows]

    def table(self) -> Table:
        """A row per value."""
        found, atoms = self.found, len(self.frame.frame)
        table = Table(
            title=f"labels.reference.{found.key}, on {self.frame.text} ({atoms} atom{'s' if atoms != 1 else ''})",
            title_justify="left",
            box=None,
            padding=(0, 2, 0, 0),
        )
        with_stress = any(row.stress_rms_GPa is not None for row in found.rows)
        heads = ["E\nmeV/atom", "F RMS\nmeV/Å", "F max\nmeV/Å", *(["stress\nGPa"] if with_stress else [])]
        table.add_column(found.key.rsplit(".", 1)[-1], justify="right", overflow="fold")
        for head in (*heads, "time", "core-s"):
            table.add_column(head, justify="right")
        table.add_column("", overflow="fold")
        for row in found.rows:
            errors = [row.energy_meV_per_atom, row.force_rms_meV_per_A, row.force_max_meV_per_A]
            errors += [row.stress_rms_GPa] if with_stress else []
            cells = ["" if error is None else _digits(error) for error in errors]
            table.add_row(row.value, *cells, duration(row.wall_s), _digits(row.core_s), _remark(row))
        return table

    def lines(self) -> list[str]:
        """Why values gave no label, and which value is enough."""
        return [*(f"{row.value}: {row.reason}" for row in self.failed), *_verdict(self.found)]

    def plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows = {row.value: row for row in self.failed}
        shown = dataclasses.replace(self.found, rows=tuple(rows.get(row.value, row) for row in self.found.rows))
        return {**dataclasses.asdict(shown), "frame": self.frame.text}


def not_compared(reports: Sequence[ScanReport]) -> TaskError | None:
    """The error of scans in which fewer than two values gave a label; None where there is none."""
    for report in reports:
        if not report.found.is_compared:
            rows, failed = report.found.rows, report.failed
            return TaskError(
                f"--scan {report.found.key}: {len(rows) - len(failed)} of {len(rows)} values gave a label: nothing to "
                f"compare. {failed[0].value}: {failed[0].reason}",
                "Mend labels.reference, or scan other values.",
            )
    return None


def _digits(number: float) -> str:
    """Three digits, and no power of ten for large numbers."""
    return f"{number:.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def _remark(row: Row) -> str:
    if row.cause is not None:
        return f"failed: {row.cause.value}"
    tries = f"after {row.tries} failed {'try' if row.tries == 1 else 'tries'}" if row.tries else ""
    return ", ".join(text for text in ("reference" if row.is_reference else "", tries) if text)


def _verdict(found: Convergence) -> list[str]:
    """Which value is enough, and what to know of that."""
    finest = next((row for row in found.rows if row.is_reference), None)
    if finest is None or not found.is_compared:
        return []
    tolerance = f"{found.tolerance_meV_per_A:g} meV/Å"
    lines = []
    if finest is not found.rows[-1]:
        lines.append(f"errors are against {finest.value}, the finest value that gave a label")
    elif not found.is_ordered:
        lines.append(f"errors are against {finest.value}, the last value: this key has no coarse and fine ones")
    if found.enough:
        row = next(row for row in found.rows if row.value == found.enough)
        cost = f"{_digits(row.core_s)} core-s a label, {_digits(finest.core_s)} with {finest.value}"
        lines.append(f"{found.key}={row.value} is enough: no force is more than {tolerance} off ({cost})")
    else:
        more = "finer ones" if found.is_ordered else "others"
        lines.append(f"no value keeps all forces within {tolerance} of those with {finest.value}: scan {more}")
    if found.largest_force_eV_per_A < SMALL_FORCE_EV_PER_A:
        lines.append(
            f"the largest force is {found.largest_force_eV_per_A:.2g} eV/Å: errors of such forces say little; scan a "
            "structure out of equilibrium (--scan-frame SYSTEM takes a rattled one)"
        )
    return lines
