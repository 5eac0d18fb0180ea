"""From a reference's settings, or a user's template, and a frame to a pw.x input.

Symmetry is switched off in inputs made from settings: forces of a structure that is almost symmetric would be symmetrised,
and the k-points would depend on how exactly it is symmetric. (Time reversal is used.)
"""

import re
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
from ase.data import atomic_masses, atomic_numbers, chemical_symbols

from pipeline.errors import MissingFileError, SettingsError
from pipeline.frames import FloatArray, Frame
from pipeline.records import Cause
from pipeline.references.base import CalculationFailed
from pipeline.references.espresso_box import placed
from pipeline.references.espresso_pseudos import KEY, Family, Pseudopotential, read_family, settings_family
from pipeline.references.espresso_text import NAMELISTS, PwInput, Value, read_input
from pipeline.settings.dft import KPoints, QuantumEspressoReference
from pipeline.units import RYDBERG

PREFIX = "label"
SMEARING = {"fermi": "fermi-dirac", "gaussian": "gaussian", "cold": "marzari-vanderbilt"}
LARGEST_STARTING_FRACTION = 0.99
"""Larger starting magnetizations are moments instead of fractions of the valence electrons in newer versions of pw.x."""
WITH_STRESS = ("", "none", "makov-payne", "m-p", "mp")
"""Values of assume_isolated with which pw.x prints the stress of a periodic structure."""
_LATTICE = ("celldm", "a", "b", "c", "cosab", "cosac", "cosbc")
_LABEL = re.compile(r"([A-Za-z]{1,2}?)(?=[\d_-]|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """The structure as pw.x is given it.

    Attributes:
        labels: species of each atom, as the input calls it.
        md5: of the pseudopotential of each species, in the order of the input.
        cell: (3, 3) Å; positions: (N, 3) Å.
        stress: whether pw.x is asked for the stress.
        spin: whether the calculation is spin-polarised.
    """

    labels: tuple[str, ...]
    md5: tuple[str, ...]
    cell: FloatArray
    positions: FloatArray
    stress: bool
    spin: bool


def base_input(settings: QuantumEspressoReference) -> tuple[PwInput, Family]:
    """All of the input that no structure decides, and the pseudopotentials.

    Raises:
        SettingsError: the settings, the template or the pseudopotentials cannot be computed with.
    """
    if settings.template is None:
        family = settings_family(settings)
        return _settings_input(settings, family), family
    path = Path(settings.template)
    template = _read_template(path)
    named: dict[str, str] = {}
    for row in template.cards.get("ATOMIC_SPECIES", ("", ()))[1]:
        label, _, file = (*row.split(), "", "")[:3]
        if not (element := element_of(label)):
            raise SettingsError(f"{KEY}.template: {path}: {label} is no species.", "Name species Fe, Fe1 or Fe_up.")
        named.setdefault(element, file)
    here = {element: file for element, file in named.items() if (Path(settings.pseudopotentials) / file).is_file()}
    chosen = here | settings.pseudopotential_of
    family = read_family(settings.pseudopotentials, chosen, chosen_alone=False)
    family.choose(named)
    return template, family


def _settings_input(settings: QuantumEspressoReference, family: Family) -> PwInput:
    cutoff, density_cutoff = family.cutoffs_Ry(settings)
    system: dict[str, Value] = {"ecutwfc": cutoff, "ecutrho": density_cutoff, "nosym": True}
    if settings.charge:
        system["tot_charge"] = settings.charge
    if settings.smearing is not None:
        system |= {
            "occupations": "smearing",
            "smearing": SMEARING[settings.smearing.kind],
            "degauss": settings.smearing.width_eV / RYDBERG,
        }
    else:
        system["occupations"] = "fixed"
    if settings.multiplicity is not None:
        system |= {"nspin": 2, "tot_magnetization": settings.multiplicity - 1}
    elif settings.magnetization:
        if settings.smearing is None:
            raise SettingsError(
                f"{KEY}.magnetization without smearing leaves pw.x to guess how many electrons have which spin.",
                f"Give {KEY}.multiplicity, or {KEY}.smearing for a total moment that is free.",
            )
        system["nspin"] = 2
    if settings.dispersion == "d3":
        # Becke-Johnson damping, two-body terms alone, as other codes have it
        system |= {"vdw_corr": "grimme-d3", "dftd3_version": 4, "dftd3_threebody": False}
    empty = PwInput({name: {} for name in NAMELISTS}, {})
    return empty.with_values("system", system).with_values("electrons", {"electron_maxstep": settings.max_steps})


def frame_input(
    base: PwInput, settings: QuantumEspressoReference, family: Family, frame: Frame
) -> tuple[PwInput, Sent]:
    """The input of one structure, and the structure as it was written.

    A structure without periodic directions is put into a box of its own, see :func:`espresso_box.placed`.

    Raises:
        CalculationFailed: an element has no pseudopotential, or the template's species do not fit the structure.
    """
    elements = [chemical_symbols[number] for number in frame.numbers]
    try:
        members = family.choose(set(elements))
    except SettingsError as error:
        raise CalculationFailed(Cause.MISSING_FILE, error.message, error.remedy) from error
    cell, positions = placed(frame)
    stress = bool(frame.pbc.all()) and gives_stress(base, family)
    made = base
    if settings.template is None:
        species = {element: f"{atomic_masses[atomic_numbers[element]]:.4f}" for element in sorted(members)}
        labels = tuple(elements)
        made = _with_structure_settings(made, settings, frame, cell, members)
    else:
        species, labels = _template_species(base, elements)
    files = [family.members[element_of(label)] for label in species]
    for file in files:
        if not file.path.is_file():  # pw.x looks for one of that name elsewhere
            raise CalculationFailed(
                Cause.MISSING_FILE, f"{file.path} is not there.", f"Correct {KEY}.pseudopotentials."
            )
    rows = [f"{label} {species[label]} {file.path.name}" for label, file in zip(species, files, strict=True)]
    made = made.with_values(
        "control",
        {
            "calculation": "scf",
            "prefix": PREFIX,
            "outdir": "./",
            "pseudo_dir": str(family.directory),
            "tprnfor": True,
            "tstress": stress,
        },
    )
    made = made.with_values("system", {"ibrav": 0, "nat": len(frame), "ntyp": len(rows)})
    made = made.with_card("ATOMIC_SPECIES", "", rows)
    made = made.with_card("CELL_PARAMETERS", "angstrom", [_vector(row) for row in cell])
    made = made.with_card(
        "ATOMIC_POSITIONS",
        "angstrom",
        [f"{label} {_vector(row)}" for label, row in zip(labels, positions, strict=True)],
    )
    spin = made.number("system", "nspin") == 2
    md5 = tuple(file.md5 for file in files)
    return made, Sent(labels=labels, md5=md5, cell=cell, positions=positions, stress=stress, spin=spin)


def gives_stress(base: PwInput, family: Family) -> bool:
    """Whether fully periodic structures get a stress: pw.x has none where it isolates them, and a wrong one with GTH files."""
    periodic = base.value("system", "assume_isolated") in WITH_STRESS
    return periodic and all(member.gives_stress for member in family.members.values())


def mesh_of(kpoints: KPoints | None, cell: FloatArray, pbc: tuple[bool, ...]) -> tuple[int, int, int]:
    """Points along each reciprocal axis; one along those that are not periodic.

    Args:
        kpoints: the settings.
        cell: (3, 3) Å.
        pbc: periodic directions.
    """
    mesh = [1, 1, 1]
    if kpoints is not None:
        # columns of the inverse are the reciprocal vectors without 2π
        lengths = 2 * np.pi * np.linalg.norm(np.linalg.inv(cell), axis=0)
        for axis in range(3):
            if not pbc[axis]:
                continue
            if kpoints.mesh is not None:
                mesh[axis] = kpoints.mesh[axis]
            elif kpoints.spacing_per_A is not None:
                # a length that is a multiple of the spacing up to rounding needs no further point
                mesh[axis] = max(1, ceil(lengths[axis] / kpoints.spacing_per_A - 1e-6))
    return mesh[0], mesh[1], mesh[2]


def _with_structure_settings(
    made: PwInput,
    settings: QuantumEspressoReference,
    frame: Frame,
    cell: FloatArray,
    members: dict[str, Pseudopotential],
) -> PwInput:
    """What the settings say of every structure in terms of that structure: k-points, threshold, starting magnetization."""
    pbc = tuple(bool(direction) for direction in frame.pbc)
    mesh = mesh_of(settings.kpoints, cell, pbc)
    shifts = [int(settings.kpoints is not None and settings.kpoints.shifted and direction) for direction in pbc]
    if mesh == (1, 1, 1) and not any(shifts):
        made = made.with_card("K_POINTS", "gamma", [])
    else:
        made = made.with_card("K_POINTS", "automatic", [" ".join(str(number) for number in (*mesh, *shifts))])
    threshold = settings.scf_convergence_eV_per_atom * len(frame) / RYDBERG
    made = made.with_values("electrons", {"conv_thr": threshold})
    if not any(pbc):
        made = made.with_values("system", {"assume_isolated": "martyna-tuckerman"})
    for index, element in enumerate(sorted(members), start=1):
        if element in settings.magnetization:
            fraction = settings.magnetization[element] / members[element].valence
            limited = min(max(fraction, -LARGEST_STARTING_FRACTION), LARGEST_STARTING_FRACTION)
            made = made.with_values("system", {f"starting_magnetization({index})": limited})
    return made


def _read_template(path: Path) -> PwInput:
    """A user's input without what a structure decides.

    Raises:
        SettingsError: it is not there, or is no input of an SCF calculation whose result would be a label.
    """
    try:
        template = read_input(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise MissingFileError(
            f"{KEY}.template: {path} cannot be read ({error}).", f"Correct {KEY}.template."
        ) from None
    if "system" not in template.namelists:
        raise SettingsError(
            f"{KEY}.template: {path} has no &SYSTEM … / namelist.", "Give an input that pw.x runs as it is."
        )
    if template.number("system", "ecutwfc") is None:
        raise SettingsError(f"{KEY}.template: {path} has no ecutwfc in &SYSTEM.", "Give the cutoff there, Ry.")
    if template.value("electrons", "scf_must_converge") and not template.flag("electrons", "scf_must_converge"):
        raise SettingsError(
            f"{KEY}.template: {path} sets scf_must_converge to false: pw.x would then call anything converged.",
            "Remove scf_must_converge from the template.",
        )
    if template.value("system", "space_group"):
        raise SettingsError(
            f"{KEY}.template: {path} gives a space group, which other structures do not have.",
            "Remove space_group from the template.",
        )
    template = template.without("system", _LATTICE)
    # each label starts anew, with files in its own directory alone
    template = template.without("control", ["restart_mode", "wfcdir"]).without("electrons", ["startingpot"])
    cards = {name: card for name, card in template.cards.items() if name != "ATOMIC_VELOCITIES"}
    namelists = {name: template.namelists.get(name, {}) for name in NAMELISTS}
    return PwInput(namelists, cards)


def _template_species(template: PwInput, elements: list[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The template's species with their masses, in its order (indices such as those of starting_magnetization count them),
    and the species of each atom.

    Raises:
        CalculationFailed: an element has several species, and the structure is not the template's, atom for atom.
    """
    species: dict[str, str] = {}
    for row in template.cards.get("ATOMIC_SPECIES", ("", ()))[1]:
        label, mass, *_ = [*row.split(), "1.0"]
        species[label] = mass
    of_element: dict[str, list[str]] = {}
    for label in species:
        of_element.setdefault(element_of(label), []).append(label)
    for element in sorted(set(elements)):
        if element not in of_element:
            species[element] = f"{atomic_masses[atomic_numbers[element]]:.4f}"
            of_element[element] = [element]
    if all(len(of_element[element]) == 1 for element in elements):
        return species, tuple(of_element[element][0] for element in elements)
    rows = template.cards.get("ATOMIC_POSITIONS", ("", ()))[1]
    labels = tuple(row.split()[0] for row in rows)
    if [element_of(label) for label in labels] != elements:
        several = next(element for element in elements if len(of_element[element]) > 1)
        raise CalculationFailed(
            Cause.BAD_GEOMETRY,
            f"{KEY}.template has several species of {several} ({', '.join(of_element[several])}), and its atoms are not those "
            f"of the structure in the same order.",
            "Order the structure's atoms as in the template, or use one species per element there.",
        )
    return species, labels


def element_of(label: str) -> str:
    """The element of a species such as Fe, Fe1 or fe_up; empty where it names none."""
    match = _LABEL.match(label)
    symbol = match[1].capitalize() if match else ""
    return symbol if symbol in atomic_numbers else ""


def _vector(row: FloatArray) -> str:
    return " ".join(f"{x:.14f}" for x in row)
