"""From what pw.x wrote to a label, or to the reason why there is none.

pw.x writes its results twice: rounded in its output, in full in an XML file. Both must be of one run, of the structure that was
sent, converged, and must agree to the last printed digit; then the XML's numbers are the label. So a torn, mixed up or damaged
file of either kind gives none.
"""

import re
from collections.abc import Iterable, Sequence
from xml.etree import ElementTree

import numpy as np

from pipeline.frames import FloatArray
from pipeline.records import Cause
from pipeline.references.base import CalculationFailed, Properties
from pipeline.references.espresso_input import Sent
from pipeline.units import BOHR, HARTREE

PRINTED = 0.51e-8
"""Half a unit of the last printed digit of energy (Ry), forces (Ry/Bohr) and stress (Ry/Bohr³), and rounding."""
PRINTED_ALAT, PRINTED_AXIS = 0.51e-7, 0.51e-6
"""The same of positions and of lattice vectors, in units of the lattice parameter; that itself has four digits."""
PRINTED_LATTICE_BOHR = 0.51e-4
SENT_A = 1e-6
"""Å; what was sent and what pw.x understood differ by rounding, and by its value of the Bohr radius."""
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
_PROGRAM = re.compile(r"^ *Program PWSCF v\.?(\S+) starts on", re.MULTILINE)
_DONE = re.compile(r"^ *JOB DONE\.", re.MULTILINE)
_ENERGY = re.compile(r"^!+ +total energy +=(.*)Ry *$", re.MULTILINE)
_LATTICE = re.compile(r"^ *lattice parameter \(alat\) +=(.*)a\.u\. *$", re.MULTILINE)
_MOMENT = re.compile(r"atom:?\s+(\d+)\s.*?\bmagn[:=]\s*(\S+)")
_MD5 = re.compile(r"^ *MD5 check sum: *(\S+) *$", re.MULTILINE)
_CONVERGED = "convergence has been achieved"


def read_properties(output: str, schema: bytes, sent: Sent, *, moments: bool = False) -> Properties:
    """The label of a finished calculation.

    Args:
        output: what pw.x printed, from its first line on.
        schema: content of ``data-file-schema.xml``.
        sent: the structure, as the input gave it.
        moments: whether the magnetic moments of a spin-polarised calculation are wanted; only the printed output has them.

    Raises:
        CalculationFailed: BAD_OUTPUT, with what is wrong.
    """
    try:
        return _read(output, schema, sent, moments=moments)
    except (ValueError, LookupError, ElementTree.ParseError) as error:  # LookupError: a short line, an unknown encoding
        raise CalculationFailed(
            Cause.BAD_OUTPUT, f"pw.x says it is done, but its output is torn or contradicts itself: {error}."
        ) from error


def _read(output: str, schema: bytes, sent: Sent, *, moments: bool) -> Properties:
    version = _one(_PROGRAM, output, "Program PWSCF")
    _one(_DONE, output, "JOB DONE")
    if _CONVERGED not in output or "convergence NOT achieved" in output:
        raise ValueError("the printed output does not say that the SCF cycle converged")
    root = ElementTree.fromstring(schema)
    if not root.tag.endswith("}espresso") or root.find("closed") is None:
        raise ValueError("the XML file is not a whole one of pw.x")
    status = (root.findtext("status") or root.findtext("exit_status") or "").strip()
    if status != "0" or _text(root, "output/convergence_info/scf_conv/convergence_achieved").strip() != "true":
        raise ValueError(f"the XML file does not say that the SCF cycle converged (status {status or 'missing'})")
    for section in ("input", "output"):
        _check_structure(root, section, sent)
    _check_printed_structure(output, sent)
    if (read := tuple(_MD5.findall(output))) and read != sent.md5:
        # pw.x goes on with a file of the same name where it does not find the right one
        raise ValueError(f"pw.x read other pseudopotentials (md5 {', '.join(read)}) than were sent")
    energy = _numbers(_text(root, "output/total_energy/etot"), 1)[0]
    forces = _matrix(root, "output/forces", len(sent.labels))
    # "!" is of the last cycle where there are several (exact exchange)
    _agree([energy * 2], [float(_ENERGY.findall(output)[-1]) if _ENERGY.search(output) else np.nan], "energy")
    _agree(forces * 2, _printed_forces(output, len(sent.labels)), "forces")
    stress = None
    if sent.stress:
        tensor = _matrix(root, "output/stress", 3)
        printed = np.array([_floats(line.split()[:3], 3) for line in _rows(output, "total   stress", 3)])
        _agree(tensor * 2, printed, "stress")
        # pw.x counts it positive where the crystal would expand
        tensor = -(tensor + tensor.T) / 2 * HARTREE / BOHR**3
        stress = np.array([tensor[i, j] for i, j in VOIGT])
    return Properties(
        energy=float(energy * HARTREE),
        forces=forces * HARTREE / BOHR,
        stress=stress,
        magnetic_moments=_moments(output, len(sent.labels)) if moments and sent.spin else None,
        program=f"Quantum ESPRESSO {version}",
    )


def _check_structure(root: ElementTree.Element, section: str, sent: Sent) -> None:
    """That a section of the XML file is of the structure that was sent."""
    structure = root.find(f"{section}/atomic_structure")
    if structure is None:
        raise ValueError(f"the XML file has no structure in {section}")
    atoms = structure.findall("atomic_positions/atom")
    if structure.get("nat") != str(len(sent.labels)) or tuple(atom.get("name") for atom in atoms) != sent.labels:
        raise ValueError(f"the XML file's {section} has other atoms than were sent")
    positions = np.array([_numbers(atom.text, 3) for atom in atoms])
    cell = np.array([_numbers(_text(structure, f"cell/a{axis}"), 3) for axis in (1, 2, 3)])
    for name, found, expected in (("positions", positions, sent.positions), ("cell", cell, sent.cell)):
        if not (np.abs(found * BOHR - expected) <= SENT_A).all():
            raise ValueError(f"the XML file's {section} has another {name} than was sent")


def _check_printed_structure(output: str, sent: Sent) -> None:
    """That the printed output is of the structure that was sent, too."""
    lattice = float(_one(_LATTICE, output, "lattice parameter"))
    length = float(np.linalg.norm(sent.cell[0])) / BOHR
    if not abs(lattice - length) <= PRINTED_LATTICE_BOHR:
        raise ValueError("the printed output is of another cell than was sent")
    axes = [_parenthesis(line) for line in _rows(output, "crystal axes:", 3)]
    if not (np.abs(np.array(axes) - sent.cell / BOHR / length) <= PRINTED_AXIS).all():
        raise ValueError("the printed output is of another cell than was sent")
    rows = _rows(output, "positions (alat units)", len(sent.labels))
    if [row.split()[1] for row in rows] != list(sent.labels):
        raise ValueError("the printed output is of other atoms than were sent")
    positions = np.array([_parenthesis(row) for row in rows])
    if not (np.abs(positions - sent.positions / BOHR / length) <= PRINTED_ALAT).all():
        raise ValueError("the printed output is of other positions than were sent")


def _printed_forces(output: str, n_atoms: int) -> FloatArray:
    rows = _rows(output, "Forces acting on atoms", n_atoms)
    if not all("force =" in row for row in rows):
        raise ValueError("the printed forces are torn")
    return np.array([_floats(row.partition("force =")[2].split(), 3) for row in rows])


def _moments(output: str, n_atoms: int) -> FloatArray | None:
    """Moments inside spheres around the atoms, μB, as printed last; None where pw.x prints none."""
    parts = output.split("Magnetic moment per site")
    if len(parts) == 1:
        return None
    found = {int(number): float(moment) for number, moment in _MOMENT.findall(parts[-1])}
    if sorted(found) != list(range(1, n_atoms + 1)):
        raise ValueError("the printed magnetic moments are torn")
    return np.array([found[number] for number in sorted(found)])


def _one(pattern: re.Pattern[str], output: str, what: str) -> str:
    """What the only match of a pattern holds."""
    found = pattern.findall(output)
    if len(found) != 1:
        raise ValueError(f"{what} is there {len(found)} times instead of once")
    return str(found[0])


def _rows(output: str, heading: str, count: int) -> list[str]:
    """The lines under a heading that is there once, empty ones left out."""
    parts = output.split(heading)
    if len(parts) != 2:
        raise ValueError(f"'{heading}' is there {len(parts) - 1} times instead of once")
    rows = [line for line in parts[1].splitlines()[1:] if line.strip()][:count]
    if len(rows) != count:
        raise ValueError(f"there are {len(rows)} lines instead of {count} under '{heading}'")
    return rows


def _parenthesis(line: str) -> list[float]:
    """The numbers in the last parentheses of a line such as ``tau(   1) = (   0.0   0.0   0.0  )``."""
    return _floats(line.rpartition("(")[2].partition(")")[0].split(), 3)


def _text(element: ElementTree.Element, path: str) -> str:
    found = element.findall(path)
    if len(found) != 1 or not found[0].text:
        raise ValueError(f"the XML file has {path} {len(found)} times instead of once, or it is empty")
    return found[0].text


def _matrix(root: ElementTree.Element, path: str, rows: int) -> FloatArray:
    """A (rows, 3) matrix that Fortran wrote."""
    numbers = _numbers(_text(root, path), 3 * rows)
    return np.array(numbers).reshape(rows, 3)


def _numbers(text: str | None, count: int) -> list[float]:
    return _floats((text or "").split(), count)


def _floats(words: Sequence[str], count: int) -> list[float]:
    if len(words) != count:
        raise ValueError(f"{len(words)} numbers instead of {count}")
    return [float(word) for word in words]


def _agree(exact: Iterable[float] | FloatArray, printed: Iterable[float] | FloatArray, what: str) -> None:
    """That the XML's numbers are the printed ones, with more digits."""
    # written so that NaN does not agree with anything
    if not (np.abs(np.asarray(exact) - np.asarray(printed)) <= PRINTED).all():
        raise ValueError(f"the XML file and the printed output disagree on the {what}")
