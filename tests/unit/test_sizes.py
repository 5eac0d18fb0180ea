"""What crosses a process border stays small however long a campaign lasts: arrays travel as files."""

import pickle
import typing
from dataclasses import replace

import fabricated
import numpy as np
import pytest
from test_events import SCORES

from pipeline import records
from pipeline.events import SCHEMA, Created, Gathered, Labelled, Selected, Trained, Walked, Work
from pipeline.fold import apply
from pipeline.frames import Frame
from pipeline.records import FileRef, Label, Remark, Split, Status
from pipeline.requests import Request
from pipeline.store import Store
from pipeline.tasks import TaskMaker
from pipeline.uncertainty.calibration import made_up_factor

LARGEST = 100_000
"""Bytes that a task or a result may have."""
ATOMS, STARTS, SLOTS, BATCHES, LEGS, ROUNDS = 76, 100, 64, 16, 6, 300
FILE = FileRef(path="shards/labels-r0123.h5", sha256="0123456789abcdef" * 4)

# the shards of this campaign are made up: there is nothing to fit an energy window to
LARGE = {"walkers__count": SLOTS * BATCHES, "walkers__batch": SLOTS, "labels__energy_window_eV_per_atom": None}
CHOSEN = fabricated.settings(**LARGE)
BEGIN = Created(time=0.0, schema=SCHEMA, settings=CHOSEN.model_dump(mode="json"), digest="", structures="", versions={})


def structure(number: int) -> Frame:
    rng = np.random.default_rng(number)
    return Frame(
        numbers=rng.integers(1, 20, ATOMS),
        positions=rng.normal(size=(ATOMS, 3)),
        cell=np.eye(3),
        pbc=np.ones(3, bool),
        system="mil-53",
    )


def file(name: str) -> FileRef:
    """A file of its own: pickle stores equal texts once."""
    return replace(FILE, path=f"shards/{name}.h5", sha256=f"{abs(hash(name)):064x}")


def late_state(store: Store, number: int):
    """A campaign in a late round: everything is there that can be."""
    state = store.state()
    ends = {"time": 1.0, "timing": fabricated.TIMING}
    for round_ in range(number):
        state = apply(state, Gathered(time=1.0, round=round_, file=file(f"labels-r{round_:04d}"), count=STARTS))
        if round_ == number - 1:
            labels = [
                Label(
                    frame=structure(k), energy=0.0, forces=np.zeros((ATOMS, 3)), stress=None, split=Split.TRAIN, round=1
                )
                for k in range(STARTS)
            ]
            shard = store.put_labels("labels-x", labels)
            for row, label in enumerate(labels):
                place = {"round": round_, "item": row, "number": row, "file": shard, "row": row}
                known = {"identity": label.frame.identity, "system": "mil-53", "split": Split.TRAIN}
                state = apply(state, Labelled(**place, **known, **ends))
        state = apply(
            state,
            Trained(
                round=round_,
                version=round_ + 1,
                file=file(f"v{round_:04d}"),
                labels=1,
                fresh=SCORES,
                train=SCORES,
                validation=SCORES,
                factors=(),
                epochs=1,
                history=(),
                **ends,
            ),
        )
    for item in range(BATCHES):
        for leg in range(LEGS):
            shards = {kind: file(f"{kind}-r{number:04d}-b{item:04d}-l{leg:02d}") for kind in ("candidates", "walkers")}
            made = {
                "steps": 100,
                "steps_left": 100,
                "born": (1,) * SLOTS,
                "walker_steps": 6400,
                "stops": {},
                "count": 9,
            }
            state = apply(state, Walked(round=number, item=item, leg=leg, version=number, **shards, **made, **ends))
    return state


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    deep = tmp_path_factory.mktemp("project") / "lustre" / "scratch" / "project_0123456789" / "somebody" / ("long" * 10)
    return Store.create(deep / "campaign", settings_yaml="", first=BEGIN)


def tasks_of(store, rounds=ROUNDS):
    state = late_state(store, rounds)
    maker = TaskMaker(store, CHOSEN, [structure(0)], "12345-1234567890123456789")
    walk = maker.make(Request(Work.WALK, rounds, 3, LEGS), state).task
    select = maker.make(Request(Work.SELECT, rounds), state).task
    label = maker.make(Request(Work.LABEL, 0, 1), state).task
    state = apply(state, Selected(time=1.0, round=rounds, picks=FILE, count=STARTS, dropped={}, timing=None))
    for row in range(STARTS):
        place = {"round": rounds, "item": row, "number": row, "file": FILE, "row": row, "timing": fabricated.TIMING}
        known = {"identity": f"{row:016x}", "system": "mil-53", "split": Split.TRAIN}
        state = apply(state, Labelled(time=1.0, **place, **known))
    state = apply(state, Gathered(time=1.0, round=rounds, file=file("labels-new"), count=STARTS))
    train = maker.make(Request(Work.TRAIN, rounds, rounds + 1), state).task
    return [walk, select, label, train]


def results_of(store, walk):
    absolute = store.absolute(file("candidates-r0300-b0003-l00"))
    ends = {"status": Status.DONE, "reason": "", "timing": fabricated.TIMING, "remarks": (Remark(text="x" * 500),)}
    walked = records.WalkResult(
        task=walk.task,
        candidates=absolute,
        count=10**4,
        walkers=absolute,
        steps=1,
        steps_left=9,
        born=walk.born,
        stops={"uncertain": 9, "completed": 5},
        walker_steps=64,
        found={"mil-53": records.Found(count=10**4, mean_bound=0.3, cells=tuple(range(0, 32**3, 2)))},
        **ends,
    )
    selected = records.SelectResult(
        task="select-r0300-0000", picks=absolute, count=100, kept=300, saved=9, dropped={"duplicate": 3}, **ends
    )
    labelled = records.LabelResult(
        task="label-r0300-0001",
        energy=1.0,
        forces=np.random.default_rng(1).normal(size=(ATOMS, 3)),
        stress=np.ones(6),
        reference="r" * 16,
        **ends,
    )
    names = ("epoch", "loss", "energy_mae", "force_mae")
    epochs = fabricated.settings().training.epochs
    rows = np.random.default_rng(2).random((epochs // 2, len(names))).tolist()
    trained = records.TrainResult(
        task="train-v0301",
        file=absolute,
        fresh=SCORES,
        train=SCORES,
        validation=SCORES,
        factors=(made_up_factor("total", value=2.0, count=3),),
        epochs=epochs,
        history=tuple(dict(zip(names, row, strict=True)) for row in rows),
        **ends,
    )
    return [walked, selected, labelled, trained]


def test_tasks_do_not_grow_with_the_rounds(tmp_path):
    sizes = []
    for rounds in (20, 300):
        store = Store.create(tmp_path / f"{rounds:03d}", settings_yaml="", first=BEGIN)
        sizes.append([len(pickle.dumps(task)) for task in tasks_of(store, rounds)])
    assert sizes[1] == pytest.approx(sizes[0], abs=50)


def test_every_task_and_result_of_a_long_campaign_is_small(store):
    tasks = tasks_of(store)
    examples = [*tasks, *results_of(store, tasks[0])]
    assert {type(example) for example in examples} == {*typing.get_args(records.Task), *typing.get_args(records.Result)}
    sizes = {type(example).__name__: len(pickle.dumps(example)) for example in examples}
    assert max(sizes.values()) < LARGEST, sizes
