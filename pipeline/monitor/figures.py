"""Figures of a campaign, drawn without a display. Colours are safe for colour-blind readers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure

from pipeline.analysis.variables import bounds, evaluate_all, periodic
from pipeline.errors import TaskError
from pipeline.events import Walked
from pipeline.frames import FloatArray, Frame
from pipeline.monitor.motion import Series, by_condition, correlation_of
from pipeline.monitor.tables import RoundRow, system_variables, visited
from pipeline.settings.variables import Variable
from pipeline.store import Store

COLOURS = "viridis"
ORANGE, BLUE = "#d55e00", "#0072b2"
STYLES = ((BLUE, "o"), (ORANGE, "s"), ("black", "v"), ("#009e73", "^"), ("#cc79a7", "D"), ("#56b4e9", "P"))
"""Colours and markers of lines."""
DPI = 150


def plane_figure(store: Store, path: Path, *, system: str | None = None, start: Frame | None = None) -> Path:
    """Where walkers went in the plane of a system's first two variables (for a peptide: the Ramachandran plane).

    Dots are walker frames coloured by the model that moved them, circles are labels, the cross is the start structure.

    Args:
        store: the campaign.
        path: PNG file to write.
        system: which one; by default the first with two variables.
        start: start structure to mark.

    Raises:
        TaskError: no system has two variables.
        StoreError: a shard is missing or changed.
    """
    planes = {name: several[:2] for name, several in system_variables(store).items() if len(several) >= 2}
    name = system if system is not None else next(iter(planes), "")
    if name not in planes:
        raise TaskError(
            f"{store.root}: no system {name} with two variables.", "Give systems[].variables two entries or more."
        )
    points, versions = _walker_points(store, name, planes[name])
    labels = [label.frame for label in store.labels(store.state()) if label.frame.system == name]
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    axes = figure.subplots()
    last = int(versions.max(initial=1))
    norm = BoundaryNorm(np.arange(0.5, last + 1.5), ncolors=256) if last > 1 else None
    dots = axes.scatter(
        points[:, 0], points[:, 1], c=versions, cmap=COLOURS, norm=norm, s=7, linewidths=0, rasterized=True
    )
    marked = evaluate_all(planes[name], labels)
    axes.scatter(
        marked[:, 0],
        marked[:, 1],
        s=26,
        facecolors="none",
        edgecolors="black",
        linewidths=0.6,
        label=f"{len(labels)} labels",
    )
    if start is not None:
        spot = evaluate_all(planes[name], [start])
        axes.scatter(
            spot[:, 0], spot[:, 1], marker="X", s=150, c=ORANGE, edgecolors="white", zorder=5, label="start structure"
        )
    _frame_plane(axes, planes[name])
    axes.set_title(f"{name}: {len(points)} walker frames", fontsize=11)
    figure.legend(loc="outside lower center", ncols=2)
    if last > 1:
        ticks = sorted({round(tick) for tick in np.linspace(1, last, min(last, 8))})
        figure.colorbar(dots, ax=axes, label="model", ticks=ticks)
    return _save(figure, path)


def error_figure(series: dict[str, Sequence[RoundRow]], path: Path, *, system: str | None = None) -> Path:
    """Errors on the held-out set against labels: energies on the left, forces on the right, both logarithmic.

    Args:
        series: rows with held-out scores, by the name the legend shows; at most six.
        path: PNG file to write.
        system: where given, a third panel with the coverage of its variables by all walkers.

    Raises:
        TaskError: no row has held-out scores.
    """
    assert len(series) <= len(STYLES)
    panels = 2 if system is None else 3
    figure = Figure(figsize=(4.5 * panels, 3.8), layout="constrained")
    energy, force, *others = figure.subplots(1, panels)
    found = False
    for (name, rows), (colour, marker) in zip(series.items(), STYLES, strict=False):
        scored = [(row.labels, row.held_out) for row in rows if row.held_out is not None]
        found = found or bool(scored)
        counts = [labels for labels, _ in scored]
        style = {"color": colour, "marker": marker, "markersize": 4, "label": name}
        energy.plot(counts, [1000 * scores.energy_rmse for _, scores in scored], **style)
        force.plot(counts, [scores.force_rmse for _, scores in scored], **style)
        for coverage in others:
            coverage.plot([row.labels for row in rows], [row.explored[str(system)] for row in rows], **style)
    if not found:
        raise TaskError("no scores on a held-out set.", "Give round_rows a held-out set.")
    for axes, label in ((energy, "energy RMSE (meV/atom)"), (force, "force RMSE (eV/Å)")):
        axes.set(xlabel="labels", ylabel=label, yscale="log")
        axes.grid(visible=True, which="both", alpha=0.25)
        axes.legend()
    for coverage in others:
        coverage.set(xlabel="labels", ylabel="coverage by walkers", ylim=(0.0, 1.0))
        coverage.grid(visible=True, alpha=0.25)
    return _save(figure, path)


def motion_figure(series: Sequence[Series], path: Path) -> Path:
    """One variable along all walkers on the left, its autocorrelation at each condition on the right.

    Args:
        series: of one variable of one system.
        path: PNG file to write.

    Raises:
        TaskError: there are no series, or of several variables.
    """
    groups = by_condition(series)
    if not groups:
        raise TaskError("no walker left frames of this variable.", "Give systems[].variables, and walk.")
    found = sorted({f"{variable} of {system}" for system, variable, *_ in groups})
    if len(found) > 1:
        raise TaskError(f"series of {', '.join(found)} in one figure.", "Draw a figure for each.")
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    variable = series[0].variable
    with_pressure = any(one.pressure_MPa for one in series)
    for k, ((*_, temperature, pressure), group) in enumerate(groups.items()):
        style = {"color": colormaps[COLOURS](k / max(len(groups) - 1, 1)), "linewidth": 0.9}
        name = f"{temperature:g} K" + (f", {pressure:g} MPa" if with_pressure else "")
        for one in group:
            left.plot(one.times_ps, one.values, **style)
        correlation = correlation_of(group)
        right.plot(np.arange(len(correlation)) * group[0].spacing * group[0].step_ps, correlation, label=name, **style)
    left.set(xlabel="age of walker (ps)", ylabel=f"{variable.name} ({UNITS[variable.kind]})", ylim=bounds(variable))
    right.set(xlabel="lag (ps)", ylabel="autocorrelation", ylim=(-1.0, 1.05))
    right.axhline(0.0, color="black", linewidth=0.6)
    for axes in (left, right):
        axes.grid(visible=True, alpha=0.25)
    figure.legend(loc="outside lower center", ncols=min(len(groups), 6))
    figure.suptitle(f"{series[0].system}: {len(series)} walkers", fontsize=11)
    return _save(figure, path)


def _walker_points(store: Store, system: str, variables: Sequence[Variable]) -> tuple[FloatArray, FloatArray]:
    """(n, 2) values of all walker frames, and (n,) the model version of each."""
    points, versions = [np.zeros((0, 2))], [np.zeros(0)]
    for event in store.reading():
        if isinstance(event, Walked):
            values = evaluate_all(variables, visited(store, event, system))
            points.append(values)
            versions.append(np.full(len(values), float(event.version)))
    return np.concatenate(points), np.concatenate(versions)


UNITS = {"dihedral": "degrees", "distance": "Å", "volume": "Å³"}


def _frame_plane(axes: Axes, variables: Sequence[Variable]) -> None:
    """Ranges, units and ticks of the plane."""
    for axis, variable in zip("xy", variables, strict=True):
        low, high = bounds(variable)
        unit = UNITS[variable.kind]
        axes.set(**{f"{axis}lim": (low, high), f"{axis}label": f"{variable.name} ({unit})"})
        if periodic(variable):
            axes.set(**{f"{axis}ticks": np.arange(-180, 181, 60)})
    if all(periodic(variable) for variable in variables):
        axes.set_aspect("equal")
    axes.grid(visible=True, alpha=0.25)


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure).print_figure(path, dpi=DPI)
    return path
