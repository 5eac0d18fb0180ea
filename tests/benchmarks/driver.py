"""What the driver costs per task beyond Parsl itself, and how its memory grows over a long campaign.

python tests/benchmarks/driver.py [--smoke]; the last line is one JSON object.

Overhead: label tasks that take no time, 1,000 of them outstanding, (a) handed to Parsl and taken back, (b) as labels of a
campaign with the same executor: decided, handed out, recorded in shards and the event log, all on disk. Memory: a campaign in
rounds of 1,000 labels whose tasks are carried out at once in this process.
"""

import argparse
import cProfile
import json
import os
import pstats
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import no_work
import parsl
from parsl.app.app import python_app
from parsl.config import Config
from provenance import provenance

from pipeline.campaign import Campaign
from pipeline.events import Event, Labelled, Work
from pipeline.records import LabelTask, Result, Task
from pipeline.settings.campaign import CampaignSettings
from pipeline.steps import Notice
from site_configs import local_htex

OUTSTANDING = 1000
ROUND = 1000
"""Labels per round of the memory benchmark."""
WORKERS = 2
Send = Callable[[LabelTask], Future[Result]]


def settings(labels: int, *, initial: int, site: str = "inline") -> CampaignSettings:
    """A campaign of so many labels, the first ones in round 0, then rounds of 1,000."""
    return CampaignSettings.model_validate(
        {
            "name": "driver",
            "seed": 1,
            "systems": [{"name": "a", "structures": ["unused.xyz"]}],
            "labels": {"reference": {"kind": "emt"}, "budget": labels, "initial": initial},
            "walkers": {"count": ROUND // no_work.FOUND, "batch": 1, "segment_steps": 10, "temperatures_K": [300.0]},
            "selection": {"batch": ROUND, "growth": 1.0},
            "site": {"kind": site} | ({} if site == "inline" else {"label_slots": WORKERS}),
        }
    )


class Steps:
    """Labels go where they are sent, everything else is carried out at once.

    Args:
        send: hands a label out; None carries it out at once, too.
    """

    def __init__(self, send: Send | None = None) -> None:
        self._send = send

    def capacity(self, work: Work) -> int:
        """So many tasks are outstanding."""
        return OUTSTANDING

    def notices(self) -> tuple[Notice, ...]:
        """None."""
        return ()

    def submit(self, task: Task, priority: int = 0) -> Future[Result]:
        """Hand a task out."""
        if self._send is not None and isinstance(task, LabelTask):
            return self._send(task)
        future: Future[Result] = Future()
        future.set_result(no_work.carry_out(task))
        return future


@contextmanager
def executor() -> Iterator[Send]:
    """The label executor of the workstation site, warm."""
    site = settings(4, initial=4, site="local_htex").site
    here = str(Path(__file__).parent)  # workers import the tasks by name
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as directory:
        whole = local_htex.make_config(Path(directory), site, retry_handler=lambda error, record: 1.0, exports={})
        own = [one for one in whole.executors if one.label == "label"]
        kernel = parsl.load(
            Config(executors=own, run_dir=directory, strategy="none", initialize_logging=False, usage_tracking=0)
        )
        try:
            send = python_app(no_work.label, executors=["label"])
            parsl_alone(send, 100)
            yield send
        finally:
            kernel.cleanup()
            parsl.clear()


def parsl_alone(send: Send, count: int) -> float:
    """Seconds for so many label tasks with 1,000 outstanding in a loop that does nothing else."""
    task = LabelTask(
        task="label-r0000-0000",
        round=0,
        item=0,
        frame=no_work.frame(0),
        reference=settings(4, initial=4).labels.reference,
        scratch="/nowhere/scratch/farwalk-label-r0000-0000",
        threads=1,
    )
    done: SimpleQueue[Future[Result]] = SimpleQueue()
    began = time.perf_counter()
    for turn in range(count + OUTSTANDING):
        if turn >= OUTSTANDING:
            done.get().result()
        if turn < count:
            send(task).add_done_callback(done.put)
    return time.perf_counter() - began


def campaign_s(chosen: CampaignSettings, steps: Steps, directory: Path, on_label: Callable[[int], None]) -> float:
    """Seconds until the last label of a campaign is recorded; ``on_label`` is called with their number."""
    campaign = Campaign.create_or_open(chosen, {"a": (no_work.frame(0),)}, directory)
    count, last, began = 0, 0.0, time.perf_counter()

    def note(event: Event) -> None:
        nonlocal count, last
        if isinstance(event, Labelled):
            count, last = count + 1, time.perf_counter()
            on_label(count)

    campaign.run(steps, on_event=note)
    return last - began


def overhead(labels: int, repeats: int) -> dict[str, Any]:
    """Milliseconds per task of Parsl alone and of a campaign, in turn; the smallest of each, and their difference."""
    alone, whole = [], []
    with executor() as send:
        for _ in range(repeats):
            alone.append(1e3 * parsl_alone(send, labels) / labels)
            with tempfile.TemporaryDirectory() as directory:
                chosen = settings(labels, initial=labels)
                seconds = campaign_s(chosen, Steps(send), Path(directory) / "c", lambda count: None)
                whole.append(1e3 * seconds / labels)
    print(f"{labels} labels, {OUTSTANDING} outstanding, {WORKERS} workers: ms per task")
    print(f"  Parsl alone {[round(ms, 2) for ms in alone]}, campaign {[round(ms, 2) for ms in whole]}")
    return {"parsl_ms": alone, "campaign_ms": whole, "overhead_ms": min(whole) - min(alone)}


def own_time(labels: int, *, profile: bool = False) -> float:
    """Milliseconds per task of a campaign whose tasks are carried out at once: the driver alone."""
    chosen = settings(labels, initial=labels)
    profiler = cProfile.Profile()
    with tempfile.TemporaryDirectory() as directory:
        if profile:
            profiler.enable()
        seconds = campaign_s(chosen, Steps(), Path(directory) / "c", lambda count: None)
        profiler.disable()
    if profile:
        pstats.Stats(profiler).sort_stats("cumulative").print_stats(45)
    print(f"driver alone: {1e3 * seconds / labels:.3f} ms per task")
    return 1e3 * seconds / labels


def memory(labels: int, every: int) -> list[dict[str, float]]:
    """Resident memory, MB, each time so many more labels are there."""
    found: list[dict[str, float]] = []

    def look(count: int) -> None:
        if count % every == 0:
            found.append({"labels": count, "rss_MB": resident_MB()})
            print(f"  {count:6d} labels: {found[-1]['rss_MB']:7.1f} MB")

    with tempfile.TemporaryDirectory() as directory:
        campaign_s(settings(labels, initial=ROUND), Steps(), Path(directory) / "c", look)
    return found


def resident_MB() -> float:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    """Run, print a table, and end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small and quick, for CI")
    parser.add_argument("--profile", action="store_true", help="only the driver alone, with a profile")
    options = parser.parse_args()
    if options.profile:
        own_time(5000, profile=True)
        return
    labels, long, every, repeats = (1000, 2000, 1000, 1) if options.smoke else (5000, 50_000, 10_000, 3)
    figures = {"own_ms": own_time(labels), **overhead(labels, repeats), "memory": memory(long, every)}
    print(f"overhead of the driver: {figures['overhead_ms']:.2f} ms per task")
    print(json.dumps({"benchmark": "driver", "smoke": options.smoke, **figures, **provenance()}))


if __name__ == "__main__":
    main()
