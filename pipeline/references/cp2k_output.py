"""From what CP2K printed to a label, or to why there is none.

Known are the tables of CP2K 2022 to 2024 (``ATOMIC FORCES in [a.u.]``) and of 2025 on (``FORCES| Atomic forces
[hartree/bohr]``). Whatever is printed twice must agree: the energy and every force with the second file (``INTERFACE``), forces
with their sum, each stress component with the eigenvectors and eigenvalues, cell and positions with what was asked for, and the
start of the output with its end. So a torn, damaged or foreign output gives no label.
"""

import re
from dataclasses import dataclass

import numpy as np
from ase import units

from pipeline.frames import FloatArray
from pipeline.records import Cause
from pipeline.references.base import CalculationFailed, Properties
from pipeline.references.cp2k_geometry import Geometry
from pipeline.references.cp2k_input import DIGITS
from pipeline.references.cp2k_interface import read_interface
from pipeline.references.cp2k_tables import (
    NUMBER,
    bad_output,
    only,
    only_match,
    read_rows,
    real,
    reals,
    require_same_structure,
)

_HARTREE_PER_BOHR = float(units.Hartree / units.Bohr)
_STRESS_UNITS = {"GPa": float(units.GPa), "bar": float(units.bar)}
_ROUNDING = 10.0**-DIGITS
LOOSEST = 100.0
"""Largest difference of the last two energies, hartree, in units of EPS_SCF, for ten atoms."""
_VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
_ENERGY = re.compile(
    rf"^ ENERGY\| Total FORCE_EVAL \( QS \) energy \[(?:a\.u\.\]:|hartree\]) +({NUMBER}) *$", re.MULTILINE
)
_FORCES_2022 = re.compile(
    r"^ ATOMIC FORCES in \[a\.u\.\]\n\n # Atom +Kind +Element +X +Y +Z *\n((?: .*\n)*?)"
    rf" SUM OF ATOMIC FORCES +({NUMBER}) +({NUMBER}) +({NUMBER}) +{NUMBER} *\n",
    re.MULTILINE,
)
_FORCES_2025 = re.compile(
    r"^ FORCES\| Atomic forces \[hartree/bohr\]\n FORCES\| +Atom +x +y +z +\|f\| *\n((?: FORCES\| +\d+ .*\n)*?)"
    rf" FORCES\| Sum +({NUMBER}) +({NUMBER}) +({NUMBER}) *\n",
    re.MULTILINE,
)
_STRESS = re.compile(
    r"^ STRESS\| (?:Analytical|Numerical) stress tensor \[(\w+)\]\n STRESS\| +x +y +z *\n"
    rf" STRESS\| +x((?: +{NUMBER}){{3}}) *\n STRESS\| +y((?: +{NUMBER}){{3}}) *\n STRESS\| +z((?: +{NUMBER}){{3}}) *\n"
    rf" STRESS\| 1/3 Trace +({NUMBER}) *\n STRESS\| Determinant +({NUMBER}) *\n\n"
    r" STRESS\| Eigenvectors and eigenvalues of the (?:analytical|numerical) stress tensor \[(\w+)\]\n STRESS\| +1 +2 +3 *\n"
    rf" STRESS\| Eigenvalues((?: +{NUMBER}){{3}}) *\n"
    rf" STRESS\| +x((?: +{NUMBER}){{3}}) *\n STRESS\| +y((?: +{NUMBER}){{3}}) *\n STRESS\| +z((?: +{NUMBER}){{3}}) *\n",
    re.MULTILINE,
)
_COORDINATES = re.compile(
    r"^ MODULE QUICKSTEP: +ATOMIC COORDINATES IN ANGSTROM\n\n +Atom +Kind +Element.*\n\n?((?: +\d+ .*\n)*)",
    re.MULTILINE,
)
_MULLIKEN = re.compile(
    r"^ +Mulliken Population Analysis\n\n"
    r" # +Atom +Element +Kind +Atomic population( \(alpha,beta\))? +Net charge(?: +Spin moment)? *\n"
    r"((?: +\d+ .*\n)*) # Total charge(?: and spin)? +(.*)\n",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a calculation was to give."""

    geometry: Geometry
    stress: bool
    charges: bool
    magnetic_moments: bool


def read_properties(output: str, interface: str, wanted: Wanted) -> Properties:
    """The label that a finished calculation printed.

    Args:
        output: all that it printed.
        interface: the second file.
        wanted: the structure, and what is read.

    Raises:
        CalculationFailed: BAD_OUTPUT; NOT_CONVERGED where CP2K took a density for converged that is not.
    """
    geometry = wanted.geometry
    _check_run(output)
    valence = _check_start(output, geometry)
    energy = only(_ENERGY.findall(output), "energy")
    _check_convergence(output, real(energy), len(valence))
    forces = _read_forces(output, geometry)
    read_interface(interface).check(geometry, energy, forces)
    charges = moments = None
    if wanted.charges or wanted.magnetic_moments:
        charges, moments = _read_populations(output, geometry, valence)
    return Properties(
        energy=real(energy) * float(units.Hartree),
        forces=forces * _HARTREE_PER_BOHR,
        stress=_read_stress(output) if wanted.stress else None,
        charges=charges if wanted.charges else None,
        magnetic_moments=moments if wanted.magnetic_moments else None,
        program=_read_version(output),
    )


def _check_run(output: str) -> None:
    """One run, from its first to its last line, whose SCF converged."""
    for words in (
        "PROGRAM STARTED AT",
        "PROGRAM STARTED IN",
        "CP2K| version string:",
        "PROGRAM ENDED AT",
        "PROGRAM STOPPED IN",
    ):
        if (count := output.count(words)) != 1:
            raise bad_output(f"{words!r} stands in it {count} times")
    if "[ABORT]" in output or "*** SCF run converged in" not in output:
        raise bad_output("it does not say that the SCF cycle converged")
    processes = re.findall(r"PROGRAM PROCESS ID +(\S+)", output)
    ordered = output.index("PROGRAM STARTED AT") < output.index("PROGRAM ENDED AT")
    if not ordered or len(set(processes)) > 1 or len(processes) not in (0, 2):
        raise bad_output("its end is not of the run it begins with")


def _check_start(output: str, geometry: Geometry) -> FloatArray:
    """Atoms as they were asked for; returns (N,) charges of their cores, e."""
    table = only(_COORDINATES.findall(output), "table of coordinates")
    row = re.compile(rf" +(\d+) +\d+ ([A-Z][a-z]?) +\d+ +({NUMBER}) +({NUMBER}) +({NUMBER}) +({NUMBER}) +{NUMBER} *")
    symbols, numbers = read_rows(table, row, geometry, "coordinates")
    if re.findall(r" - Atoms: +(\d+)", output) != [str(len(symbols))]:
        raise bad_output("it counts another number of atoms")
    require_same_structure(symbols, numbers[:, :3], geometry, tolerance_A=2e-6)
    valence: FloatArray = numbers[:, 3]
    return valence


def _check_convergence(output: str, energy: float, n_atoms: int) -> None:
    """The last energy of the SCF cycle against that of the density it ended with.

    With mixed densities CP2K looks at the density matrix alone, which may stand still while the mixed density does not.
    """
    totals = re.findall(rf"^  Total energy: +({NUMBER}) *$", output, re.MULTILINE)
    convergence = re.search(rf"^ +eps_scf: +({NUMBER}) *$", output, re.MULTILINE)
    if not totals or convergence is None:
        raise bad_output("its SCF cycle is of an unknown format")
    if abs(real(totals[-1]) - energy) > LOOSEST * real(convergence[1]) * max(1.0, n_atoms / 10):
        raise CalculationFailed(
            Cause.NOT_CONVERGED,
            f"the SCF cycle of CP2K ended at {totals[-1]} hartree, but its density has an energy of {energy:.8f} hartree.",
            "Lower labels.reference.scf_convergence (EPS_SCF of a template).",
        )


def _read_forces(output: str, geometry: Geometry) -> FloatArray:
    """(N, 3) hartree/bohr."""
    old = _FORCES_2022.search(output) is not None
    match = only_match(_FORCES_2022 if old else _FORCES_2025, output, "table of forces")
    if old and _FORCES_2025.search(output):
        raise bad_output("table of forces: found in two formats")
    if old:
        row = re.compile(rf" +(\d+) +\d+ +([A-Z][a-z]?) +({NUMBER}) +({NUMBER}) +({NUMBER}) *")
        symbols, forces = read_rows(match[1], row, geometry, "forces")
        if tuple(symbols) != geometry.symbols:
            raise bad_output("its forces are of other elements than were asked for")
    else:
        row = re.compile(rf" FORCES\| +(\d+)() +({NUMBER}) +({NUMBER}) +({NUMBER}) +({NUMBER}) *")
        _, numbers = read_rows(match[1], row, geometry, "forces")
        forces, sizes = numbers[:, :3], numbers[:, 3]
        if (np.abs(np.linalg.norm(forces, axis=1) - sizes) > 2 * _ROUNDING * (1 + sizes)).any():
            raise bad_output("a force is not as large as it says")
    total = np.array([real(text) for text in match.groups()[1:4]])
    if (np.abs(forces.sum(axis=0) - total) > _ROUNDING * (len(forces) + 1)).any():
        raise bad_output("its forces do not sum to what it says")
    return forces


def _read_stress(output: str) -> FloatArray:
    """(6,) Voigt, eV/Å³. CP2K prints the negative of ASE's stress."""
    unit, *texts = only_match(_STRESS, output, "stress tensor").groups()
    x, y, z, trace, determinant, again, values, *vectors = texts
    if unit not in _STRESS_UNITS or unit != again:
        raise bad_output(f"its stress is in {unit} and {again}")
    sigma = np.array([reals(row) for row in (x, y, z)])
    eigenvectors = np.array([reals(row) for row in vectors])
    rebuilt = eigenvectors @ np.diag(reals(values)) @ eigenvectors.T
    scale = max(float(np.abs(sigma).max()), 1e-12)
    wrong = {
        "is not symmetric": np.abs(sigma - sigma.T).max() > 1e-9 * scale,
        "has another trace than it says": abs(np.trace(sigma) / 3 - real(trace)) > 1e-9 * scale,
        "has another determinant than it says": abs(np.linalg.det(sigma) - real(determinant)) > 1e-8 * scale**3,
        "is not what its eigenvalues and eigenvectors give": np.abs(rebuilt - sigma).max() > 1e-9 * scale,
    }
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise bad_output(f"its stress {what}")
    return -_STRESS_UNITS[unit] * np.array([sigma[i, j] for i, j in _VOIGT])


def _read_populations(output: str, geometry: Geometry, valence: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(N,) charges, e, and (N,) moments, μB: zeros without spin polarisation."""
    match = only_match(_MULLIKEN, output, "Mulliken analysis")
    spins = match[1] is not None
    columns = 4 if spins else 2
    row = re.compile(rf" +(\d+) +([A-Z][a-z]?) +\d+{rf' +({NUMBER})' * columns} *")
    symbols, numbers = read_rows(match[2], row, geometry, "populations")
    if tuple(symbols) != geometry.symbols or not re.fullmatch(rf"{NUMBER}(?: +{NUMBER}){{{columns - 1}}} *", match[3]):
        raise bad_output("its populations cannot be read")
    charges: FloatArray = numbers[:, -2] if spins else numbers[:, -1]
    electrons = numbers[:, 0] + numbers[:, 1] if spins else numbers[:, 0]
    moments: FloatArray = numbers[:, 3] if spins else np.zeros(len(numbers))
    consistent = [
        np.abs(numbers.sum(axis=0) - reals(match[3])).max() < 1e-6 * (len(numbers) + 1),
        np.abs(valence - electrons - charges).max() < 3e-6,
        not spins or np.abs(numbers[:, 0] - numbers[:, 1] - moments).max() < 3e-6,
    ]
    if not all(consistent):
        raise bad_output("its populations contradict themselves")
    return charges, moments


def _read_version(output: str) -> str:
    version = only(re.findall(r"CP2K\| version string: +CP2K version (\S+)", output), "version of CP2K")
    if any(other != version for other in re.findall(r"CP2K version (\S+), the CP2K developers group", output)):
        raise bad_output("it names two versions of CP2K")
    return f"CP2K {version}"
