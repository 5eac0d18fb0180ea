"""Threads of the driver process: for tests and small demonstrations."""

from pathlib import Path

from parsl.config import Config
from parsl.executors import ThreadPoolExecutor

from pipeline.settings.site import LocalThreadsSite


def make_config(run_dir: Path, site: LocalThreadsSite) -> Config:
    """A fresh configuration: one pool of threads per kind of task."""
    slots = {"walk": site.walk_slots, "label": site.label_slots, "select": 1, "train": 1}
    return Config(
        executors=[ThreadPoolExecutor(label=label, max_threads=count) for label, count in slots.items()],
        run_dir=str(run_dir),
        strategy="none",  # threads need no blocks to be started or ended
        initialize_logging=False,  # the driver's own log has what matters; parsl.log grows by megabytes
        usage_tracking=0,
    )
