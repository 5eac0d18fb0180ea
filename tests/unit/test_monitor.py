"""Tables and figures of a small campaign that really ran."""

import struct
from pathlib import Path

import numpy as np
import pytest

from pipeline.analysis.coverage import Coverage
from pipeline.analysis.held_out import Sampling, draw
from pipeline.analysis.variables import evaluate_all
from pipeline.campaign import Campaign
from pipeline.errors import TaskError
from pipeline.events import Gathered, Rejected, Trained, Walked
from pipeline.inline import InlineSteps
from pipeline.intake import Intake, open_campaign
from pipeline.monitor.figures import error_figure, motion_figure, plane_figure
from pipeline.monitor.motion import motion_rows, walker_series
from pipeline.monitor.tables import RoundRow, fresh_coverage, round_rows, system_variables, visited
from pipeline.potentials import load
from pipeline.records import Label
from pipeline.store import Store

TEMPLATE = Path(__file__).parents[2] / "apps" / "templates" / "alanine-dipeptide" / "campaign.yaml"
SYSTEM = "alanine-dipeptide"
SMALL = (
    "labels.budget=16",
    "labels.initial=8",
    "selection.batch=4",
    "walkers.count=4",
    "walkers.batch=2",
    "walkers.segment_steps=40",
    "walkers.store_every=5",
    "potential.hidden=[16]",
    "potential.channels=2",
    "training.epochs=6",
    "training.warm_epochs=4",
    "site={kind: inline}",
)


@pytest.fixture(scope="module")
def intake() -> Intake:
    return open_campaign(TEMPLATE, SMALL)


@pytest.fixture(scope="module")
def store(intake: Intake, tmp_path_factory: pytest.TempPathFactory) -> Store:
    campaign = Campaign.create_or_open(intake.settings, intake.frames, tmp_path_factory.mktemp("run") / "c")
    with InlineSteps() as steps:
        campaign.run(steps)
    return campaign.store


@pytest.fixture(scope="module")
def held_out(intake: Intake) -> list[Label]:
    sampling = Sampling(frames=6, runs=2, spacing_ps=0.02, equilibration_ps=0.02)
    return draw(intake.settings.labels.reference, intake.frames[SYSTEM], sampling)


@pytest.fixture(scope="module")
def rows(store: Store, held_out: list[Label]) -> list[RoundRow]:
    return round_rows(store, held_out)


def test_there_is_a_row_per_model_and_its_sums_are_those_of_the_events(store: Store, rows: list[RoundRow]) -> None:
    events = store.events()
    models = [event for event in events if isinstance(event, Trained)]
    assert [row.version for row in rows] == [model.version for model in models]
    assert [row.labels for row in rows] == [8, 12, 16]
    assert rows[0].walker_steps == 0
    assert sum(row.walker_steps for row in rows) == sum(e.walker_steps for e in events if isinstance(e, Walked))
    for row, model in zip(rows, models, strict=True):
        assert row.seconds["train"] == pytest.approx(model.timing.wall_s)
        assert row.fresh == model.fresh
    assert all(row.seconds["walk"] > 0 for row in rows[1:])


def test_a_stream_has_a_row_per_model_with_the_labels_of_several_selections(intake: Intake, tmp_path: Path) -> None:
    streaming = open_campaign(TEMPLATE, (*SMALL, "schedule=streaming", "labels.budget=18"))
    campaign = Campaign.create_or_open(streaming.settings, streaming.frames, tmp_path / "c")
    with InlineSteps() as steps:
        campaign.run(steps)
    store = campaign.store
    events, rows = store.events(), round_rows(store)
    models = [event for event in events if isinstance(event, Trained)]
    assert [(row.round, row.version, row.labels) for row in rows] == [(m.round, m.version, m.labels) for m in models]
    assert rows[-1].labels == sum(event.count for event in events if isinstance(event, Gathered)) == 18
    assert sum(row.walker_steps for row in rows) <= sum(e.walker_steps for e in events if isinstance(e, Walked))
    tasks = [event for event in events if isinstance(event, Trained | Rejected)]
    assert sum(row.seconds["train"] for row in rows) == pytest.approx(sum(event.timing.wall_s for event in tasks))
    variables = system_variables(store)[SYSTEM]
    everything = evaluate_all(variables, [label.frame for label in store.labels(store.state())])
    assert rows[-1].labelled[SYSTEM] == Coverage.of(variables).with_points(everything).value
    values = [row.labelled[SYSTEM] for row in rows]
    assert values == sorted(values)


def test_coverage_grows_and_ends_as_counted_over_all_frames(store: Store, rows: list[RoundRow]) -> None:
    variables = system_variables(store)[SYSTEM]
    labels = [label.frame for label in store.labels(store.state())]
    walks = [event for event in store.events() if isinstance(event, Walked)]
    walked = [frame for event in walks for frame in visited(store, event, SYSTEM)]
    explored, labelled = ([row.explored[SYSTEM] for row in rows], [row.labelled[SYSTEM] for row in rows])
    assert explored == sorted(explored)
    assert labelled == sorted(labelled)
    assert labelled[-1] == Coverage.of(variables).with_points(evaluate_all(variables, labels)).value
    everything = evaluate_all(variables, [*labels, *walked])
    assert explored[-1] == Coverage.of(variables).with_points(everything).value
    assert explored[-1] >= labelled[-1] > 0


def test_motion_is_that_of_all_walker_frames(store: Store) -> None:
    series = walker_series(store)
    walks = [event for event in store.events() if isinstance(event, Walked)]
    frames = [frame for event in walks for frame in visited(store, event, SYSTEM)]
    for column, variable in enumerate(system_variables(store)[SYSTEM]):
        own = [one for one in series if one.variable == variable]
        values = np.concatenate([one.values for one in own])
        expected = evaluate_all([variable], frames)[:, 0]
        assert set(values) == set(expected)
        row = motion_rows(series)[column]
        assert (row.temperature_K, row.pressure_MPa, row.walkers) == (300.0, 0.0, len(own))
        assert row.coverage == Coverage.of([variable]).with_points(expected[:, None]).value
    assert motion_figure(own, store.root.parent / "motion.png").read_bytes().startswith(b"\x89PNG")


def test_held_out_errors_are_those_of_the_published_models(
    store: Store, rows: list[RoundRow], held_out: list[Label]
) -> None:
    last = store.state().models[-1]
    model = load(store.absolute(last.file).path, last.file.sha256)
    forces = np.concatenate([label.forces for label in held_out])
    predicted = model.evaluate([label.frame for label in held_out]).forces
    assert rows[-1].held_out is not None
    assert rows[-1].held_out.force_rmse == pytest.approx(np.sqrt(np.mean((predicted - forces) ** 2)))
    assert all(row.held_out is None for row in round_rows(store))


def test_fresh_coverage_counts_all_new_labels(rows: list[RoundRow]) -> None:
    share, (low, high), trials = fresh_coverage(rows)
    assert trials == 8
    assert 0 <= low <= share <= high <= 1
    assert fresh_coverage([])[2] == 0


def test_figures_are_png_files_that_are_not_blank(
    store: Store, rows: list[RoundRow], intake: Intake, tmp_path: Path
) -> None:
    plane = plane_figure(store, tmp_path / "plane.png", start=intake.frames[SYSTEM][0])
    errors = error_figure({"tau 0.25": rows}, tmp_path / "errors.png")
    for path in (plane, errors):
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", data[16:24])
        assert width > 600
        assert height > 400
        assert len(data) > 10_000


def test_a_plane_needs_two_variables(store: Store, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="two variables"):
        plane_figure(store, tmp_path / "x.png", system="water")


def test_error_figures_need_held_out_scores(store: Store, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="held-out"):
        error_figure({"a": round_rows(store)}, tmp_path / "x.png")
