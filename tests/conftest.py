"""Options of the test suite."""

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--site",
        type=Path,
        help="run tests/slurm on the cluster of this site file, not on a private SLURM; start on a disk its nodes share",
    )
