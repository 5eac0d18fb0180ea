"""``farwalk simulate CAMPAIGN.yaml``: how long it takes on which machine, and what limits it, before anyone pays for it."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from apps.cli.console import OUT, duration
from apps.cli.options import SITES, CampaignFile, Overrides, SiteOption
from pipeline.errors import SettingsError
from pipeline.events import Event, LabelFailed, Labelled
from pipeline.intake import open_campaign
from pipeline.settings.campaign import CampaignSettings
from pipeline.settings.loading import read_draft
from pipeline.simulation.campaign import Report
from pipeline.simulation.campaign import simulate as simulated
from pipeline.simulation.durations import Around, Durations, EvenSegments, means, stored
from pipeline.simulation.measured import MeasuredSegments, measured
from pipeline.simulation.sizing import Machine, Sized, best_split, machine_of, one_more, sized, unit_of
from pipeline.store import Store

ERRORS = Console(stderr=True, highlight=False, soft_wrap=True)
QUICK_S = 5.0
"""What one more node brings is simulated as well where a simulation takes no longer than this, seconds."""
LEAST_S = 0.001
"""Tasks that take no time at all have no pace."""
LEAST_SHARE = 0.005
"""Reasons that cost less of the time of their workers are left out."""
MOST_REASONS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """Durations from the command line, seconds; None: not given."""

    label: float | None
    walk: float | None
    train: float | None
    queue: float | None


def simulate(
    campaign: CampaignFile,
    site: SiteOption = None,
    overrides: Overrides = None,
    nodes: Annotated[
        int | None, typer.Option("--nodes", min=2, help="nodes (slots of this machine), shared out as is best")
    ] = None,
    walk_nodes: Annotated[int | None, typer.Option("--walk-nodes", min=1, help="nodes (or slots) of walkers")] = None,
    label_nodes: Annotated[int | None, typer.Option("--label-nodes", min=1, help="nodes (or slots) of labels")] = None,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="campaign directory whose durations are taken")
    ] = None,
    label_s: Annotated[float | None, typer.Option("--label-seconds", min=LEAST_S, help="seconds of a label")] = None,
    walk_s: Annotated[
        float | None, typer.Option("--walk-seconds", min=LEAST_S, help="seconds of a segment of a batch of walkers")
    ] = None,
    train_s: Annotated[float | None, typer.Option("--train-seconds", min=LEAST_S, help="seconds of a training")] = None,
    queue_s: Annotated[
        float | None, typer.Option("--queue-seconds", min=0.0, help="seconds a job waits in the machine's queue")
    ] = None,
    labels: Annotated[int | None, typer.Option("--labels", min=1, help="the same as --set labels.budget=…")] = None,
    schedule: Annotated[
        str | None, typer.Option("--schedule", metavar="rounds|streaming", help="unless the campaign has it already")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="the same as --set seed=…")] = None,
) -> None:
    """Simulate a campaign: how long, how many node hours, and what limits it. Runs nothing."""
    short = {"labels.budget": labels, "seed": seed}
    texts = [*(overrides or ()), *(f"{key}={value}" for key, value in short.items() if value is not None)]
    settings = open_campaign(campaign, _scheduled(campaign, texts, site, schedule), site, SITES).settings
    given = _Given(label=label_s, walk=walk_s, train=train_s, queue=queue_s)
    durations = _durations(settings, source, given)
    with _progress() as tell:
        machine = _machine(settings, durations, nodes, walk_nodes, label_nodes, tell)
        chosen = sized(settings, machine)
        began = time.monotonic()
        report = simulated(chosen.settings, durations, on_event=_Follow(chosen.settings.labels.budget, tell))
        more = []
        if time.monotonic() - began < QUICK_S:
            tell("simulating one more node of each kind")
            more = _more(chosen.settings, report, durations)
    OUT.print(_summary(chosen, machine, report, durations))
    OUT.print(_workers(report))
    if any(one.share >= LEAST_SHARE for one in report.idle):
        OUT.print(_idle(report))
    for line in [_limit(report), *more, _driver(report)]:
        OUT.print(line, markup=False)


class _Follow:
    """Says how many labels have come.

    Args:
        budget: labels of the campaign.
        tell: shows a line.
    """

    def __init__(self, budget: int, tell: Callable[[str], None]) -> None:
        self._budget, self._tell, self._count = budget, tell, 0

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        if isinstance(event, Labelled | LabelFailed):
            self._count += 1
            if self._count % max(1, self._budget // 20) == 0:
                self._tell(f"simulated {self._count} of {self._budget} labels, {duration(event.time)}")


def _scheduled(campaign: Path, texts: list[str], site: str | None, schedule: str | None) -> list[str]:
    """Overrides with which a campaign has a schedule; where it has it already, all of its keys stay.

    Raises:
        SettingsError: the file cannot be read.
    """
    if schedule is None:
        return texts
    override, found = f"schedule={{kind: {schedule}}}", read_draft(campaign, texts, site=site, library=SITES).settings
    if found is None:  # other overrides may be of keys that only the new schedule has
        return [override, *texts]
    return texts if found.schedule.kind == schedule else [*texts, override]


def _durations(settings: CampaignSettings, source: Path | None, given: _Given) -> Durations:
    """Measured or published durations, and those that were given instead.

    Raises:
        SettingsError: nothing to measure.
        StoreError: not a campaign directory, or a damaged one.
    """
    found = Durations.published(settings) if source is None else measured(Store.open(source), settings)
    if given.label is not None:
        found = dataclasses.replace(found, label=Around(mean_s=given.label))
    if given.walk is not None:
        if isinstance(found.walk, MeasuredSegments):  # what they find was measured all the same
            found = dataclasses.replace(found, walk=found.walk.lasting(given.walk))
        else:
            even = EvenSegments(seconds=Around(mean_s=given.walk), candidates=stored(settings))
            found = dataclasses.replace(found, walk=even)
    if given.train is not None:
        found = dataclasses.replace(found, train=Around(mean_s=given.train))
    if given.queue is not None:
        found = dataclasses.replace(found, queue_wait=Around(mean_s=given.queue))
    names = [name for name, value in dataclasses.asdict(given).items() if value is not None]
    return dataclasses.replace(found, source=f"{found.source}; given: {', '.join(names)}") if names else found


def _machine(
    settings: CampaignSettings,
    durations: Durations,
    nodes: int | None,
    walk: int | None,
    label: int | None,
    tell: Callable[[str], None],
) -> Machine:
    """The machine that the options ask for.

    Raises:
        SettingsError: they contradict each other.
    """
    now = machine_of(settings)
    if nodes is None:
        return Machine(walk or now.walk, label or now.label)
    if walk is None and label is None:
        return best_split(settings, nodes, durations, tell)
    walk = nodes - (label or 0) if walk is None else walk
    label = nodes - walk if label is None else label
    if min(walk, label) < 1 or walk + label != nodes:
        raise SettingsError(
            f"--nodes {nodes}: not the sum of {walk} for walkers and {label} for labels.",
            "Give two of --nodes, --walk-nodes and --label-nodes, or --nodes alone.",
        )
    return Machine(walk, label)


def _more(settings: CampaignSettings, report: Report, durations: Durations) -> list[str]:
    """What one more job of each kind would bring."""
    lines, now = [], machine_of(settings)
    for kind, saving in one_more(settings, report, durations).items():
        count = saving.machine.walk - now.walk + saving.machine.label - now.label
        unit = unit_of(settings).removesuffix("s" if count == 1 else "")
        effect = "saves nothing beyond chance" if saving.is_chance else "saves nothing"
        if saving.mean_s > 0 and not saving.is_chance:
            share, error = saving.mean_s / report.wall_s, saving.error_s / report.wall_s
            effect = f"saves {duration(saving.mean_s)} ({share:.1%} ± {error:.1%})"
        lines.append(f"{count} more {kind} {unit} {effect}")
    return lines


def _summary(chosen: Sized, machine: Machine, report: Report, durations: Durations) -> Table:
    settings = chosen.settings
    unit = unit_of(settings)
    table = Table(show_header=False, title=f"simulated campaign {settings.name}", title_justify="left")
    table.add_column("")
    table.add_column("", overflow="fold")
    table.add_row("wall time", duration(report.wall_s))
    table.add_row("ends", report.message)
    table.add_row("schedule", settings.schedule.kind)
    first = unit.removesuffix("s") if machine.walk == 1 else unit
    table.add_row("machine", f"{machine.walk} {first} for walkers, {machine.label} for labels")
    if report.node_h:
        table.add_row("node hours", _hours(report.node_h))
    table.add_row("hours that tasks held", f"{_hours(report.core_h)} of cores, {_hours(report.gpu_h)} of GPUs")
    failed = f" ({report.failed} failed)" if report.failed else ""
    table.add_row("labels, models, tasks", f"{report.labels}{failed}, {report.models}, {report.tasks}")
    seconds = ", ".join(f"{kind} {duration(value)}" for kind, value in means(durations, settings).items())
    table.add_row("mean durations", f"{seconds} ({durations.source})")
    for line in chosen.changes:
        table.add_row("set this, too", line)
    return table


def _workers(report: Report) -> Table:
    """A row per kind of worker."""
    table = Table("workers of", title="busy", title_justify="left")
    for head in ("slots", "nodes", "tasks", "first to last label", "whole campaign", "node hours"):
        table.add_column(head, justify="right")
    for one in report.workers:
        nodes = (str(one.nodes), _hours(one.node_h)) if one.nodes else ("", "")
        table.add_row(
            one.label, str(one.slots), nodes[0], str(one.tasks), f"{one.busy:.1%}", f"{one.busy_whole:.1%}", nodes[1]
        )
    return table


def _idle(report: Report) -> Table:
    """Why workers had no task."""
    table = Table("workers of", title="idle, share of the time of all slots", title_justify="left")
    table.add_column("share", justify="right")
    table.add_column("because", overflow="fold")
    for one in [one for one in report.idle if one.share >= LEAST_SHARE][:MOST_REASONS]:
        table.add_row(one.work.value, f"{one.share:.1%}", one.reason)
    return table


def _limit(report: Report) -> str:
    """What limits the campaign."""
    busiest = max(report.workers, key=lambda one: one.busy)
    return f"the busiest: workers of {busiest.label}, {busiest.busy:.1%} of the time from the first to the last label"


def _driver(report: Report) -> str:
    took = report.decisions
    return (
        f"driver, without its files: {took.mean_ms:.2f} ms a decision on this machine (99 % within {took.p99_ms:.2f} ms), "
        f"{took.mean_at_most_ms:.2f} ms with {took.most_open} tasks under way"
    )


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """One line that changes on a terminal, on standard error; nothing elsewhere."""
    with ERRORS.status("simulating") as status:
        yield status.update if ERRORS.is_terminal else lambda text: None
