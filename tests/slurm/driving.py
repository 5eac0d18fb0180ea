"""Small campaigns on a cluster through the real command line, and what can be read of them from outside."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from ase.io import write
from cluster import wait_until
from small_campaign import settings, systems

from apps.slurm.names import job_prefix

HERE = Path(__file__).parent
COPPER = "copper.extxyz"

T = TypeVar("T")


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Settings with others over them, section by section."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict) and "kind" not in value
        result[key] = merged(result[key], value) if both else value
    return result


@dataclass(slots=True)
class Campaign:
    """A campaign file in a directory of its own, and the driver that a test starts, kills and starts again.

    Attributes:
        directory: of the file, on a disk the nodes share; the campaign's own is ``place``.
        process: the newest driver.
    """

    directory: Path
    place: Path
    process: subprocess.Popen[bytes] | None = None
    drivers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @classmethod
    def of_copper(
        cls, directory: Path, site: dict[str, Any], changes: dict[str, Any] | None = None, place: Path | None = None
    ) -> "Campaign":
        """Four copper atoms, effective-medium theory that :mod:`gated_emt` slows down, a tiny network.

        Args:
            directory: made here.
            site: the ``site`` section.
            changes: of other settings.
            place: campaign directory, if not below ``directory``.
        """
        directory.mkdir(parents=True)
        write(directory / COPPER, systems()["copper"][0].to_atoms(), format="extxyz")
        campaign = cls(directory, place or directory / "c")
        arguments = {"log": str(campaign.log), "gate": str(campaign.gate)}
        plain = settings("local_htex").model_dump(mode="json")
        plain["systems"][0]["structures"] = [COPPER]
        plain["labels"]["reference"] = {"kind": "ase", "calculator": "gated_emt.GatedEMT", "arguments": arguments}
        campaign.write(merged(plain, changes or {}), site)
        return campaign

    @property
    def file(self) -> Path:
        """The campaign file."""
        return self.directory / "campaign.yaml"

    @property
    def log(self) -> Path:
        """Of the reference calculations."""
        return self.directory / "calculations"

    @property
    def gate(self) -> Path:
        """Says how long a reference calculation takes."""
        return self.directory / "gate"

    @property
    def prefix(self) -> str:
        """Of the names of its jobs."""
        return job_prefix(self.place)

    @property
    def said(self) -> str:
        """What its drivers wrote to the terminal."""
        return (self.directory / "terminal").read_text(errors="replace")

    def write(self, plain: dict[str, Any], site: dict[str, Any] | None = None) -> None:
        """The campaign file; with another site."""
        if site is not None and site["kind"] == "slurm":
            lines = [site.get("worker_init", ""), f"export PYTHONPATH={HERE}${{PYTHONPATH:+:$PYTHONPATH}}"]
            site = {**site, "worker_init": "\n".join(filter(None, lines))}
        self.file.write_text(yaml.safe_dump({**plain, **({"site": site} if site else {})}))

    def slow_down(self, seconds: float) -> None:
        """Reference calculations take so long from now on, those under way too."""
        waiting = self.gate.with_suffix(".new")
        waiting.write_text(str(seconds))
        waiting.rename(self.gate)

    def start(self) -> None:
        """A driver."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        with (self.directory / "terminal").open("ab") as terminal:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "apps.cli", "run", str(self.file), "--dir", str(self.place)],
                stdout=terminal,
                stderr=terminal,
                stdin=subprocess.DEVNULL,
                env=environment,
                cwd=self.directory,
                start_new_session=True,
            )
        self.drivers.append(self.process)

    def kill(self) -> None:
        """The driver dies without a word."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def finish(self, timeout_s: float, code: int = 0) -> None:
        """Wait for the driver's end."""
        assert self.process is not None
        try:
            found = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not over after {timeout_s:g} s\n{self.said}\n{self.story()}") from None
        assert found == code, f"exit code {found}\n{self.said}\n{self.story()}"

    def run(self, timeout_s: float) -> None:
        """Start a driver and wait until it has done its work."""
        self.start()
        self.finish(timeout_s)

    def close(self) -> None:
        """No driver is left, whatever happened."""
        for process in self.drivers:
            if process.poll() is None:
                process.kill()
                process.wait(10)

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Events on disk, of one kind."""
        try:
            lines = (self.place / "events.jsonl").read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        events = [json.loads(line)["event"] for line in lines]
        return [event for event in events if kind in (None, event["kind"])]

    def story(self) -> str:
        """Its events in short, for the message of a test that fails."""
        keep = ("kind", "round", "item", "leg", "text", "remedy", "reason", "message")
        events = self.events()
        lines = [f"{e['time'] - events[0]['time']:7.1f} { ({k: e[k] for k in keep if e.get(k)}) }" for e in events]
        return "\n".join(lines[-60:])

    def wait_for(self, kind: str, count: int = 1, timeout_s: float = 90) -> list[dict[str, Any]]:
        """So many events of a kind, as soon as they are there."""

        def there() -> list[dict[str, Any]]:
            self.assert_driver_runs()
            found = self.events(kind)
            return found if len(found) >= count else []

        return self._wait(there, f"{count} events {kind}", timeout_s)

    def wait_for_notice(self, *words: str, since: float, timeout_s: float = 90) -> dict[str, Any]:
        """The first notice after an instant that has all of these words."""

        def there() -> dict[str, Any] | None:
            self.assert_driver_runs()
            for event in self.events("noticed"):
                if event["time"] >= since and all(word in event["text"] for word in words):
                    return event
            return None

        return self._wait(there, f"a notice of {' '.join(words)}", timeout_s)

    def _wait(self, happened: Callable[[], T | None], what: str, timeout_s: float) -> T:
        try:
            answer: T = wait_until(happened, what, timeout_s)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.story()}") from None
        return answer

    def assert_driver_runs(self) -> None:
        """It has not ended."""
        assert self.process is not None
        assert self.process.poll() is None, f"exit code {self.process.returncode}\n{self.said}\n{self.story()}"

    def calculations(self, word: str) -> Counter[str]:
        """How often each structure's calculation ``began`` or ``ended``."""
        return Counter(line.split()[1] for line in self._lines() if line.startswith(word))

    def at_work(self) -> dict[str, tuple[str, str, int]]:
        """Node, job and process of the calculations that began last and have not ended."""
        found = {}
        for line in self._lines():
            word, digest, node, job, pid = line.split()
            if word == "began":
                found[digest] = (node, job, int(pid))
            else:
                found.pop(digest, None)
        return found

    def _lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def assert_complete(self) -> None:
        """The budget is spent, every label counts once and was calculated once."""
        budget = yaml.safe_load(self.file.read_text())["labels"]["budget"]
        labelled = self.events("labelled")
        assert sorted(event["number"] for event in labelled) == list(range(budget)), self.story()
        ended = self.calculations("ended")
        assert len(ended) == budget
        again = {digest for digest, count in ended.items() if count > 1}
        assert not again, f"calculated again though finished: {again}"
        stopped = self.events("stopped")[-1]
        assert stopped["reason"] == "budget", stopped
