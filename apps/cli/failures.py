"""``farwalk failures DIR``: labels that failed, why, and what that cost. Reads only, also while a driver runs."""

import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from apps.cli.console import OUT, core_hours
from pipeline.errors import SettingsError
from pipeline.events import Labelled
from pipeline.quarantine import Quarantined, quarantined
from pipeline.records import Cause, Try
from pipeline.settings.keys import nearest
from pipeline.store import Store

_SEE = re.compile(r" \(see \S+\)$")
"""Where a reason points to its files; the campaign may have been moved since."""
AS_SET = "as set"
"""A try that does what the settings say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """What failed in a campaign.

    Attributes:
        labels: how many labels there are, quarantined ones counted.
        quarantined: labels that failed for good, and those of them that are asked for again.
        recovered: labels that needed more than one try.
    """

    labels: int
    quarantined: tuple[Quarantined, ...]
    recovered: tuple[Labelled, ...]


def failures(
    directory: Annotated[Path, typer.Argument(help="campaign directory")],
    cause: Annotated[
        list[str] | None, typer.Option("--cause", metavar="CAUSE", help="only those of this cause, e.g. not_converged")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print them as JSON")] = False,
) -> None:
    """Show which labels failed, why, what was tried and what it cost."""
    store = Store.open(directory)
    causes = parse_causes(cause)
    found = find_failures(store)
    if as_json:
        sys.stdout.write(json.dumps(_plain(found, causes, directory), indent=2) + "\n")
        return
    shown = [row for row in found.quarantined if causes is None or row.cause in causes]
    if shown:
        OUT.print(causes_table(shown, found.labels))
        for row in shown:
            OUT.print(line_of(row, directory), markup=False)
        if any(not row.requeued for row in shown):
            OUT.print(f"try them again with: farwalk relabel {directory}", markup=False)
    else:
        what = "" if causes is None else f" for {', '.join(causes)}"
        OUT.print(f"no label is quarantined{what}, of {found.labels}")
    if causes is None and found.recovered:
        OUT.print(recovered_text(found.recovered))


def find_failures(store: Store) -> Failures:
    """All that failed so far.

    Raises:
        StoreError: the event log is damaged.
    """
    labelled: dict[int, Labelled] = {}
    events = store.events()
    for event in events:
        if isinstance(event, Labelled):
            labelled[event.number] = event
    rows = tuple(quarantined(events))
    return Failures(
        labels=len(labelled) + len(rows),
        quarantined=rows,
        recovered=tuple(event for event in labelled.values() if event.tries),
    )


def parse_causes(texts: Sequence[str] | None) -> list[Cause] | None:
    """Causes by their names; None where none is given.

    Raises:
        SettingsError: there is no such cause; names the nearest one.
    """
    known = [cause.value for cause in Cause]
    for text in texts or ():
        if text not in known:
            close = nearest(text, known)
            hint = f"Did you mean {close}?" if close else f"Causes are {', '.join(known)}."
            raise SettingsError(f"--cause {text}: there is no such cause.", hint)
    return [Cause(text) for text in texts] if texts else None


def causes_table(rows: Sequence[Quarantined], labels: int) -> Table:
    """A row per cause, the most frequent first."""
    table = Table(title=f"{len(rows)} of {labels} labels are quarantined", title_justify="left")
    for name in ("cause", "labels", "of all labels", "core-hours"):
        table.add_column(name, justify="left" if name == "cause" else "right")
    for cause, count in Counter(row.cause for row in rows).most_common():
        spent = sum(core_s_of(row) for row in rows if row.cause is cause)
        table.add_row(cause.value, str(count), f"{100 * count / labels:.1f} %", core_hours(spent))
    return table


def line_of(row: Quarantined, directory: Path) -> str:
    """One quarantined label in one line; its directory as it can be opened from here."""
    place = directory / row.directory
    gone = "" if place.is_dir() else " (gone)"
    again = ", asked for again" if row.requeued else ""
    reason = _SEE.sub("", " ".join(row.reason.split())).rstrip(".")
    return (
        f"{row.task}: {row.cause.value}{again}; {_tries_text(row.tries)}; {core_hours(core_s_of(row))} core-hours; "
        f"{reason}; {place}{gone}"
    )


def recovered_text(rows: Sequence[Labelled]) -> str:
    """How many labels needed more than one try, what helped, and what the failed tries cost."""
    helped = Counter(_helped(row) for row in rows)
    count = "1 label" if len(rows) == 1 else f"{len(rows)} labels"
    spent = sum(one.core_s for row in rows for one in row.tries)
    what = ", ".join(f"{name} {number}" for name, number in helped.most_common())
    return f"{count} needed more than one try; helped by {what}; {core_hours(spent)} core-hours in failed tries"


def core_s_of(row: Quarantined) -> float:
    """Core seconds a quarantined label held; what its process used where a reference does not say."""
    return row.core_s or (row.failure.timing.cpu_s if row.failure.timing else 0.0)


def _helped(row: Labelled) -> str:
    """What the successful try did that those before had not."""
    return row.measures[-1].value if row.measures else AS_SET


def _try_text(one: Try) -> str:
    return " + ".join(measure.value for measure in one.measures) or AS_SET


def _tries_text(tries: Sequence[Try]) -> str:
    if not tries:
        return "no try was recorded"
    count = "1 try" if len(tries) == 1 else f"{len(tries)} tries"
    # each try's own cause is said where it differs from the one before it
    parts = []
    for index, one in enumerate(tries):
        changed = index == 0 or tries[index - 1].cause is not one.cause
        parts.append(f"{_try_text(one)} ({one.cause.value})" if changed else _try_text(one))
    return f"{count}: {', '.join(parts)}"


def _plain(found: Failures, causes: Sequence[Cause] | None, directory: Path) -> dict[str, Any]:
    rows = [row for row in found.quarantined if causes is None or row.cause in causes]
    counts = Counter(row.cause for row in rows)
    return {
        "labels": found.labels,
        "causes": {
            cause.value: {
                "labels": count,
                "share": count / found.labels,
                "core_s": sum(core_s_of(row) for row in rows if row.cause is cause),
            }
            for cause, count in counts.most_common()
        },
        "quarantined": [
            {
                "task": row.task,
                "round": row.round,
                "cause": row.cause.value,
                "reason": row.reason,
                "requeued": row.requeued,
                "core_s": core_s_of(row),
                "directory": str(directory / row.directory),
                "tries": [_plain_try(one, directory / row.directory) for one in row.tries],
            }
            for row in rows
        ],
        "recovered": [
            {
                "number": row.number,
                "round": row.round,
                "helped": [measure.value for measure in row.measures],
                "tries": [_plain_try(one, None) for one in row.tries],
            }
            for row in (found.recovered if causes is None else ())
        ],
    }


def _plain_try(one: Try, place: Path | None) -> dict[str, Any]:
    return {
        "cause": one.cause.value,
        "reason": one.reason,
        "measures": [measure.value for measure in one.measures],
        "wall_s": one.wall_s,
        "core_s": one.core_s,
        **({} if place is None else {"directory": str(place / one.directory)}),
    }
