"""Whether the settings of a DFT reference fit the elements and electrons of the structures, before anything is computed."""

from collections.abc import Mapping, Sequence

from ase.data import chemical_symbols

from pipeline.frames import Frame
from pipeline.settings.dft import CP2KReference, ElectronicSettings, QuantumEspressoReference

KEY = "labels.reference"


def composition_problems(reference: ElectronicSettings, frames: Mapping[str, Sequence[Frame]]) -> list[str]:
    """One line per setting that no structure can be computed with, or that names an element nothing holds.

    Args:
        reference: of density-functional theory.
        frames: start structures by system name.
    """
    if not any(frames.values()):
        return []
    problems = _element_problems(reference, frames)
    if getattr(reference, "template", None) is None:  # else charge and spin are the template's affair
        for name, group in frames.items():
            totals = {int(frame.numbers.sum()) - reference.charge for frame in group}
            lines = [line for electrons in sorted(totals) if (line := _spin_problem(reference, name, electrons))]
            problems += lines[:1]  # one structure of a system is enough to say it
    return problems


def _spin_problem(reference: ElectronicSettings, system: str, electrons: int) -> str:
    """All electrons are counted: those inside a pseudopotential's core are always even in number."""
    counted = f"system {system} has {electrons} electrons at charge {reference.charge}"
    if electrons < 1:
        return f"{KEY}.charge: {counted}; lower it"
    multiplicity = reference.multiplicity
    if multiplicity is not None:
        if multiplicity - 1 > electrons:
            return f"{KEY}.multiplicity is {multiplicity}, but {counted}; lower it"
        if (electrons - multiplicity + 1) % 2:
            kind = "odd" if multiplicity % 2 else "even"
            other = "an even" if electrons % 2 else "an odd"
            return f"{KEY}.multiplicity is {multiplicity} ({kind}), but {counted}, which needs {other} one"
        return ""
    if electrons % 2 and not reference.magnetization and reference.smearing is None:
        return f"{KEY}.multiplicity: {counted}, an odd number, which cannot all be paired; give multiplicity (2: a doublet)"
    return ""


def _element_problems(reference: ElectronicSettings, frames: Mapping[str, Sequence[Frame]]) -> list[str]:
    present = {chemical_symbols[z] for group in frames.values() for frame in group for z in frame.numbers}
    named = {"magnetization": set(reference.magnetization)}
    match reference:
        case CP2KReference():
            named |= {"basis_of": set(reference.basis_of), "potential_of": set(reference.potential_of)}
        case QuantumEspressoReference():
            named |= {"pseudopotential_of": set(reference.pseudopotential_of)}
    return [
        f"{KEY}.{key}.{element}: no structure holds {element}; remove it or use one of {', '.join(sorted(present))}"
        for key, elements in named.items()
        for element in sorted(elements - present)
    ]
