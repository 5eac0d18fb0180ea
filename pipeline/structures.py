"""Start structures: read from any format ASE knows, checked, with everything wrong with them said at once."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ase import Atoms
from ase.data import chemical_symbols
from ase.io import ParseError, read
from ase.io.formats import UnknownFileTypeError

from pipeline.errors import SettingsError, StructureError
from pipeline.frames import Frame, check_frame
from pipeline.references.build import build_reference, supported_elements
from pipeline.references.composition import composition_problems
from pipeline.references.cp2k import cp2k_problems
from pipeline.references.openmm import read_topology, topology_numbers
from pipeline.references.quantum_espresso import check_pseudopotentials
from pipeline.settings.campaign import CampaignSettings
from pipeline.settings.dft import CP2KReference, ElectronicSettings, QuantumEspressoReference
from pipeline.settings.labels import OpenMMReference, Reference
from pipeline.settings.systems import SystemSettings
from pipeline.settings.variables import VolumeVariable

Systems = dict[str, tuple[Frame, ...]]

_READ_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    AssertionError,
    EOFError,
    StopIteration,
    ImportError,
    ArithmeticError,
    ParseError,
    UnknownFileTypeError,
)
"""What ASE's readers raise on files they cannot read: each format has its own habits."""


def read_systems(settings: CampaignSettings, base: Path) -> Systems:
    """All start structures by system name, in the order of the campaign file.

    Args:
        settings: the campaign.
        base: the directory relative paths start from.

    Raises:
        StructureError: with every problem of every file, one per line.
    """
    frames, problems = collect_systems(settings.systems, base)
    problems += reference_problems(settings.labels.reference, frames, base)
    problems += weight_problems(settings, frames)
    problems += barostat_problems(settings, frames)
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        listing = "\n".join(f"  {line}" for line in problems)
        raise StructureError(f"structures: {count}\n{listing}", "Mend the files or the keys named above.")
    return frames


def collect_systems(systems: Sequence[SystemSettings], base: Path) -> tuple[Systems, list[str]]:
    """Read what can be read: frames by system name, and one line per problem."""
    found: Systems = {}
    problems: list[str] = []
    for index, system in enumerate(systems):
        frames = []
        for name in system.structures:
            where = f"systems[{index}].structures: {base / name}"
            try:
                frames += _read_file(system, base / name, where)
            except StructureError as error:
                problems.append(str(error))
        good = []
        for frame, where in frames:
            try:
                check_frame(frame, where=where)
                good.append(frame)
            except StructureError as error:
                problems.append(str(error))
        problems += _variable_problems(index, system, good)
        found[system.name] = tuple(good)
    return found, problems


def reference_problems(reference: Reference, frames: Systems, base: Path) -> list[str]:
    """Whether the reference can be built and can label these structures, as far as can be told without a calculation."""
    placed = with_absolute_reference(reference, base)
    try:
        build_reference(placed)
        known = supported_elements(placed)
        if isinstance(placed, QuantumEspressoReference):
            check_pseudopotentials(placed, {int(z) for group in frames.values() for f in group for z in f.numbers})
    except SettingsError as error:
        return [str(error)]
    if isinstance(placed, OpenMMReference):
        return list(_topology_problems(placed, frames))
    problems = list(_element_problems(placed, known, frames)) if known is not None else []
    if isinstance(placed, ElectronicSettings):
        problems += composition_problems(placed, frames)
    if isinstance(placed, CP2KReference) and not problems:
        problems += cp2k_problems(placed, frames)
    return problems


def weight_problems(settings: CampaignSettings, frames: Systems) -> list[str]:
    """Bias weights that silently change nothing, or switch the bias off: of absent elements, and where all are 0."""
    held = {name: {chemical_symbols[z] for frame in group for z in frame.numbers} for name, group in frames.items()}
    present = set().union(*held.values())
    bias = settings.walkers.bias
    weights = bias.species_weights
    problems = [
        f"walkers.bias.species_weights.{element}: no structure holds {element}; remove it or use one of "
        f"{', '.join(sorted(present))}"
        for element in weights
        if present and element not in present
    ]
    if not bias.may_act or bias.tau_stress > 0:
        return problems
    return problems + [
        f"walkers.bias.species_weights: {', '.join(sorted(own))} of system {name} all have weight 0, so no force there is "
        "biased; raise one, or set walkers.bias.tau to 0"
        for name, own in held.items()
        if own and all(weights.get(element, 1.0) == 0 for element in own)
    ]


def with_absolute_files(settings: CampaignSettings, base: Path) -> CampaignSettings:
    """The settings with the reference's files as absolute paths, so that any worker finds them."""
    reference = with_absolute_reference(settings.labels.reference, base)
    return settings.model_copy(update={"labels": settings.labels.model_copy(update={"reference": reference})})


def with_absolute_reference(reference: Reference, base: Path) -> Reference:
    """The reference with absolute paths; files that come with OpenMM or CP2K keep their names."""

    def placed(name: str) -> str:
        return str((base / name).resolve())

    def found(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(placed(name) if (base / name).is_file() else name for name in names)

    changes: dict[str, object] = {}
    match reference:
        case OpenMMReference():
            changes = {"topology": placed(reference.topology), "force_field": found(reference.force_field)}
        case CP2KReference():
            changes = {
                "basis_files": found(reference.basis_files),
                "potential_files": found(reference.potential_files),
            }
        case QuantumEspressoReference():
            changes = {"pseudopotentials": placed(reference.pseudopotentials)}
    template = getattr(reference, "template", None)
    if template is not None:
        changes["template"] = placed(template)
    return reference.model_copy(update=changes)


def _read_file(system: SystemSettings, path: Path, where: str) -> list[tuple[Frame, str]]:
    """The frames of one file, each with its place for messages.

    Raises:
        StructureError: the file is missing, unreadable or empty, the index is out of range, or it cannot be repeated.
    """
    if path.is_dir() or not path.exists():
        kind = "is a directory" if path.is_dir() else "there is no such file"
        raise StructureError(f"{where}: {kind}.", "Paths are relative to the campaign file.")
    if path.stat().st_size == 0:
        raise StructureError(f"{where}: the file is empty.", "Give a file with at least one structure.")
    images = _images(path, where)
    if not images:
        raise StructureError(f"{where}: the file holds no structure.", "Give a file with at least one structure.")
    picked = _pick(images, system.index, where)
    return [(_repeated(system, atoms, f"{where}, image {i}"), f"{where}, image {i}") for i, atoms in picked]


def _images(path: Path, where: str) -> list[Atoms]:
    try:
        images = read(path, ":")
    except KeyError as error:
        name = str(error.args[0]) if error.args else ""
        if re.fullmatch(r"[A-Z][a-z]{0,2}", name) and name not in chemical_symbols:
            raise StructureError(
                f"{where}: unknown element {name!r}.", "Use chemical symbols such as H, C, Al."
            ) from None
        raise StructureError(
            f"{where}: cannot be read: missing {error}.", "Check the file; extxyz is safest."
        ) from None
    except UnknownFileTypeError as error:
        raise StructureError(
            f"{where}: the format is not known ({error}).", "Name it after its format, e.g. .extxyz, .cif, POSCAR."
        ) from None
    except _READ_ERRORS as error:
        raise StructureError(
            f"{where}: cannot be read: {type(error).__name__}: {error}.", "Check the file; extxyz is safest."
        ) from None
    return images if isinstance(images, list) else [images]


def _pick(images: list[Atoms], index: str, where: str) -> list[tuple[int, Atoms]]:
    """The images an ASE index names, each with its number in the file."""
    numbered = list(enumerate(images))
    count = f"the file has {len(images)} structure{'s' if len(images) > 1 else ''}, counted from 0"
    if ":" not in index:
        if not -len(images) <= int(index) < len(images):
            raise StructureError(f"{where}: index {index} is out of range; {count}.", "Change index.")
        return [numbered[int(index)]]
    picked = numbered[slice(*(int(part) if part else None for part in index.split(":")))]
    if not picked:
        raise StructureError(f"{where}: index {index!r} picks no structure; {count}.", "Change index.")
    return picked


def _repeated(system: SystemSettings, atoms: Atoms, where: str) -> Frame:
    for axis, times in enumerate(system.repeat):
        if times > 1 and not atoms.pbc[axis]:
            raise StructureError(
                f"{where}: repeat is {list(system.repeat)} but the structure is not periodic along axis {axis}.",
                "Remove repeat or make the structure periodic.",
            )
    return Frame.from_atoms(atoms.repeat(system.repeat), system=system.name)


def _variable_problems(index: int, system: SystemSettings, frames: Sequence[Frame]) -> list[str]:
    if not frames:
        return []
    smallest = min(len(frame) for frame in frames)
    solid = all(frame.pbc.all() for frame in frames)
    problems = []
    for number, variable in enumerate(system.variables):
        where = f"systems[{index}].variables[{number}]"
        if isinstance(variable, VolumeVariable):
            if not solid:
                problems.append(
                    f"{where}: {variable.name!r} is the volume of the cell, but {system.name} is not periodic in three "
                    "directions; remove it or set pbc in the structure file"
                )
        elif max(variable.atoms) >= smallest:
            problems.append(
                f"{where}.atoms: {list(variable.atoms)} of {variable.name!r} is out of range; "
                f"{system.name} has {smallest} atoms, counted from 0"
            )
    return problems


def barostat_problems(settings: CampaignSettings, frames: Systems) -> list[str]:
    """Systems whose cell cannot move although a barostat is asked for."""
    if settings.walkers.barostat is None:
        return []
    flat = [name for name, group in frames.items() if not all(frame.pbc.all() for frame in group)]
    return [
        f"walkers.barostat: system {name} is not periodic in three directions, its cell cannot move; remove barostat, or walk "
        "this system in a campaign of its own"
        for name in flat
    ]


def _element_problems(reference: Reference, known: frozenset[int], frames: Systems) -> Iterator[str]:
    for name, group in frames.items():
        unknown = sorted({int(z) for frame in group for z in frame.numbers} - known)
        if unknown:
            yield (
                f"labels.reference.kind: {reference.kind} does not know {_symbols(unknown)} of system {name}; "
                f"it knows {_symbols(sorted(known))}; use another reference"
            )


def _topology_problems(reference: OpenMMReference, frames: Systems) -> Iterator[str]:
    numbers = [int(z) for z in topology_numbers(read_topology(reference))]
    for name, group in frames.items():
        other = next((frame for frame in group if list(frame.numbers) != numbers), None)
        if other is not None:
            yield (
                f"labels.reference.topology: {reference.topology}: its atoms are not those of system {name}: "
                f"{_formula(numbers)} in the topology, {_formula(list(other.numbers))} in the structure; "
                "both must list the same atoms in the same order"
            )
        if any(frame.pbc.any() for frame in group):
            yield f"labels.reference.kind: openmm labels molecules, but system {name} is periodic; set pbc to false"


def _symbols(numbers: Sequence[int]) -> str:
    return ", ".join(chemical_symbols[z] for z in numbers)


def _formula(numbers: Sequence[int]) -> str:
    return f"{Atoms(numbers=numbers).get_chemical_formula()} ({len(numbers)} atoms)"
