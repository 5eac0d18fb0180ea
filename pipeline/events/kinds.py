"""Kinds of tasks, and of ends."""

from enum import StrEnum


class Work(StrEnum):
    """Kinds of tasks."""

    WALK = "walk"
    SELECT = "select"
    LABEL = "label"
    TRAIN = "train"


class EndReason(StrEnum):
    """Why a campaign ended, or paused."""

    TARGET = "target"
    BUDGET = "budget"
    MAX_ROUNDS = "max_rounds"
    MAX_WALL = "max_wall_h"
    MAX_CPU = "max_cpu_h"
    MAX_GPU = "max_gpu_h"
    COVERAGE = "coverage"
    NOTHING_NEW = "nothing_new"
    LABELS_FAILED = "labels_failed"
    LABELS_PAUSED = "labels_paused"
    TASK_FAILED = "task_failed"
    INTERRUPTED = "interrupted"
