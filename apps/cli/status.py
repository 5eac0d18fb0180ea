"""``farwalk status DIR``: how far a campaign is. Reads only, also while it runs and after a crash."""

import itertools
import math
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from apps.cli.board import Board, refusal_line
from apps.cli.console import OUT, duration
from apps.cli.places import may_have_jobs
from apps.cli.standing import calibration_tables, limit_tables, models_table, use_tables
from apps.slurm.client import driver_jobs
from apps.slurm.names import job_prefix
from pipeline.errors import SiteError
from pipeline.lock import holder_of
from pipeline.monitor.motion import MotionRow, motion_rows, walker_series
from pipeline.monitor.tables import round_rows
from pipeline.settings import CampaignSettings
from pipeline.store import Store
from pipeline.utilisation import Activity

RECENT_S = 3600.0
"""Notices are shown that are not older than this, seconds."""


def status(directory: Annotated[Path, typer.Argument(help="campaign directory")]) -> None:
    """Show how far a campaign is and how good its model is."""
    show_status(directory)


def show_status(directory: Path) -> None:
    """Print headline, sums, and a table for each thing that a person may want to know.

    Raises:
        StoreError: not a campaign directory, or a damaged one.
    """
    store = Store.open(directory)
    board, activity = Board(), Activity()
    for event in store.reading():
        board.absorb([event])
        activity.absorb(event)
    holder = holder_of(store.lock_path)
    # a driver that is only starting has not worked since the last one stopped
    works = holder and board.state is not None and board.state.stopped is None
    now = time.time() if works else None
    OUT.print(headline(board, holder, "" if holder else queued_driver(store)), markup=False)
    OUT.print(board.summary(), markup=False)
    OUT.print(spent(board), markup=False)
    if board.is_paused and board.state is not None and (stopped := board.state.stopped) is not None:
        OUT.print(
            f"{stopped.remedy} Then: farwalk relabel {directory}, and `farwalk run` or `farwalk submit`.", markup=False
        )
    elif board.failed:
        OUT.print(f"why labels failed, and what was tried: farwalk failures {directory}", markup=False)
    for line in judged(board):
        OUT.print(line, markup=False)
    for when, line in board.recent_notices(time.time(), RECENT_S):
        text = f"{duration(time.time() - when)} ago: {line}"
        OUT.print(textwrap.fill(text, OUT.width, subsequent_indent="  ", break_on_hyphens=False), markup=False)
    for table in (*limit_tables(board, now), *use_tables(activity.utilisation(now))):
        show(table)
    if board.version:
        show(models_table(round_rows(store)))
        for table in calibration_tables(board):
            show(table)
        if rows := motion_rows(walker_series(store)):
            for table in motion_tables(rows, with_pressure=has_barostat(store)):
                show(table)


def show(table: Table) -> None:
    """Print a table within the width of the terminal, after an empty line."""
    OUT.print()
    OUT.print(table, soft_wrap=False)


def queued_driver(store: Store) -> str:
    """The driver's job that waits in SLURM's queue or is just starting; empty where there is none, or no SLURM to ask."""
    if not may_have_jobs(store):
        return ""
    try:
        jobs = driver_jobs(job_prefix(store.root))
    except SiteError:
        return ""
    return next((f"{job.id} ({job.state.lower()}, {job.reason})" for job in jobs), "")


def headline(board: Board, holder: str, queued: str = "") -> str:
    """Whether a campaign runs, waits, stopped or was cut off, and when something happened last.

    Args:
        board: what happened.
        holder: who holds the campaign's lock.
        queued: the driver's job that has not begun.
    """
    ago = f"last event {duration(max(time.time() - board.last_time, 0.0))} ago"
    if holder:
        return f"running ({holder}), {board.phase}; {ago}"
    if queued:
        return f"waiting for the driver's job {queued}; {ago}"
    if board.ended:
        return f"stopped: {board.ended}; {ago}"
    return f"not running, cut off while {board.phase}: `farwalk run` goes on; {ago}"


def spent(board: Board) -> str:
    """Task time by kind of work."""
    parts = [f"{work} {duration(seconds)}" for work, seconds in board.wall_s.items()]
    return f"task time: {', '.join(parts) or 'none'}; {board.walker_steps} walker steps"


def judged(board: Board) -> Iterator[str]:
    """What newer models made of candidates, and the gate of newer models."""
    if board.dropped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in board.dropped.most_common())
        yield f"candidates dropped: {reasons}"
    if board.saved:
        yield f"labels saved: {board.saved}, which waited when a newer model came that needs them no more"
    if board.refused > len(board.refusals):
        yield f"gate: {board.refused} models refused; the newest:"
    for event in board.refusals:
        assert board.state is not None
        yield f"gate: {refusal_line(event, board.state)}"


def has_barostat(store: Store) -> bool:
    """Whether the cells of walkers move."""
    return CampaignSettings.model_validate(store.state().settings).walkers.barostat is not None


def motion_tables(rows: Sequence[MotionRow], *, with_pressure: bool) -> Iterator[Table]:
    """For each variable of a system one row per condition of the walkers. "memory" is the integrated correlation time."""
    for (system, variable), group in itertools.groupby(rows, key=lambda row: (row.system, row.variable)):
        table = Table(
            title=f"motion: {variable} of {system}", title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0
        )
        pressure = ("p MPa",) if with_pressure else ()
        for head in ("T K", *pressure, "walkers", "frames", "mean", "range", "covered", "memory ps", "period ps"):
            table.add_column(head, justify="right")
        for row in group:
            table.add_row(*_motion(row, with_pressure=with_pressure))
        yield table


def _motion(row: MotionRow, *, with_pressure: bool) -> Iterator[str]:
    """The cells of a row; unknown ones are empty."""
    yield f"{row.temperature_K:g}"
    if with_pressure:
        yield f"{row.pressure_MPa:g}"
    yield str(row.walkers)
    yield str(row.frames)
    yield f"{row.mean:.4g}" + ("" if math.isnan(row.error) else f" ± {row.error:.2g}")
    yield f"{row.low:.4g} to {row.high:.4g}"
    yield f"{row.coverage:.2f}"
    memory = f"{row.correlation_ps:.2g}" if row.is_resolved else f"> {row.correlation_ps:.2g}"
    yield "" if math.isnan(row.correlation_ps) else memory
    yield "" if row.period_ps is None else f"{row.period_ps:.2g}"
