"""How a campaign stands, as tables that fit a narrow terminal: models, calibration, limits, use of the workers."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from rich.box import SIMPLE_HEAD
from rich.table import Table

from apps.cli.board import Board
from apps.cli.console import duration
from pipeline.forecast import Forecast, Prospect
from pipeline.monitor.tables import RoundRow
from pipeline.pace import Mark
from pipeline.records import GroupCoverage
from pipeline.uncertainty.points import ALL
from pipeline.utilisation import Use, Utilisation

NEWEST_MODELS = 12
"""Rows of the table of models: the newest ones, and the first."""
JUDGED_MODELS = 3
"""Columns of the table of calibration."""
MOST_GROUPS = 12
"""Rows of it; beyond, groups whose bounds hold are left out."""
MOST_REASONS = 3
"""Reasons why workers were idle."""
LEAST_SHARE = 0.005
"""Smaller shares of their time are not told."""


def _table(title: str, *left: str) -> Table:
    """An empty one whose first columns hold text."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0)
    for head in left:
        table.add_column(head)
    return table


def _right(table: Table, *heads: str) -> None:
    for head in heads:
        table.add_column(head, justify="right")


def models_table(rows: Sequence[RoundRow]) -> Table:
    """One row per trained model. "on new" are labels it led to: selected, so harder than average, and not seen in training."""
    systems = list(rows[0].explored) if rows else []
    table = _table("models")
    explored = ["explored"] if len(systems) == 1 else [f"explored {system}" for system in systems]
    _right(table, "model", "labels", "walker steps", "stopped", *explored, "force RMSE eV/Å", "on new labels")
    pairs = list(itertools.zip_longest(rows, rows[1:]))
    left_out = len(pairs) - NEWEST_MODELS
    for index, (row, following) in enumerate(pairs):
        if 0 < index < left_out:
            continue
        fresh = following.fresh if following else None
        table.add_row(
            *(str(number) for number in (row.version, row.labels, row.walker_steps)),
            str(sum(row.stops.values())),
            *(f"{row.explored[system]:.2f}" for system in systems),
            *("" if scores is None else f"{scores.force_rmse:.4f}" for scores in (row.validation, fresh)),
        )
        if index == 0 and left_out > 1:
            table.add_row("…")
    return table


def calibration_tables(board: Board) -> Iterator[Table]:
    """How often the bounds of the newest models held on later labels, per group: share, what chance explains, and a mark."""
    assert board.state is not None
    models = board.state.models
    judged = [
        (model.version, {(one.quantity, one.group): one for one in following.fresh.groups})
        for model, following in list(pairwise(models))[-JUDGED_MODELS:]
        if following.fresh is not None and following.fresh.groups
    ]
    if not judged:
        return
    table = _table("calibration: % of bounds held on later labels (by chance)", "of")
    _right(table, *(f"model {version}" for version, _ in judged))
    names = list(dict.fromkeys(name for _, groups in reversed(judged) for name in groups))
    off = {name for name in names if any(name in groups and groups[name].is_off for _, groups in judged)}
    sizes = Counter(quantity for quantity, _ in names)
    for quantity, group in names:
        # the only system or element is all there is
        is_told = sizes[quantity] > 2 and (len(names) <= MOST_GROUPS or (quantity, group) in off)
        if group == ALL or is_told:
            cells = [_held(groups.get((quantity, group))) for _, groups in judged]
            table.add_row(f"{'energy' if quantity == 'total' else 'force'} {group}", *cells)
    yield table


def _held(found: GroupCoverage | None) -> str:
    if found is None:
        return ""
    low, high = math.floor(100 * found.low), math.ceil(100 * found.high)
    return f"{'off ' if found.is_off else ''}{100 * found.share:.3g} ({low} to {high})"


def limit_tables(board: Board, now: float | None) -> Iterator[Table]:
    """What is spent, of which limits, and when these are reached."""
    found = board.forecast(now)
    if found is None:
        return
    table = _table("spent, and what is left at the present pace", "")
    _right(table, "now", "limit")
    table.add_column("reached in", overflow="fold")
    for prospect in _with_unlimited(found, board.history.present(board.last_time if now is None else now)):
        first = prospect is found.first and (prospect.left_s or 0) > 0
        table.add_row(*_limit_row(prospect), f"{_reached(prospect)}{'  <- first' if first else ''}")
    yield table


def _with_unlimited(found: Forecast, present: Mark) -> Iterator[Prospect]:
    """The limits, and what has none in its place."""
    rows = {prospect.key: prospect for prospect in found.prospects}
    spent = {
        "stop.max_cpu_h": (present.core_s, "core h"),
        "stop.max_gpu_h": (present.gpu_s, "GPU h"),
        "stop.max_wall_h": (present.wall_s, "h"),
    }
    yield rows.pop("labels.budget")
    for key, (seconds, unit) in spent.items():
        without = Prospect(key=key, limit=math.inf, present=seconds / 3600.0, unit=unit, left_s=None, why="")
        yield rows.pop(key, without)
    yield from rows.values()


def _limit_row(prospect: Prospect) -> tuple[str, str, str]:
    present = "" if prospect.present is None else f"{_number(prospect.present)} {prospect.unit}"
    return prospect.key, present, "none" if math.isinf(prospect.limit) else _number(prospect.limit)


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.3g}"


def _reached(prospect: Prospect) -> str:
    if prospect.left_s is None or prospect.why:
        return prospect.why
    text = duration(prospect.left_s)
    if prospect.low_s is not None and prospect.high_s is not None:
        high = "never" if math.isinf(prospect.high_s) else duration(prospect.high_s)
        text += f" ({duration(prospect.low_s)} to {high})"
    if prospect.labels is not None:
        text += f", at {prospect.labels:.0f} labels"
    return text


def use_tables(found: Utilisation) -> Iterator[Table]:
    """How busy workers were, over the whole run and between the first and the last label, and why they were not."""
    if not found.whole:
        return
    table = _table("workers: share of their time", "for")
    _right(table, "slots", "busy", "while labelling")
    table.add_column("otherwise", overflow="fold")
    between = {use.workers.name: use for use in found.labelling}
    for use in found.whole:
        labelling = between.get(use.workers.name)
        table.add_row(
            ", ".join(work.value for work in use.workers.kinds),
            str(use.workers.slots),
            _percent(use.busy),
            "" if labelling is None else _percent(labelling.busy),
            _else(use),
        )
    yield table


def _else(use: Use) -> str:
    """What workers did when they were not busy, the largest parts first."""
    if not use.slot_s:
        return ""
    reasons = list(use.idle_s.items())
    parts = [(reason, seconds) for reason, seconds in reasons[:MOST_REASONS]]
    parts.append(("idle for other reasons", sum(seconds for _, seconds in reasons[MOST_REASONS:])))
    parts.append(("with tasks in flight", use.handed_out_s))
    parts.append(("between tasks, or workers start" if use.idle_s else "no task", use.rest_s))
    shares = [(text, seconds / use.slot_s) for text, seconds in parts]
    return "; ".join(f"{_percent(share)} {text}" for text, share in shares if share >= LEAST_SHARE)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
