"""``farwalk relabel DIR``: quarantined labels are tried again."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from apps.cli.console import OUT
from apps.cli.failures import parse_causes
from pipeline.errors import SettingsError, StoreError
from pipeline.lock import holder_of
from pipeline.quarantine import quarantined, requeue
from pipeline.settings.keys import nearest
from pipeline.store import Store


def relabel(
    directory: Annotated[Path, typer.Argument(help="campaign directory")],
    tasks: Annotated[
        list[str] | None, typer.Argument(metavar="[TASK]...", help="as `farwalk failures` names them [default: all]")
    ] = None,
    cause: Annotated[
        list[str] | None, typer.Option("--cause", metavar="CAUSE", help="only those of this cause, e.g. time_limit")
    ] = None,
) -> None:
    """Try quarantined labels again, with the next run of the campaign."""
    store = Store.open(directory)
    causes = parse_causes(cause)
    if holder := holder_of(store.lock_path):
        raise StoreError(
            f"{directory}: a driver runs this campaign ({holder}).", f"Stop it first: farwalk stop {directory} --wait"
        )
    known = {row.task: row for row in quarantined(store.reading())}
    for name in tasks or ():
        _check_task(name, list(known), directory)
    chosen = [
        row for row in known.values() if (not tasks or row.task in tasks) and (causes is None or row.cause in causes)
    ]
    if not chosen:
        which = f" for {', '.join(causes)}" if causes else ""
        raise StoreError(
            f"{directory}: no label is quarantined{which}.", f"See `farwalk failures {directory}` for those that are."
        )
    waiting = [row for row in chosen if row.requeued]
    if len(waiting) == len(chosen):
        raise StoreError(
            f"{directory}: {_labels(len(waiting))} {'is' if len(waiting) == 1 else 'are'} asked for again already.",
            "`farwalk run` or `farwalk submit` goes on with the campaign.",
        )
    event = requeue(store, [row.task for row in chosen if not row.requeued], causes)
    counts = Counter(failure.cause.value for failure in event.failures)
    OUT.print(f"asked again for {_labels(len(event.failures))}: {', '.join(f'{n} {c}' for c, n in counts.items())}")
    OUT.print("next: `farwalk run` or `farwalk submit` goes on with the campaign and makes them first")


def _check_task(name: str, known: list[str], directory: Path) -> None:
    """Refuse a name that is not a quarantined label's.

    Raises:
        SettingsError: with the nearest name.
    """
    if name in known:
        return
    close = nearest(name, known)
    hint = f"Did you mean {close}?" if close else f"`farwalk failures {directory}` lists their names."
    raise SettingsError(f"{name}: no quarantined label has this name.", hint)


def _labels(count: int) -> str:
    return f"{count} label{'s' if count != 1 else ''}"
