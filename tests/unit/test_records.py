"""Everything that crosses a process border survives it."""

import dataclasses
import inspect
import pickle
import typing
from pathlib import Path

import dill
import fabricated
import numpy as np
import pytest
from test_events import EXAMPLES, SCORES
from test_shards import labels, same, walker

import pipeline.errors
from pipeline import records
from pipeline.records import FileRef, FrameRows, LabelTask, ModelRef, SelectTask, TrainTask, WalkTask
from pipeline.shards import write_labels
from pipeline.uncertainty.calibration import made_up_factor

MODEL = ModelRef(version=1, file=FileRef(path="/x.pt", sha256="0" * 64))
SETTINGS = fabricated.settings()

WALK = WalkTask(
    task="walk-r0001-0000",
    round=1,
    item=0,
    leg=1,
    model=MODEL,
    settings=SETTINGS.walkers,
    temperatures_K=(300.0, 500.0),
    pressures_MPa=(0.0,) * len((300.0, 500.0)),
    variables={},
    starts=MODEL.file,
    resume=MODEL.file,
    steps=10,
    enough=3,
    born=(1, 2),
    seconds=600.0,
    output="/scratch/w",
    seed=2**62,
    threads=1,
)
LABEL = LabelTask(
    task="label-r0000-0001",
    round=0,
    item=1,
    frame=fabricated.frame(),
    reference=SETTINGS.labels.reference,
    scratch="/scratch",
    threads=1,
)
SELECT = SelectTask(
    unlearned=(),
    sigma=0.01,
    task="select-r0001",
    round=1,
    model=MODEL,
    settings=SETTINGS.selection,
    candidates=(MODEL.file,),
    labels=(MODEL.file,),
    pool=FrameRows(file=MODEL.file, rows=(3, 1)),
    waiting=1,
    in_flight=(FrameRows(file=MODEL.file, rows=(0,)),),
    count=3,
    keep=9,
    output="/scratch/s",
    seed=1,
    threads=1,
)
TRAIN = TrainTask(
    task="train-v0001",
    version=1,
    parent=MODEL,
    labels=(MODEL.file,),
    fresh=("a", "b"),
    potential=SETTINGS.potential,
    uncertainty=SETTINGS.uncertainty,
    settings=SETTINGS.training,
    output="/out",
    progress="/progress",
    seed=1,
    threads=1,
    walkers=SETTINGS.walkers,
)


@pytest.fixture
def examples(tmp_path):
    starts = write_labels(tmp_path / "starts.h5", labels()[:1])
    walk = dataclasses.replace(WALK, starts=starts, resume=None, output=str(tmp_path / "w"))
    walked = fabricated.walk(walk)
    selected = records.SelectResult(
        task="s",
        status=records.Status.DONE,
        reason="",
        picks=walked.candidates,
        count=2,
        kept=5,
        saved=1,
        dropped={"known": 1},
        timing=fabricated.TIMING,
    )
    trained = records.TrainResult(
        task="t",
        status=records.Status.DONE,
        reason="",
        file=MODEL.file,
        fresh=None,
        train=SCORES,
        validation=SCORES,
        factors=(made_up_factor("total", value=2.0, count=3),),
        epochs=3,
        history=({"epoch": 1.0},),
        timing=fabricated.TIMING,
    )
    labelled = fabricated.label(LABEL)
    failed = fabricated.failed_label(LABEL)
    return [WALK, LABEL, SELECT, TRAIN, walker(3, 2), walked, selected, trained, labelled, failed, *labels(), *EXAMPLES]


@pytest.mark.parametrize("how", [pickle, dill])
def test_records_survive_pickling_bit_for_bit(examples, how):
    for example in examples:
        assert same(how.loads(how.dumps(example)), example)


def test_there_is_an_example_of_every_task_and_result(examples):
    kinds = {type(example) for example in examples}
    assert kinds >= {*typing.get_args(records.Task), *typing.get_args(records.Result)}


@pytest.mark.parametrize("how", [pickle, dill])
def test_every_exception_survives_pickling(how):
    classes = [
        cls
        for _, cls in inspect.getmembers(pipeline.errors, inspect.isclass)
        if issubclass(cls, pipeline.errors.PipelineError)
    ]
    assert len(classes) >= 8
    for cls in classes:
        error = cls("what is wrong", "what to do")
        back = how.loads(how.dumps(error))
        assert type(back) is cls
        assert (back.message, back.remedy, str(back)) == ("what is wrong", "what to do", "what is wrong what to do")


def test_records_are_frozen_and_hold_no_calculators_or_tensors(examples):
    for example in examples:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(example, dataclasses.fields(example)[0].name, "other")
    allowed = (str, int, float, bool, tuple, dict, list, np.ndarray, type(None), Path)

    def walk_through(value):
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                walk_through(getattr(value, field.name))
        elif isinstance(value, tuple | list):
            for item in value:
                walk_through(item)
        elif not hasattr(value, "model_dump"):
            assert isinstance(value, allowed), type(value)

    for example in examples:
        walk_through(example)
