"""SLURM for the tests here: a private one, or with ``--site FILE`` the cluster of that site file."""

import copy
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import Cluster, Daemons, missing_commands, private_slurm
from figures import Figures

SMALL_SITE: dict[str, Any] = {
    "kind": "slurm",
    "python": sys.executable,
    "interface": "lo",
    "walk": {
        "partition": "gpu",
        "walltime": "00:10:00",
        "max_blocks": 2,
        "cores_per_node": 1,
        "gpus_per_node": 1,
    },
    "label": {"partition": "cpu", "walltime": "00:10:00", "max_blocks": 1, "cores_per_node": 2},
    "driver": {"partition": "cpu", "walltime": "00:10:00", "stop_before": "00:01:00", "cores": 1, "memory_GB": 1},
}
"""One worker with one GPU in each of two jobs for walkers, two workers in one job for labels."""


FIGURES = Figures()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FIGURES.rows:
        terminalreporter.section("faults")
        for line in FIGURES.table():
            terminalreporter.write_line(line)
        if path := os.environ.get("FARWALK_FAULTS_JSON"):
            FIGURES.save(Path(path))


@pytest.fixture
def figures() -> Figures:
    """Of the faults; a table of all ends the session, and a JSON file if FARWALK_FAULTS_JSON names one."""
    return FIGURES


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            item.add_marker(pytest.mark.slow)
            if config.getoption("--site") and "daemons" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason="breaks daemons: only on a private SLURM, without --site"))


@pytest.fixture(scope="session")
def _slurm(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Cluster, Daemons | None]]:
    given = pytestconfig.getoption("--site")
    if given is not None:
        with tempfile.TemporaryDirectory(prefix="farwalk-tests-", dir=Path.cwd()) as shared:
            yield Cluster(yaml.safe_load(given.read_text(encoding="utf-8")), Path(shared)), None
        return
    if missing := missing_commands():
        text = (
            f"{', '.join(missing)} not found: install the packages slurm-wlm and munge (Debian, Ubuntu), or give --site"
        )
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)
    with private_slurm() as daemons:
        scratch = {"scratch": str(daemons.scratch)} if daemons.own_disks else {}
        yield Cluster({**SMALL_SITE, **scratch}, tmp_path_factory.mktemp("shared")), daemons


@pytest.fixture(scope="session")
def cluster(_slurm: tuple[Cluster, Daemons | None]) -> Cluster:
    """A SLURM that commands find."""
    return _slurm[0]


@pytest.fixture
def daemons(_slurm: tuple[Cluster, Daemons | None]) -> Iterator[Daemons]:
    """The private SLURM, to break it; not on a user's cluster."""
    daemons = _slurm[1]
    assert daemons is not None
    yield daemons
    daemons.lift_limits()


@pytest.fixture
def site(cluster: Cluster) -> dict[str, Any]:
    """A ``site:`` section with small jobs, the test's own copy."""
    return copy.deepcopy(cluster.site)
