"""From settings and a structure to CP2K's input.

What the presets write beyond their settings (``preset``) is part of the level of theory: whoever changes it raises ``RECIPE``.
"""

import math
import re

import numpy as np

from pipeline.frames import FloatArray
from pipeline.references.cp2k_geometry import AXES, Geometry
from pipeline.references.cp2k_scf import is_polarised, scf_section
from pipeline.references.cp2k_template import kind_labels
from pipeline.references.cp2k_tree import Section
from pipeline.settings.dft import CP2KReference, KPoints

RECIPE = 2
PROJECT = "label"
INTERFACE = f"{PROJECT}.scine"
"""File in which CP2K prints energy, cell, coordinates and forces a second time."""
DIGITS = 12
"""Decimals of the forces, atomic units."""
D3_RANGE_A = 16.0
WRITE_EVERY = 5
"""SCF steps between two restart files: what a try that runs out of time has to do again."""
_GRIDS = {"plain": (), "smooth": ("XC_SMOOTH_RHO NN50", "XC_DERIV NN50_SMOOTH"), "fine": ("USE_FINER_GRID T",)}
"""What the settings' ``xc_grid`` is for CP2K."""


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


def insert_structure(tree: Section, geometry: Geometry, *, template: bool) -> None:
    """Put a structure into an input, in place. Numbers keep all their digits.

    A molecule keeps the box of a template that has one (its Poisson solver was chosen for it) and is put in its middle. A
    template's own Poisson solver stays; where it has none, slabs and wires get one that fits.

    Raises:
        CalculationFailed: BAD_INPUT: the template says nothing of one of the elements.
    """
    force_eval = tree.at("FORCE_EVAL")
    subsys = force_eval.at("SUBSYS")
    labels = kind_labels(tree, geometry) if template else geometry.symbols
    box = subsys.find("CELL")
    if geometry.periodic == "NONE" and template and box is not None:
        subsys.replace(Section("TOPOLOGY", items=[Section("CENTER_COORDINATES")]))
    else:
        vectors = [f"{name} {_digits(row)}" for name, row in zip("ABC", geometry.cell, strict=True)]
        cell = Section("CELL", items=[*vectors, f"PERIODIC {geometry.periodic}"])
        if box is not None:
            cell.items += box.sections("CELL_REF")
        has_solver = box is not None and force_eval.find("DFT", "POISSON") is not None
        if template and geometry.periodic != "XYZ" and not has_solver:
            items: list[Section | str] = [f"PERIODIC {geometry.periodic}", f"PSOLVER {geometry.solver}"]
            force_eval.at("DFT").replace(Section("POISSON", items=items))
        subsys.replace(cell)
    rows = zip(labels, geometry.positions, strict=True)
    subsys.replace(Section("COORD", items=[f"{label} {_digits(row)}" for label, row in rows]))


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


def _multiplicity(settings: CP2KReference, geometry: Geometry, electrons: int) -> list[str]:
    """Fixed, or the nearest to the starting moments that the number of electrons allows.

    With smearing it is where the SCF starts, from where the moment relaxes: the next larger one, since without a moment it
    would stay in a state without moments.
    """
    if settings.multiplicity is not None:
        return [f"MULTIPLICITY {settings.multiplicity}"]
    parity = (electrons - settings.charge) % 2
    moment = abs(sum(settings.magnetization.get(symbol, 0.0) for symbol in geometry.symbols))
    pairs = (moment - parity) / 2
    pairs = math.floor(pairs + 0.5) if settings.smearing is None else math.ceil(pairs - 1e-9)
    return [f"MULTIPLICITY {1 + parity + 2 * max(0, pairs)}"]


def _exchange_correlation(settings: CP2KReference) -> Section:
    xc = Section("XC", items=[Section("XC_FUNCTIONAL", "PBE")])
    if lines := _GRIDS[settings.xc_grid]:
        xc.items.append(Section("XC_GRID", items=[*lines]))
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


def _digits(row: FloatArray) -> str:
    return " ".join(repr(float(x)) for x in row)
