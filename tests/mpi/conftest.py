"""MPI for the tests here: that it is there, and how programs of the tests are started on several ranks."""

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.settings.launch import LaunchSettings

AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
"""Containers run tests as root."""
ENVIRONMENT = {**AS_ROOT, "OMP_NUM_THREADS": "1", "OMPI_MCA_mpi_yield_when_idle": "1"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.mpi)


@pytest.fixture(scope="session", autouse=True)
def mpirun() -> str:
    """The launcher; without it tests are skipped, or fail where CI is set."""
    found = shutil.which("mpirun")
    if found is None:
        text = "mpirun not found: install the package openmpi-bin (Debian, Ubuntu)"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)
    return found


@pytest.fixture(scope="session")
def launch() -> LaunchSettings:
    """As a site on this machine would say."""
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "OMP_NUM_THREADS"}
    return LaunchSettings(mpi="mpirun -n {ranks} --bind-to none --oversubscribe", environment=environment)


@pytest.fixture(scope="session")
def on_ranks(mpirun: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[dict]]:
    """Runs ``rank_cases.py`` on some ranks, once; what each of them found."""

    @functools.cache
    def run(ranks: int) -> list[dict]:
        directory = tmp_path_factory.mktemp("ranks")
        command = [mpirun, "-n", str(ranks), "--bind-to", "none", "--oversubscribe", sys.executable, "-m", "mpi4py"]
        done = subprocess.run(
            [*command, Path(__file__).with_name("rank_cases.py"), directory],
            env={**os.environ, **ENVIRONMENT},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return [json.loads((directory / f"{rank}.json").read_text()) for rank in range(ranks)]

    return run
