"""Series of variables along walkers: what candidates hold, condition by condition, against volumes made by hand."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fabricated import frame
from rich.console import Console

from apps.cli.status import motion_tables
from pipeline.analysis.autocorrelation import autocorrelation, integrated_time
from pipeline.analysis.coverage import Coverage
from pipeline.errors import TaskError
from pipeline.frames import Frame
from pipeline.monitor.figures import motion_figure
from pipeline.monitor.motion import Series, by_condition, correlation_of, motion_rows, series_of
from pipeline.records import Candidate, StopReason
from pipeline.settings.variables import DihedralVariable, VolumeVariable

VOLUME = VolumeVariable(name="volume", range_A3=(500.0, 1500.0))
TURN = DihedralVariable(name="turn", atoms=(0, 1, 2, 3))
EVERY, STEP_PS = 20, 0.0005
INTERVAL_PS = EVERY * STEP_PS


def of_volume(volume: float) -> Frame:
    return replace(frame(), cell=np.cbrt(volume) * np.eye(3), pbc=np.ones(3, dtype=np.bool_))


def candidate(
    step: int, volume: float, walker: str = "w0", reason: StopReason = StopReason.RUNNING, **changes
) -> Candidate:
    return Candidate(
        frame=of_volume(volume),
        walker=walker,
        step=step,
        temperature_K=changes.get("temperature_K", 300.0),
        pressure_MPa=changes.get("pressure_MPa", 0.0),
        tau=0.25,
        model_version=1,
        reason=reason,
        total_uncertainty=0.1,
        atomic_uncertainty=np.zeros(4, dtype=np.float32),
    )


def series(*portions: list[Candidate]) -> list[Series]:
    return series_of(portions, {"a": [VOLUME]}, spacing=EVERY, step_ps=STEP_PS)


def breathing(count: int, period: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (
        1000 + 100 * np.cos(2 * np.pi * (np.arange(count) / period + rng.random())) + rng.normal(scale=20, size=count)
    )


def test_a_walker_is_one_series_over_legs_and_rounds_however_its_frames_are_mixed() -> None:
    first = [c for k in range(3) for c in (candidate(10 + k * EVERY, 900 + k), candidate(k * EVERY, 800 + k, "w1"))]
    (one, other) = series(first, [candidate(10 + 3 * EVERY, 903)])
    assert (one.walker, other.walker) == ("w0", "w1")
    np.testing.assert_allclose(one.values, [900, 901, 902, 903])
    np.testing.assert_allclose(one.times_ps, (10 + EVERY * np.arange(4)) * STEP_PS)
    assert [len(piece) for piece in one.pieces()] == [4]


def test_where_a_walker_stopped_counts_once_and_not_as_evenly_spaced() -> None:
    steps = [0, 20, 40, 60, 65]
    rows = [candidate(step, 1000.0 + step) for step in steps]
    # it left physics later: what it proposes is the frame of step 60 once more
    (one,) = series([*rows[:-1], candidate(60, 1060.0, reason=StopReason.FORCE)])
    assert [len(piece) for piece in one.pieces()] == [4]
    (one,) = series([*rows[:-1], candidate(65, 1065.0, reason=StopReason.UNCERTAIN)])
    assert [len(piece) for piece in one.pieces()] == [4]
    assert len(one.values) == 5
    (row,) = motion_rows([one])
    assert (row.frames, row.low, row.high) == (5, pytest.approx(1000.0), pytest.approx(1065.0))


def test_rows_are_by_condition_and_their_numbers_those_of_the_series() -> None:
    pressures = {0.0: 40.0, 250.0: 25.0}
    candidates = [
        candidate(EVERY * k, volume, f"p{pressure:g}-{seed}", pressure_MPa=pressure)
        for pressure, period in pressures.items()
        for seed in range(4)
        for k, volume in enumerate(breathing(400, period, seed))
    ]
    found = series(candidates)
    rows = motion_rows(found)
    assert [(row.temperature_K, row.pressure_MPa, row.walkers, row.frames) for row in rows] == [
        (300.0, 0.0, 4, 1600),
        (300.0, 250.0, 4, 1600),
    ]
    for row, group, period in zip(rows, by_condition(found).values(), pressures.values(), strict=True):
        values = np.concatenate([one.values for one in group])
        assert row.mean == pytest.approx(values.mean())
        assert row.mean == pytest.approx(1000.0, abs=3.0)
        assert row.coverage == Coverage.of([VOLUME]).with_points(values[:, None]).value
        assert row.period_ps == pytest.approx(period * INTERVAL_PS, rel=0.02)
        correlation = autocorrelation([one.values for one in group])
        np.testing.assert_allclose(correlation_of(group), correlation)
        assert row.correlation_ps == pytest.approx(integrated_time(correlation) * INTERVAL_PS)


def test_a_slow_drift_is_not_resolved_and_has_no_period() -> None:
    drift = [candidate(EVERY * k, 1400 - 2.0 * k, f"w{w}") for w in range(3) for k in range(100)]
    (row,) = motion_rows(series(drift))
    assert row.period_ps is None
    assert not row.is_resolved
    assert row.low == pytest.approx(1202.0)
    assert row.high == pytest.approx(1400.0)


def test_angles_move_on_a_circle() -> None:
    angles = np.radians(180.0 + np.random.default_rng(0).normal(scale=10.0, size=300))

    def turned(angle: float) -> Frame:
        points = [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, np.cos(angle), np.sin(angle)]]
        return replace(frame(), positions=np.array(points))

    rows = [replace(candidate(EVERY * k, 1000.0), frame=turned(angle)) for k, angle in enumerate(angles)]
    (one,) = series_of([rows], {"a": [TURN]}, spacing=EVERY, step_ps=STEP_PS)
    (row,) = motion_rows([one])
    assert abs(abs(row.mean) - 180.0) < 3.0  # not 0, the mean of -180 and 180
    assert row.correlation_ps == pytest.approx(
        0.5 * INTERVAL_PS, rel=0.3
    )  # independent, though they jump from -180 to 180
    assert np.isnan(row.error)


def test_the_table_shows_pressures_where_there_is_a_barostat() -> None:
    candidates = [
        candidate(EVERY * k, volume, f"p{pressure:g}", pressure_MPa=pressure)
        for pressure in (0.0, -250.0)
        for k, volume in enumerate(breathing(200, 40.0, 1))
    ]
    rows = motion_rows(series(candidates))
    for with_pressure in (True, False):
        console = Console(width=200)
        with console.capture() as text:
            console.print(*motion_tables(rows, with_pressure=with_pressure))
        assert ("-250" in text.get()) is with_pressure
        assert "volume" in text.get()


def test_a_figure_of_the_motion_is_a_png_that_is_not_blank(tmp_path: Path) -> None:
    candidates = [
        candidate(EVERY * k, volume, f"p{pressure:g}", pressure_MPa=pressure)
        for pressure in (0.0, -250.0)
        for k, volume in enumerate(breathing(200, 40.0, 1))
    ]
    data = motion_figure(series(candidates), tmp_path / "motion.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert min(struct.unpack(">II", data[16:24])) > 400
    assert len(data) > 20_000
    with pytest.raises(TaskError, match="no walker"):
        motion_figure([], tmp_path / "none.png")


def test_a_figure_shows_one_variable_of_one_system(tmp_path: Path) -> None:
    rows = [candidate(EVERY * k, volume) for k, volume in enumerate(breathing(50, 20.0, 1))]
    other = VolumeVariable(name="other", range_A3=(500.0, 1500.0))
    both = series_of([rows], {"a": [VOLUME, other]}, spacing=EVERY, step_ps=STEP_PS)
    with pytest.raises(TaskError, match="other of a, volume of a"):
        motion_figure(both, tmp_path / "both.png")


def test_the_error_of_a_mean_of_few_frames_is_unknown_and_they_have_no_period() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rows = [candidate(EVERY * k, volume) for k, volume in enumerate(rng.normal(1000.0, 10.0, size=9))]
        (row,) = motion_rows(series(rows))
        assert np.isnan(row.error)
        assert row.correlation_ps >= 0.5 * INTERVAL_PS
        assert not row.is_resolved
        assert row.period_ps is None
