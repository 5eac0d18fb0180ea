"""Which energies are plausible: least squares over compositions, whatever order labels came in, no extrapolation."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from test_events import EXAMPLES
from test_state import initial

from pipeline.energy_window import EnergyFit, EnergyWindow, composition_of
from pipeline.events import Gathered
from pipeline.fold import apply, fold
from pipeline.frames import Frame
from pipeline.records import Label, Split
from pipeline.shards import read_energies
from pipeline.store import Store


def labelled(numbers: list[int], energy: float) -> Label:
    count = len(numbers)
    frame = Frame(
        numbers=np.array(numbers),
        positions=np.arange(3.0 * count).reshape(count, 3),
        cell=np.eye(3),
        pbc=np.ones(3, bool),
        system="a",
    )
    return Label(frame=frame, energy=energy, forces=np.zeros((count, 3)), stress=None, split=Split.TRAIN, round=0)


compositions = st.lists(st.sampled_from([1, 6, 8, 29]), min_size=1, max_size=8)
rows = st.lists(st.tuples(compositions, st.floats(-1e5, 1e5)), min_size=1, max_size=30)


@effort(deadline=None, max_examples=60)
@given(rows)
def test_the_fit_is_least_squares_of_energies_per_atom_over_fractions(labels):
    fit = EnergyFit()
    fit.add((composition_of(np.array(numbers)), energy) for numbers, energy in labels)
    elements = sorted({z for numbers, _ in labels for z in numbers})
    x = np.array([[numbers.count(z) / len(numbers) for z in elements] for numbers, _ in labels])
    y = np.array([energy / len(numbers) for numbers, energy in labels])
    expected = x @ np.linalg.lstsq(x, y, rcond=None)[0]
    for (numbers, _), per_atom in zip(labels, expected, strict=True):
        found = fit.energy(composition_of(np.array(numbers)))
        assert found is not None, "the composition of a label is known"
        assert found / len(numbers) == pytest.approx(per_atom, rel=1e-6, abs=1e-5)


def test_compositions_that_the_labels_do_not_span_have_no_window():
    fit = EnergyFit()
    assert fit.energy(((1, 2),)) is None
    fit.add([(((1, 2), (8, 1)), -9.0)])
    assert fit.energy(((1, 4), (8, 2))) == pytest.approx(-18.0)  # the same water twice
    assert fit.energy(((1, 1), (8, 1))) is None
    assert fit.energy(((1, 2),)) is None
    assert fit.energy(((6, 1),)) is None
    fit.add([(((1, 2),), -2.0)])
    assert fit.energy(((1, 6), (8, 1))) == pytest.approx(-9.0 - 2 * 2.0)  # between hydrogen and water
    assert fit.energy(((8, 2),)) is None, "oxygen alone would be an extrapolation"


def test_only_labels_of_finished_rounds_count_and_each_shard_is_read_once(tmp_path, monkeypatch):
    store = Store.create(tmp_path / "c", settings_yaml="", first=EXAMPLES[0])
    first = store.put_labels("labels-r0000", [labelled([1, 1, 8], -14.0), labelled([1, 1, 8], -16.0)])
    second = store.put_labels("labels-r0001", [labelled([29], -3.0)])
    events = [replace(event, file=first) if isinstance(event, Gathered) else event for event in initial()]
    read = []
    monkeypatch.setattr("pipeline.energy_window.read_energies", lambda ref: read.append(ref) or read_energies(ref))
    window, water, copper = EnergyWindow(store, 5.0), np.array([8, 1, 1]), np.array([29, 29])
    assert window.limits(water, fold(events[:-2])) is None, "round 0 has not ended"
    assert window.limits(water, fold(events[:-1])) is None
    state = fold(events)
    for _ in range(3):
        assert window.limits(water, state) == pytest.approx((-30.0, 0.0))
        assert window.limits(copper, state) is None
    state = apply(state, Gathered(time=1.0, round=1, file=second, count=1))
    assert window.limits(copper, state) is None, "round 1 has not ended"
    state = replace(state, round=2)
    assert window.limits(copper, state) == pytest.approx((-16.0, 4.0))
    assert len(read) == 2
    assert EnergyWindow(store, None).limits(water, state) is None
