"""CP2K and Quantum ESPRESSO for the tests here: that they are there, how they start, and structures that take them seconds."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from pipeline.frames import Frame
from pipeline.settings.launch import LaunchSettings

PROGRAMS = ("cp2k.psmp", "pw.x", "mpirun")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.dft)
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def programs() -> None:
    """They are installed; else tests are skipped, or fail where CI is set."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        text = (
            f"{', '.join(missing)} not found: install the packages cp2k, quantum-espresso, quantum-espresso-data and "
            "openmpi-bin (Debian, Ubuntu)"
        )
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)


@pytest.fixture(scope="session")
def launch() -> LaunchSettings:
    """One rank of one thread, or more ranks on shared cores: waiting ranks sleep; OpenMPI may run as root in containers."""
    return LaunchSettings(
        mpi="mpirun -n {ranks} --bind-to none --oversubscribe",
        ranks=1,
        threads=1,
        time_limit=120,
        environment={
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "OMPI_MCA_mpi_yield_when_idle": "1",
            "OMP_WAIT_POLICY": "passive",
        },
    )


@pytest.fixture(scope="session")
def silicon() -> Frame:
    """Two atoms of diamond, one moved, the cell sheared: no symmetry, forces of some eV/Å and all six stresses."""
    atoms = bulk("Si", "diamond", a=5.43)
    strained = np.array([[1.01, 0.0, 0.0], [0.02, 0.99, 0.0], [0.0, 0.01, 1.02]])
    atoms.set_cell(atoms.cell.array @ strained, scale_atoms=True)
    atoms.positions[1] += [0.12, -0.07, 0.04]
    return Frame.from_atoms(atoms, system="silicon")


@pytest.fixture(scope="session")
def water() -> Frame:
    """One bent and stretched molecule in a periodic box of 6 Å, without symmetry and off the middle of the grid."""
    positions = [[3.01, 3.02, 2.73], [3.03, 3.81, 3.34], [2.96, 2.24, 3.28]]
    return Frame.from_atoms(Atoms("OHH", positions=positions, cell=[6.0, 6.0, 6.0], pbc=True), system="water")


@pytest.fixture(scope="session")
def hydrogen() -> Frame:
    """A stretched H2 in a periodic box of 5 Å."""
    positions = [[2.51, 2.48, 2.10], [2.53, 2.52, 2.93]]
    return Frame.from_atoms(Atoms("HH", positions=positions, cell=[5.0, 5.0, 5.0], pbc=True), system="hydrogen")
