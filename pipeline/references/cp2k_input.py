"""From settings and a structure to CP2K's input.

What the presets write beyond their settings (``preset``) is part of the level of theory: whoever changes it raises ``RECIPE``.
"""

import hashlib
import math
import re
from pathlib import Path

import numpy as np

from pipeline.errors import MissingFileError, SettingsError
from pipeline.frames import FloatArray
from pipeline.records import Cause
from pipeline.references.base import CalculationFailed
from pipeline.references.cp2k_geometry import AXES, Geometry
from pipeline.references.cp2k_scf import is_polarised, scf_section
from pipeline.references.cp2k_tree import Section, read_tree, unquoted
from pipeline.settings.dft import CP2KReference, KPoints

RECIPE = 1
PROJECT = "label"
INTERFACE = f"{PROJECT}.scine"
"""File in which CP2K prints energy, cell, coordinates and forces a second time."""
DIGITS = 12
"""Decimals of the forces, atomic units."""
D3_RANGE_A = 16.0
WRITE_EVERY = 5
"""SCF steps between two restart files: what a try that runs out of time has to do again."""
_WITHOUT_KINDS = {"XTB", "DFTB", "AM1", "PM3", "PM6", "PM6-FM", "MNDO", "MNDOD", "PDG", "RM1", "PNNL"}
"""Quickstep methods that know their elements themselves."""


def preset(settings: CP2KReference, geometry: Geometry, electrons: int) -> Section:
    """The input of a named preset, without the structure.

    Args:
        settings: with a preset.
        geometry: decides on k-points, Poisson solver and elements.
        electrons: all of the structure, those of the cores included: their parity is that of the valence.
    """
    dft = Section("DFT", items=[f"BASIS_SET_FILE_NAME {name}" for name in settings.basis_files])
    dft.items += [f"POTENTIAL_FILE_NAME {name}" for name in settings.potential_files]
    if settings.charge:
        dft.items.append(f"CHARGE {settings.charge}")
    if is_polarised(settings):
        dft.items += ["UKS T", *_multiplicity(settings, geometry, electrons)]
    dft.items += [
        Section("MGRID", items=[f"CUTOFF {settings.cutoff_Ry!r}", f"REL_CUTOFF {settings.rel_cutoff_Ry!r}"]),
        Section("QS", items=["METHOD GPW", f"EPS_DEFAULT {min(1e-12, 100 * settings.scf_convergence**2):.3e}"]),
        scf_section(settings),
        Section("POISSON", items=[f"PERIODIC {geometry.periodic}", f"PSOLVER {geometry.solver}"]),
        _exchange_correlation(settings),
    ]
    mesh = () if settings.kpoints is None else mesh_of(settings.kpoints, geometry)
    if settings.kpoints is not None and (max(mesh) > 1 or settings.kpoints.shifted):
        dft.items.append(_kpoints(settings.kpoints, mesh, geometry))
    kinds = [_kind(settings, element) for element in geometry.elements]
    force_eval = Section("FORCE_EVAL", items=["METHOD QS", dft, Section("SUBSYS", items=[*kinds])])
    return Section("", items=[Section("GLOBAL"), force_eval])


def read_template(path: Path) -> Section:
    """A user's own input without what a label replaces: the structure, what moves it, and what was done to its forces.

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
    force_eval.at("SUBSYS").drop("COORD", "TOPOLOGY", "VELOCITY", "CORE_COORD", "CORE_VELOCITY")
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
        for place, line in enumerate(section.items):
            if isinstance(line, str) and (value := _file_value(line)) is not None and unquoted(value) in names:
                section.items[place] = f"{line.partition(' ')[0]} {names[unquoted(value)]}"


def insert_structure(tree: Section, geometry: Geometry, *, template: bool) -> None:
    """Put a structure into an input, in place. Numbers keep all their digits.

    A molecule keeps the box of a template that has one (its Poisson solver was chosen for it) and is put in its middle.

    Raises:
        CalculationFailed: BAD_INPUT: the template says nothing of one of the elements.
    """
    force_eval = tree.at("FORCE_EVAL")
    subsys = force_eval.at("SUBSYS")
    if template:
        _require_kinds(tree, geometry)
    box = subsys.find("CELL")
    if geometry.periodic == "NONE" and template and box is not None:
        subsys.replace(Section("TOPOLOGY", items=[Section("CENTER_COORDINATES")]))
    else:
        vectors = [f"{name} {_digits(row)}" for name, row in zip("ABC", geometry.cell, strict=True)]
        cell = Section("CELL", items=[*vectors, f"PERIODIC {geometry.periodic}"])
        if box is not None:
            cell.items += box.sections("CELL_REF")
        elif template and geometry.periodic != "XYZ":
            items: list[Section | str] = [f"PERIODIC {geometry.periodic}", f"PSOLVER {geometry.solver}"]
            force_eval.at("DFT").replace(Section("POISSON", items=items))
        subsys.replace(cell)
    rows = zip(geometry.symbols, geometry.positions, strict=True)
    subsys.replace(Section("COORD", items=[f"{symbol} {_digits(row)}" for symbol, row in rows]))


def ask_for(tree: Section, *, forces: bool, stress: bool, populations: bool, project: str = PROJECT) -> None:
    """Make an input print what the label is read from, in place."""
    run = tree.at("GLOBAL")
    run.drop("PROJECT", "PROJECT_NAME", "RUN_TYPE", "PRINT_LEVEL", "IOLEVEL")
    run.items += [f"PROJECT_NAME {project}", f"RUN_TYPE {'ENERGY_FORCE' if forces else 'ENERGY'}", "PRINT_LEVEL MEDIUM"]
    force_eval = tree.at("FORCE_EVAL")
    shown = force_eval.at("PRINT")
    shown.drop("FORCES", "STRESS_TENSOR", "SCINE", "PROGRAM_RUN_INFO")
    if forces:
        shown.items += [
            Section("FORCES", "ON", items=[f"NDIGITS {DIGITS}"]),
            Section("SCINE", "ON", items=[f"FILENAME ={INTERFACE}"]),
        ]
    numerical = (force_eval.value("STRESS_TENSOR") or "").upper().startswith("NUM")
    if not stress:
        force_eval.drop("STRESS_TENSOR")
    else:
        shown.items.append(Section("STRESS_TENSOR", "ON"))
        if not numerical:
            force_eval.put("STRESS_TENSOR", "ANALYTICAL")
    force_eval.at("SUBSYS", "PRINT").replace(Section("ATOMIC_COORDINATES", "ON"))
    if populations:
        force_eval.at("DFT", "PRINT").replace(Section("MULLIKEN", "ON"))
    restart = force_eval.at("DFT", "SCF", "PRINT", "RESTART")
    restart.drop("FILENAME")
    each = restart.at("EACH")
    if each.value("QS_SCF") is None:
        each.put("QS_SCF", WRITE_EVERY)


def mesh_of(kpoints: KPoints, geometry: Geometry) -> tuple[int, ...]:
    """(3,) k-points along each reciprocal axis; one where the structure is not periodic."""
    if kpoints.mesh is not None:
        wanted = kpoints.mesh
    else:
        assert kpoints.spacing_per_A is not None  # the settings have one of the two
        lengths = 2 * np.pi * np.linalg.norm(np.linalg.inv(geometry.cell), axis=0)
        # a cell that repeats to the last digit gets the same mesh
        wanted = tuple(max(1, math.ceil(length / kpoints.spacing_per_A - 1e-9)) for length in lengths)
    return tuple(n if axis in geometry.periodic else 1 for n, axis in zip(wanted, AXES, strict=True))


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


def _multiplicity(settings: CP2KReference, geometry: Geometry, electrons: int) -> list[str]:
    """Fixed, or the one nearest to the starting moments that the number of electrons allows; with smearing it relaxes."""
    if settings.multiplicity is not None:
        return [f"MULTIPLICITY {settings.multiplicity}"]
    parity = (electrons - settings.charge) % 2
    moment = abs(sum(settings.magnetization.get(symbol, 0.0) for symbol in geometry.symbols))
    return [f"MULTIPLICITY {1 + parity + 2 * max(0, round((moment - parity) / 2))}"]


def _exchange_correlation(settings: CP2KReference) -> Section:
    xc = Section("XC", items=[Section("XC_FUNCTIONAL", "PBE")])
    if settings.preset == "pbe-d3":
        pair: list[Section | str] = [
            "TYPE DFTD3(BJ)",
            "REFERENCE_FUNCTIONAL PBE",
            "PARAMETER_FILE_NAME dftd3.dat",
            f"R_CUTOFF [angstrom] {D3_RANGE_A}",
        ]
        xc.items.append(
            Section("VDW_POTENTIAL", items=["POTENTIAL_TYPE PAIR_POTENTIAL", Section("PAIR_POTENTIAL", items=pair)])
        )
    return xc


def _kpoints(kpoints: KPoints, mesh: tuple[int, ...], geometry: Geometry) -> Section:
    """Around Γ, or half a step beside it, for even and odd numbers alike: Monkhorst and Pack have Γ for odd ones only."""
    half = [
        1 / (2 * n) if (n % 2 == 0) is not kpoints.shifted and axis in geometry.periodic else 0.0
        for n, axis in zip(mesh, AXES, strict=True)
    ]
    points = " ".join(map(str, mesh))
    # CP2K takes k and -k as one in this scheme only
    scheme = f"MACDONALD {points} {_digits(np.array(half))}" if any(half) else f"MONKHORST-PACK {points}"
    return Section("KPOINTS", items=[f"SCHEME {scheme}"])


def _kind(settings: CP2KReference, element: str) -> Section:
    basis = settings.basis_of.get(element, settings.basis)
    valence = re.search(r"-q\d+$", basis)
    potential = settings.potential_of.get(element, f"GTH-PBE{valence.group() if valence else ''}")
    kind = Section("KIND", element, items=[f"ELEMENT {element}", f"BASIS_SET {basis}", f"POTENTIAL {potential}"])
    if moment := settings.magnetization.get(element):
        kind.items.append(f"MAGNETIZATION {moment!r}")
    return kind


def kinds_of(tree: Section) -> frozenset[str] | None:
    """Symbols of the elements that a template describes; None where it takes all.

    A kind of another name, such as Fe1, is none of them: structures name elements alone.
    """
    force_eval = tree.at("FORCE_EVAL")
    if (force_eval.at("DFT", "QS").value("METHOD") or "GPW").upper() in _WITHOUT_KINDS:
        return None
    kinds = force_eval.at("SUBSYS").sections("KIND")
    known = frozenset(word.capitalize() for kind in kinds for word in kind.parameter.split()[:1])
    return None if "Default" in known else known


def _require_kinds(tree: Section, geometry: Geometry) -> None:
    known = kinds_of(tree)
    missing = [element for element in geometry.elements if known is not None and element not in known]
    if missing:
        raise CalculationFailed(
            Cause.BAD_INPUT,
            f"the template has no &KIND {missing[0]}, which the structure holds.",
            f"Add &KIND {missing[0]} with its basis set and potential to labels.reference.template.",
        )


def _file_value(line: str) -> str | None:
    key, _, value = line.partition(" ")
    return value if key.upper().endswith("_FILE_NAME") else None


def _digits(row: FloatArray) -> str:
    return " ".join(repr(float(x)) for x in row)
