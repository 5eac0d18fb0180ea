"""Live progress on a terminal, plain lines in a file or pipe, nothing when quiet."""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from apps.cli.board import Board, notice_line, refusal_line
from apps.cli.console import OUT, duration
from pipeline.events import Event, LabelFailed, Noticed, Rejected, Submitted, TaskFailed, TaskLost, Trained
from pipeline.store import Store

BAR_WIDTH = 40
LINE_S = 60.0
"""How often a stream says in a file or pipe what is in flight, seconds."""
AGAIN_S = 2.0
"""How often the time that is left is computed anew, seconds."""


class Display:
    """Shows a campaign's events as they come; use as a context manager and call with each event.

    Args:
        store: the campaign, whose events so far are taken in.
        quiet: show nothing.
    """

    def __init__(self, store: Store, *, quiet: bool) -> None:
        self.board = Board()
        self.board.absorb(store.reading())
        self._scratch = store.scratch
        self._started = time.monotonic()
        self._told = -LINE_S
        self._remaining = (-AGAIN_S, "")
        self._quiet = quiet
        self._note = ""
        self._live = Live(console=OUT, get_renderable=self._render, refresh_per_second=4, transient=True)
        self._is_live = OUT.is_terminal and not quiet

    def __enter__(self) -> Self:
        if self._is_live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_live:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        before = (self.board.stage, self.board.round)
        self.board.absorb([event])
        if self._quiet:
            return
        if isinstance(event, LabelFailed):
            tries = f" after {len(event.tries)} tries" if len(event.tries) > 1 else ""
            why = f"label {event.number} failed{tries}, {event.cause.value}: {event.reason}"
            place = "" if event.scratch in event.reason else f" ({event.scratch})"
            OUT.print(self._stamped(f"{why}{place}"), markup=False)
        if isinstance(event, Noticed | TaskLost):
            OUT.print(self._stamped(notice_line(event)), markup=False)
        if isinstance(event, TaskFailed):
            OUT.print(self._stamped(f"{event.task} failed: {event.reason}"), markup=False)
        if isinstance(event, Trained):
            OUT.print(self._stamped(self.board.summary()), markup=False)
        if isinstance(event, Rejected) and self.board.state is not None:
            OUT.print(self._stamped(refusal_line(event, self.board.state)), markup=False)
        if isinstance(event, Submitted) and not self._is_live:
            self._submitted(event, is_new=before != (self.board.stage, self.board.round))

    def _submitted(self, event: Submitted, *, is_new: bool) -> None:
        """A line for tasks that were handed out: in rounds for each kind, in a stream now and then."""
        if self.board.flow is not None:
            if time.monotonic() - self._told >= LINE_S:
                self._told = time.monotonic()
                OUT.print(self._stamped(self.board.phase), markup=False)
            return
        # legs follow one another: a line for the first ones is enough
        if is_new:
            tasks = f"{len(event.tasks)} task{'s' if len(event.tasks) != 1 else ''}"
            OUT.print(self._stamped(f"round {event.round}: {self.board.phase}, {tasks}"), markup=False)

    def note(self, text: str) -> None:
        """A line that stays: below the bars, or printed."""
        self._note = text
        if not self._is_live and not self._quiet:
            OUT.print(text, markup=False)

    def _stamped(self, text: str) -> str:
        return f"{time.strftime('%H:%M:%S')} {text}"

    def _render(self) -> Group:
        board = self.board
        elapsed = time.monotonic() - self._started
        table = Table.grid(padding=(0, 1))
        table.add_row(
            "labels", ProgressBar(max(board.budget, 1), board.labels, width=BAR_WIDTH), f"{board.labels}/{board.budget}"
        )
        phase = ""
        if board.flow is None:
            table.add_row(
                board.phase,
                ProgressBar(max(board.total, 1), board.done, width=BAR_WIDTH),
                f"{board.done}/{board.total}",
            )
        else:
            phase = board.phase
        pace = " · ".join(text for text in (duration(elapsed), self._left()) if text)
        below = [phase, board.summary(), pace, self._training(), self._note]
        return Group(table, *[Text(line, no_wrap=False, overflow="fold") for line in below if line])

    def _left(self) -> str:
        """How long it will take, computed now and then."""
        when, text = self._remaining
        if time.monotonic() - when >= AGAIN_S:
            text = self.board.remaining(time.time())
            self._remaining = (time.monotonic(), text)
        return text

    def _training(self) -> str:
        """What the training in progress says of itself; empty when there is none."""
        if not self.board.is_training:
            return ""
        files = sorted(self._scratch.glob("*/*/progress.json"), key=_modified)
        try:
            facts = json.loads(files[-1].read_text(encoding="utf-8")) if files else {}
        except (OSError, ValueError):  # it was just removed: the training is done
            return ""
        hidden = ("task", "updated")
        return ", ".join(f"{name} {value:.4g}" for name, value in facts.items() if name not in hidden)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
