"""What ``farwalk check`` found, as tables for people and as plain values for machines."""

import dataclasses
from collections.abc import Sequence
from textwrap import indent
from typing import Any

from ase.data import chemical_symbols
from rich.table import Table

from apps.cli.console import duration, size
from apps.preflight import Executor, Finding
from apps.worker import device_name
from pipeline.errors import SiteError
from pipeline.estimate import Costs, Estimate
from pipeline.intake import Intake
from pipeline.references.started import Started
from pipeline.settings.schedule import StreamingSchedule
from pipeline.settings.walkers import WalkerSettings


def campaign_table(intake: Intake, directory: str) -> Table:
    """Structures, directory and site."""
    settings = intake.settings
    table = Table(show_header=False, title=f"campaign {settings.name}", title_justify="left")
    for name, group in intake.frames.items():
        elements = sorted({chemical_symbols[z] for frame in group for z in frame.numbers})
        atoms = sorted({len(frame) for frame in group})
        table.add_row(f"system {name}", f"{len(group)} start structures, {atoms} atoms, {' '.join(elements)}")
    table.add_row("walkers", walkers_text(settings.walkers))
    table.add_row("directory", directory)
    table.add_row("site", f"{settings.site.kind} starts")
    return table


def workers_table(executors: Sequence[Executor]) -> Table:
    """What one worker of every executor said: a column per executor."""
    table = Table(title="workers", title_justify="left")
    table.add_column("")
    columns = [_said(executor) for executor in executors]
    for executor in executors:
        table.add_column(executor.label, overflow="fold")
    for name in dict.fromkeys(name for column in columns for name in column):
        row = [column.get(name, "") for column in columns]
        if any(row):
            table.add_row(name, *row)
    return table


def _said(executor: Executor) -> dict[str, str]:
    waited = {} if executor.queued_s is None else {"in the queue": duration(executor.queued_s)}
    found = executor.found
    if found is None:
        return {"node": executor.phase, **waited}
    pinned = f"{found.device} ({found.devices} seen by torch)" if found.device else ""
    return {
        "node": found.node or found.host,
        "job": found.job,
        **waited,
        "answered after": "" if executor.answered_s is None else duration(executor.answered_s),
        "farwalk": f"{found.place.version} {found.place.digest[:8]}",
        "python": f"{found.place.python} {found.place.executable}",
        "torch": found.torch,
        "GPUs of the job": ", ".join(f"{name}={value}" for name, value in found.given.items()),
        "GPU of the worker": pinned,
        "models compute on": found.computes,
        "cores": str(found.cores),
        "scratch": f"{found.scratch}: {found.scratch_problem or size(found.scratch_free) + ' free'}"
        if found.scratch
        else "",
        "campaign's disk": found.directory_problem or f"{size(found.directory_free)} free",
    }


def walk_device(executors: Sequence[Executor]) -> str:
    """What the models of walkers compute on: as their worker said, or in this process where that has no workers."""
    said = [executor.found.computes for executor in executors if executor.label == "walk" and executor.found]
    return said[0] if said else device_name()


def walkers_text(settings: WalkerSettings) -> str:
    """How many walkers there are and at which conditions."""
    temperatures = ", ".join(f"{value:g}" for value in settings.temperatures_K)
    text = f"{settings.count} at {temperatures} K"
    if settings.barostat is None:
        return text
    pressures = ", ".join(f"{value:g}" for value in settings.pressures_MPa)
    return f"{text} and {pressures} MPa, {settings.barostat.kind} cell"


def started_text(program: Started) -> str:
    """Which program labels, and how fast it starts."""
    ranks = "" if program.ranks == 1 else f" on {program.ranks} ranks"
    return f"program: {program.program} starts{ranks} in {duration(program.wall_s)}"


def estimate_tables(costs: Costs, expected: Estimate, intake: Intake, device: str) -> list[Table]:
    """Measured speeds, on which device walkers reached theirs, and what the whole campaign takes."""
    speeds = Table(show_header=False, title="measured", title_justify="left")
    settings = intake.settings
    slots = {"walk": settings.site.walk_slots, "label": settings.site.label_slots}
    speeds.add_row(
        "walkers",
        f"{expected.steps_per_s_task:.4g} walker steps/s per task (batches of {settings.walkers.batch}), "
        f"{expected.steps_per_s:.4g} in all, on {device}",
    )
    held = f" ({costs.label_core_s:.3g} core-s)" if costs.label_core_s else ""
    speeds.add_row(
        "labels",
        f"{duration(costs.label_s)} each with {settings.labels.reference.kind}{held}, "
        f"{expected.labels_per_h:.4g} labels/h in {slots['label']} slots",
    )
    speeds.add_row(
        "training",
        f"{duration(costs.structure_epoch_s)} per structure and epoch, {duration(expected.training_s)} the longest",
    )
    supposed = "if it were in rounds and no walk ended early" if is_stream(intake) else "if no walk ends early"
    whole = Table(title=f"whole campaign, {supposed}: {expected.rounds} rounds", title_justify="left")
    for name in ("work", "tasks", "slots", "wall time", "CPU-hours", "GPU-hours"):
        whole.add_column(name, justify="left" if name == "work" else "right")
    for kind, part in expected.parts.items():
        whole.add_row(
            kind,
            str(part.tasks),
            str(slots.get(kind, 1)),
            duration(part.wall_s),
            f"{part.cpu_h:.3g} h",
            f"{part.gpu_h:.3g} h",
        )
    parts = expected.parts.values()
    whole.add_section()
    whole.add_row(
        "all",
        str(sum(part.tasks for part in parts)),
        "",
        duration(expected.total_s),
        f"{sum(part.cpu_h for part in parts):.3g} h",
        f"{sum(part.gpu_h for part in parts):.3g} h",
    )
    return [speeds, whole]


def is_stream(intake: Intake) -> bool:
    """Whether a campaign has no rounds."""
    return isinstance(intake.settings.schedule, StreamingSchedule)


def stream_text(costs: Costs, expected: Estimate, intake: Intake) -> str:
    """What to do for an estimate of a stream."""
    walkers = intake.settings.walkers
    seconds = {
        "label": costs.label_s + costs.handling_s,
        "walk": walkers.segment_steps * costs.walker_step_s,
        "train": expected.training_s,
    }
    options = " ".join(f"--{kind}-seconds {value:.3g}" for kind, value in seconds.items())
    return f"of rounds, one kind of work after the other; of the stream: farwalk simulate {intake.path} {options}"


def not_counted(executors: Sequence[Executor]) -> str:
    """What the estimate does not contain; waits in the queue as they were seen."""
    waits = [
        f"{executor.label} {duration(executor.queued_s)}" for executor in executors if executor.queued_s is not None
    ]
    queue = f", waiting in the queue (now: {', '.join(waits)}), jobs that hold nodes while they wait for work"
    return f"not counted: selections, the start of workers{queue if waits else ''}"


def findings_error(findings: Sequence[Finding]) -> SiteError:
    """All that is wrong as one error; the same thing with several executors is said once."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        grouped.setdefault((finding.text, finding.remedy), []).append(finding.executor)
    if len(grouped) == 1:
        ((text, remedy), labels) = next(iter(grouped.items()))
        return SiteError(f"site, {', '.join(labels)}: {text.rstrip()}", remedy.strip())
    lines = [f"the site has {len(grouped)} problems:"]
    for (text, remedy), labels in grouped.items():
        lines += [f"  {', '.join(labels)}: {indent(text.strip(), '    ').strip()}", indent(remedy.strip(), "    ")]
    return SiteError("\n".join(lines))


def plain(value: object) -> Any:  # noqa: ANN401  # JSON has no narrower type
    """A record as plain values for JSON; None stays None."""
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
