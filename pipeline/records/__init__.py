"""Everything that crosses a process border: tasks in, results out.

Frozen records of scalars, strings, tuples, numpy arrays and settings; no calculators, no GPU tensors. Big arrays travel as
files named by path and sha256 (:class:`FileRef`). Every result names the task it answers and carries a status: an expected
failure is a value, not an exception.
"""

from pipeline.records.basics import FileRef, FrameRows, ModelRef, Remark, Status, Stopwatch, Timing
from pipeline.records.failures import Cause, Measure, Try
from pipeline.records.labelling import Label, LabelResult, LabelTask, Limits, Split
from pipeline.records.selecting import SelectResult, SelectTask
from pipeline.records.training import GateReport, GroupCoverage, GroupFactor, Quantity, Scores, TrainResult, TrainTask
from pipeline.records.walking import (
    BiasState,
    Candidate,
    Checked,
    Float32Array,
    Found,
    Hills,
    StopReason,
    WalkerState,
    WalkResult,
    WalkTask,
)

Task = WalkTask | SelectTask | LabelTask | TrainTask
Result = WalkResult | SelectResult | LabelResult | TrainResult

__all__ = [
    "BiasState",
    "Candidate",
    "Cause",
    "Checked",
    "FileRef",
    "Float32Array",
    "Found",
    "FrameRows",
    "GateReport",
    "GroupCoverage",
    "GroupFactor",
    "Hills",
    "Label",
    "LabelResult",
    "LabelTask",
    "Limits",
    "Measure",
    "ModelRef",
    "Quantity",
    "Remark",
    "Result",
    "Scores",
    "SelectResult",
    "SelectTask",
    "Split",
    "Status",
    "StopReason",
    "Stopwatch",
    "Task",
    "Timing",
    "TrainResult",
    "TrainTask",
    "Try",
    "WalkResult",
    "WalkTask",
    "WalkerState",
]
