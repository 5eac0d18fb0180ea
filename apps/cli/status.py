"""``farwalk status DIR``: how far a campaign is. Reads only, also while it runs and after a crash."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from apps.cli.board import Board
from apps.cli.console import OUT, duration
from pipeline.events import Event, Trained, Walked
from pipeline.lock import holder_of
from pipeline.state import fold
from pipeline.store import Store


def status(directory: Annotated[Path, typer.Argument(help="campaign directory")]) -> None:
    """Show how far a campaign is and how good its model is."""
    show_status(directory)


def show_status(directory: Path) -> None:
    """Print headline, sums and a row per model.

    Raises:
        StoreError: not a campaign directory, or a damaged one.
    """
    store = Store.open(directory)
    events = store.events()
    fold(events)  # refuses a log that does not begin as it must
    board = Board()
    board.absorb(events)
    holder = holder_of(store.lock_path)
    OUT.print(headline(board, holder), markup=False)
    OUT.print(board.summary(), markup=False)
    OUT.print(spent(board), markup=False)
    if board.version:
        OUT.print(rounds_table(events))


def headline(board: Board, holder: str) -> str:
    """Whether a campaign runs, stopped or was cut off, and when something happened last."""
    ago = f"last event {duration(max(time.time() - board.last_time, 0.0))} ago"
    if holder:
        return f"running ({holder}), {board.phase}; {ago}"
    if board.ended:
        return f"stopped: {board.ended}; {ago}"
    return f"not running, cut off while {board.phase}: `farwalk run` goes on; {ago}"


def spent(board: Board) -> str:
    """Task time by kind of work."""
    parts = [f"{work} {duration(seconds)}" for work, seconds in board.wall_s.items()]
    return f"task time: {', '.join(parts) or 'none'}; {board.walker_steps} walker steps"


def rounds_table(events: Sequence[Event]) -> Table:
    """One row per trained model."""
    table = Table("round", "model", "labels", "walker steps", "stopped", "force RMSE, validation", "force RMSE, new")
    steps, stops = 0, 0
    for event in events:
        if isinstance(event, Walked):
            steps += event.walker_steps
            stops += sum(event.stops.values())
        if isinstance(event, Trained):
            errors = [scores.force_rmse if scores else None for scores in (event.validation, event.fresh)]
            shown = ["" if error is None else f"{error:.4f} eV/Å" for error in errors]
            table.add_row(str(event.round), str(event.version), str(event.labels), str(steps), str(stops), *shown)
            steps, stops = 0, 0
    return table
