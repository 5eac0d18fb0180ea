"""A user's own CP2K input: what of it a label keeps, and whether a structure fits it.

Shapes: N atoms. Units: Å.
"""

import hashlib
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
from ase.geometry import cellpar_to_cell
from ase.units import Bohr

from pipeline.errors import MissingFileError, SettingsError
from pipeline.frames import FloatArray, Frame
from pipeline.records import Cause
from pipeline.references.base import CalculationFailed
from pipeline.references.cp2k_geometry import AXES, Geometry, place
from pipeline.references.cp2k_tree import Section, numbers, read_tree, unquoted

_WITHOUT_KINDS = {"XTB", "DFTB", "AM1", "PM3", "PM6", "PM6-FM", "MNDO", "MNDOD", "PDG", "RM1", "PNNL"}
"""Quickstep methods that know their elements themselves."""
_ANGSTROM = {"ANGSTROM": 1.0, "BOHR": Bohr, "NM": 10.0, "PM": 0.01, "M": 1e10}
_DEGREES = {"DEG": 1.0, "RAD": 180 / np.pi}


def read_template(path: Path) -> Section:
    """A user's own input without what a label replaces: the structure, what moves it, and what was done to its forces.

    Of the structure, the names of the atoms' kinds stay (``&COORD``, one per line) where they are not those of elements.

    Raises:
        SettingsError: it cannot be read, has not one FORCE_EVAL, or computes otherwise than with Quickstep.
    """
    tree = read_tree(path)
    where = f"labels.reference.template: {path}"
    evaluations = tree.sections("FORCE_EVAL")
    if len(evaluations) != 1:
        raise SettingsError(f"{where}: {len(evaluations)} FORCE_EVAL sections.", "Give an input with one.")
    force_eval = evaluations[0]
    method = (force_eval.value("METHOD") or "QS").upper()
    if method not in ("QS", "QUICKSTEP"):
        raise SettingsError(f"{where}: METHOD is {method}.", "Give an input with METHOD QS.")
    if force_eval.find("DFT") is None:
        raise SettingsError(f"{where}: FORCE_EVAL has no DFT section.", "Give an input with METHOD QS.")
    if force_eval.find("DFT", "XC", "WF_CORRELATION") is not None:
        raise SettingsError(f"{where}: WF_CORRELATION is not supported.", "Give an input of a Kohn-Sham method.")
    # constraints and RESCALE_FORCES would change the forces, velocities the stress, a restart the coordinates
    tree.drop("MOTION", "EXT_RESTART")
    force_eval.drop("RESCALE_FORCES")
    subsys = force_eval.at("SUBSYS")
    labels = _labels(subsys)
    subsys.drop("COORD", "TOPOLOGY", "VELOCITY", "CORE_COORD", "CORE_VELOCITY")
    kinds = {kind.parameter.upper() for kind in subsys.sections("KIND")}
    if any(_element(subsys, label) != label.capitalize() and label.upper() in kinds for label in labels):
        subsys.items.append(Section("COORD", items=[*labels]))
    return tree


def own_files(tree: Section, base: Path | None) -> dict[str, Path]:
    """Values of ``…_FILE_NAME`` keywords that are files of the user's.

    Args:
        tree: an input.
        base: directory that relative names are looked for in; None: only names with a slash are paths, others CP2K's own.
    """
    found = {}
    for section in tree.walk():
        for line in section.items:
            if isinstance(line, str) and (value := _file_value(line)) is not None:
                name = unquoted(value)
                path = Path(name) if base is None else base / name
                if (base is not None or "/" in name) and path.is_file():
                    found[name] = path
    return found


def with_names(tree: Section, names: dict[str, str]) -> None:
    """Give files other names, in place."""
    for section in tree.walk():
        for number, line in enumerate(section.items):
            if isinstance(line, str) and (value := _file_value(line)) is not None and unquoted(value) in names:
                section.items[number] = f"{line.partition(' ')[0]} {names[unquoted(value)]}"


def reference_text(tree: Section) -> str:
    """A template as far as it is level of theory: no start of the SCF, no number of its steps, no names of files."""
    text = tree.text()
    for name in ("MAX_SCF", "SCF_GUESS", "WFN_RESTART_FILE_NAME", "RESTART_FILE_NAME", "PROJECT_NAME", "PROJECT"):
        text = re.sub(rf"^ *{name} .*\n", "", text, flags=re.MULTILINE | re.IGNORECASE)
    return text


def content_digest(path: Path) -> str:
    """What a file holds, wherever it lies.

    Raises:
        SettingsError: it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise MissingFileError(f"labels.reference: {path}: {error.strerror}.", "Correct the path.") from error


def place_in(tree: Section, frame: Frame) -> Geometry:
    """A frame in the cell it is computed in with a template: slabs and wires keep the template's box where they are free.

    Raises:
        CalculationFailed: BAD_INPUT: the template is for another periodicity, or its box cannot be read; BAD_GEOMETRY.
    """
    cell = tree.find("FORCE_EVAL", "SUBSYS", "CELL")
    periodic = "".join(axis for axis, on in zip(AXES, frame.pbc, strict=True) if on)
    for section in (cell, tree.find("FORCE_EVAL", "DFT", "POISSON")):
        if section is None or not periodic:
            continue
        said = section.value("PERIODIC") or "XYZ"
        if said.upper() not in ("XYZ", periodic):
            raise CalculationFailed(
                Cause.BAD_INPUT,
                f"the structure is periodic along {periodic}, but &{section.name} of the template says PERIODIC {said}.",
                "Give the structures the pbc that they are computed with (T T F for a slab), or correct "
                "labels.reference.template.",
            )
    if cell is None or periodic in ("", "XYZ"):
        return place(frame)
    return place(frame, _free_edges(cell, ~frame.pbc))


def kind_labels(tree: Section, geometry: Geometry) -> tuple[str, ...]:
    """(N) names of the atoms' kinds: elements, or those of the template's own ``&COORD`` where it has others.

    Raises:
        CalculationFailed: BAD_INPUT: the template says nothing of one of the elements, or its kinds are of other atoms.
    """
    subsys = tree.at("FORCE_EVAL", "SUBSYS")
    labels = _labels(subsys)
    if labels and tuple(_element(subsys, label) for label in labels) != geometry.symbols:
        raise CalculationFailed(
            Cause.BAD_INPUT,
            f"the template names kinds of its own in &COORD ({', '.join(dict.fromkeys(labels))}), but its {len(labels)} atoms "
            f"are not the {len(geometry.symbols)} of the structure, element by element.",
            "List the atoms of the structures in the same order in &COORD of labels.reference.template.",
        )
    if labels:
        return labels
    known = kinds_of(tree)
    missing = [element for element in geometry.elements if known is not None and element not in known]
    if missing:
        raise CalculationFailed(
            Cause.BAD_INPUT,
            f"the template has no &KIND {missing[0]}, which the structure holds.",
            f"Add &KIND {missing[0]} with its basis set and potential to labels.reference.template; where an element has "
            "several kinds, list the atoms of the structures with their kinds in its &COORD, in the same order.",
        )
    return geometry.symbols


def kinds_of(tree: Section) -> frozenset[str] | None:
    """Symbols of the elements that a template describes; None where it takes all.

    A kind of another name, such as Fe1, is one of them only where the template's own atoms name it: structures name elements.
    """
    force_eval = tree.at("FORCE_EVAL")
    if (force_eval.at("DFT", "QS").value("METHOD") or "GPW").upper() in _WITHOUT_KINDS:
        return None
    subsys = force_eval.at("SUBSYS")
    known = frozenset(word.capitalize() for kind in subsys.sections("KIND") for word in kind.parameter.split()[:1])
    return None if "Default" in known else known | {_element(subsys, label) for label in _labels(subsys)}


def _labels(subsys: Section) -> tuple[str, ...]:
    coord = subsys.find("COORD")
    words = [line.split()[0] for line in coord.items if isinstance(line, str)] if coord is not None else []
    return tuple(word for word in words if word.upper() not in ("UNIT", "SCALED"))


def _element(subsys: Section, label: str) -> str:
    """Of a kind: its ELEMENT; without one the letters of its name are it."""
    for kind in subsys.sections("KIND"):
        if kind.parameter.upper() == label.upper() and (element := kind.value("ELEMENT", "ELEMENT_SYMBOL")):
            return element.capitalize()
    return re.sub("[^A-Za-z].*", "", label).capitalize()


def _free_edges(cell: Section, free: npt.NDArray[np.bool_]) -> FloatArray:
    """(3,) Å: edges of a template's box.

    Raises:
        CalculationFailed: BAD_INPUT: there are none, or those where the structure is not periodic are not along their axes.
    """
    rows = [cell.value(name) for name in "ABC"]
    if (edges := cell.value("ABC")) is not None:
        angles = cell.value("ALPHA_BETA_GAMMA", "ANGLES") or "90 90 90"
        vectors = cellpar_to_cell([*numbers(edges, _ANGSTROM), *numbers(angles, _DEGREES)])
    else:
        vectors = np.array([numbers(row, _ANGSTROM) for row in rows if row is not None])
    diagonal = np.diagonal(vectors) if vectors.shape == (3, 3) else np.zeros(3)
    if (diagonal[free] <= 0).any() or np.abs((vectors - np.diag(diagonal))[free]).max() > 1e-6:
        raise CalculationFailed(
            Cause.BAD_INPUT,
            "the &CELL of the template has no vectors A, B, C (or ABC) that lie along x, y and z where the structure is not "
            "periodic.",
            "Give them in labels.reference.template.",
        )
    return diagonal


def _file_value(line: str) -> str | None:
    key, _, value = line.partition(" ")
    return value if key.upper().endswith("_FILE_NAME") else None
