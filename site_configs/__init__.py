"""Where tasks run: one file per kind of machine, each with ``make_config(run_dir, site) -> parsl.Config``, fresh each call."""

LABELS = ("walk", "label", "select", "train")
"""Executor labels that every site provides: one per kind of task."""
