"""A directory of pseudopotentials as a family: one file per element, and the cutoffs it needs."""

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ase.data import atomic_numbers, chemical_symbols

from pipeline.errors import MissingFileError, SettingsError
from pipeline.settings.dft import QuantumEspressoReference

KEY = "labels.reference"
HEADER_BYTES = 200_000
"""The header of a UPF file comes after a human readable section that may be long."""
NORM_CONSERVING_DUAL, ULTRASOFT_DUAL = 4.0, 8.0
"""Density cutoff over wave function cutoff where nothing else is said; 4 is exact for norm-conserving ones."""
_NAMED = re.compile(r"([A-Za-z]{1,2})[._-]")
_ATTRIBUTE = r"""\b{}\s*=\s*["']\s*([^"']*?)\s*["']"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pseudopotential:
    """One file.

    Attributes:
        element: chemical symbol.
        path: absolute.
        norm_conserving: whether a density cutoff of four times that of wave functions is enough.
        valence: electrons it leaves to the calculation.
        cutoff_Ry, density_cutoff_Ry: recommended ones; None: it says nothing.
    """

    element: str
    path: Path
    norm_conserving: bool
    valence: float
    cutoff_Ry: float | None
    density_cutoff_Ry: float | None

    @property
    def gives_stress(self) -> bool:
        """Not with GTH files: pw.x 6.7 gives shear components that are far from the derivative of its own energy (sheared Si2:
        3.8 GPa instead of 6.6; with UPF files both are 6.59)."""
        return self.path.suffix.lower() != ".gth"

    @property
    def sha256(self) -> str:
        """Of the file's bytes."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    @property
    def md5(self) -> str:
        """Of the file's bytes, as pw.x prints it."""
        return hashlib.md5(self.path.read_bytes(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The pseudopotentials of a reference.

    Attributes:
        directory: absolute.
        members: element -> its file.
        ambiguous: element -> names of files among which the settings do not choose.
    """

    directory: Path
    members: Mapping[str, Pseudopotential]
    ambiguous: Mapping[str, tuple[str, ...]]

    @property
    def elements(self) -> frozenset[str]:
        """All that have a file."""
        return frozenset(self.members) | frozenset(self.ambiguous)

    def choose(self, elements: Collection[str]) -> dict[str, Pseudopotential]:
        """The files of some elements.

        Raises:
            SettingsError: an element has none, or several.
        """
        for element in sorted(elements):
            if element in self.ambiguous:
                files = ", ".join(self.ambiguous[element])
                raise SettingsError(
                    f"{KEY}.pseudopotentials: {self.directory} has several files for {element}: {files}.",
                    f"Name one file for each element of the campaign in {KEY}.pseudopotential_of, e.g. "
                    f"{{{element}: {self.ambiguous[element][0]}}}.",
                )
            if element not in self.members:
                raise SettingsError(
                    f"{KEY}.pseudopotentials: there is no file for {element} (there are {', '.join(sorted(self.elements))}).",
                    f"Name one in {KEY}.pseudopotential_of, or put it into {self.directory}.",
                )
        return {element: self.members[element] for element in elements}

    def cutoffs_Ry(self, settings: QuantumEspressoReference) -> tuple[float, float]:
        """Cutoffs of wave functions and of the density, Ry: those of the settings, else the largest recommended ones.

        They are of the whole family, not of a structure's elements: labels of all compositions are then of one level.
        Where the settings give the first alone, the second is the largest that a file recommends, or its multiple of the first.

        Raises:
            SettingsError: nothing says how large they must be.
        """
        cutoff = settings.cutoff_Ry or self._recommended_Ry()
        if settings.density_cutoff_Ry is not None:
            return cutoff, settings.density_cutoff_Ry
        density = [NORM_CONSERVING_DUAL * cutoff]
        for member in self.members.values():
            dual = NORM_CONSERVING_DUAL if member.norm_conserving else ULTRASOFT_DUAL
            density.append(member.density_cutoff_Ry or dual * cutoff)
        return cutoff, max(density)

    def _recommended_Ry(self) -> float:
        silent = sorted(member.path.name for member in self.members.values() if member.cutoff_Ry is None)
        if silent or not self.members:
            names = ", ".join(silent[:5]) + (" and others" if len(silent) > 5 else "")
            why = f"{names} in {self.directory} recommend no cutoff" if silent else "no pseudopotential is chosen"
            raise SettingsError(
                f"{KEY}.cutoff_Ry is not given, and {why}.",
                f"Give {KEY}.cutoff_Ry (Ry; GTH pseudopotentials of O, N and F need 200 or more), or a cutoffs.json there "
                f"for all its elements.",
            )
        return max(member.cutoff_Ry or 0.0 for member in self.members.values())


def read_family(directory_name: str, chosen: Mapping[str, str], *, chosen_alone: bool) -> Family:
    """The family of a directory: files that are chosen, that its table of cutoffs names, or that are alone of their element.

    Args:
        directory_name: the directory.
        chosen: element -> name of its file.
        chosen_alone: leave out all other elements.

    Raises:
        SettingsError: the directory or a named file is not there, is of another element, or is not what the table says.
    """
    directory = Path(directory_name).resolve()
    if not directory.is_dir():
        raise SettingsError(
            f"{KEY}.pseudopotentials: {directory} is not a directory.",
            "Name a directory with one UPF file per element, e.g. an unpacked SSSP or PseudoDojo family.",
        )
    table = _read_table(directory)
    members: dict[str, Pseudopotential] = {}
    for element, name in chosen.items():
        row = table.get(element, {})
        fitting = row if row.get("filename", name) == name else {}
        members[element] = _with_table(_named(directory, element, name, f"{KEY}.pseudopotential_of"), fitting)
    ambiguous: dict[str, tuple[str, ...]] = {}
    for element, candidates in {} if chosen_alone else _found(directory).items():
        row = table.get(element, {})
        if element in members:
            continue
        if recommended := row.get("filename"):
            candidates = [_named(directory, element, str(recommended), "its table of cutoffs")]
        if len(candidates) > 1:
            ambiguous[element] = tuple(candidate.path.name for candidate in candidates)
        else:
            members[element] = _with_table(candidates[0], row)
    return Family(directory=directory, members=members, ambiguous=ambiguous)


def settings_family(settings: QuantumEspressoReference) -> Family:
    """The family of settings without a template: the files they name, or all of the directory.

    Raises:
        SettingsError: as :func:`read_family`.
    """
    chosen = settings.pseudopotential_of
    return read_family(settings.pseudopotentials, chosen, chosen_alone=bool(chosen))


def _found(directory: Path) -> dict[str, list[Pseudopotential]]:
    found: dict[str, list[Pseudopotential]] = {}
    for path in sorted(directory.iterdir()):
        if path.suffix.lower() in (".upf", ".gth") and path.is_file() and (member := _read(path)):
            found.setdefault(member.element, []).append(member)
    return found


def _named(directory: Path, element: str, name: str, where: str) -> Pseudopotential:
    path = directory / name
    if not path.is_file():
        raise MissingFileError(
            f"{where}: {element}: {name} is not in {directory}.", f"Correct {KEY}.pseudopotential_of."
        )
    member = _read(path)
    if member is None:
        raise SettingsError(
            f"{where}: {element}: {name} is neither UPF nor GTH (or its header is torn).",
            "Convert it with upfconv.x of Quantum ESPRESSO, or use another file.",
        )
    if member.element != element:
        raise SettingsError(
            f"{where}: {name} is a pseudopotential of {member.element}, not of {element}.",
            f"Correct {KEY}.pseudopotential_of.",
        )
    return member


def _read(path: Path) -> Pseudopotential | None:
    """A pseudopotential by its header; None where there is no element, or no header."""
    with path.open("rb") as stream:
        text = stream.read(HEADER_BYTES).decode("utf-8", errors="replace")
    by_name = _NAMED.match(path.name)
    named = _symbol(by_name[1]) if by_name else None
    if path.suffix.lower() == ".gth":
        return _read_gth(path, text, named)
    start = text.find("<PP_HEADER")
    end = re.search(r"/>|</PP_HEADER>", text[start:]) if start >= 0 else None
    if end is None:
        return None
    header = text[start : start + end.end()]
    if "element=" in header:
        return _read_upf(path, header, named)
    return _read_upf_1(path, header, named)


def _read_upf(path: Path, header: str, named: str | None) -> Pseudopotential | None:
    def attribute(name: str) -> str:
        match = re.search(_ATTRIBUTE.format(name), header)
        return match[1] if match else ""

    element = _symbol(attribute("element")) or named
    valence = _number(attribute("z_valence"))
    if element is None or valence is None:
        return None
    return Pseudopotential(
        element=element,
        path=path,
        norm_conserving=attribute("pseudo_type").upper() in ("NC", "SL"),
        valence=valence,
        cutoff_Ry=_number(attribute("wfc_cutoff")) or None,
        density_cutoff_Ry=_number(attribute("rho_cutoff")) or None,
    )


def _read_upf_1(path: Path, header: str, named: str | None) -> Pseudopotential | None:
    """Version 1: one value per line, with its meaning behind it."""

    def before(meaning: str) -> list[str]:
        match = re.search(rf"^(.*?)\b{meaning}", header, re.MULTILINE)
        return match[1].split() if match else []

    element = _symbol("".join(before("Element")[:1])) or named
    valence = _number("".join(before("Z valence")[:1]))
    if element is None or valence is None:
        return None
    cutoffs = [_number(word) for word in before("Suggested cutoff")][:2]
    cutoff, density = cutoffs if len(cutoffs) == 2 else (None, None)
    return Pseudopotential(
        element=element,
        path=path,
        norm_conserving=before("(?:Norm|Ultrasoft|Projector)")[:1] == ["NC"],
        valence=valence,
        cutoff_Ry=cutoff or None,
        density_cutoff_Ry=density or None,
    )


def _read_gth(path: Path, text: str, named: str | None) -> Pseudopotential | None:
    """Goedecker-Teter-Hutter in ABINIT's text form: a title, then atomic number and valence."""
    words = [*text.splitlines(), "", ""][1].split()
    numbers = [_number(word) for word in words[:2]]
    if len(numbers) < 2 or numbers[0] is None or numbers[1] is None or not 1 <= numbers[0] < len(chemical_symbols):
        return None
    return Pseudopotential(
        element=named or chemical_symbols[int(numbers[0])],
        path=path,
        norm_conserving=True,
        valence=numbers[1],
        cutoff_Ry=None,
        density_cutoff_Ry=None,
    )


def _read_table(directory: Path) -> dict[str, dict[str, Any]]:
    """``cutoffs.json``, else the only SSSP table: element -> filename, md5, cutoff_wfc, cutoff_rho.

    Raises:
        SettingsError: it is no such table.
    """
    own = directory / "cutoffs.json"
    tables = [own] if own.is_file() else sorted(directory.glob("SSSP*.json"))
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables)
        raise SettingsError(f"{KEY}.pseudopotentials: {directory} has several tables: {names}.", "Keep one of them.")
    if not tables:
        return {}
    try:
        table = json.loads(tables[0].read_text(encoding="utf-8"))
        return {str(element): dict(row) for element, row in table.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise SettingsError(
            f"{KEY}.pseudopotentials: {tables[0]} is not a table of cutoffs ({error}).",
            'Write it as {"Si": {"filename": …, "cutoff_wfc": 30, "cutoff_rho": 240}}, Ry.',
        ) from None


def _with_table(member: Pseudopotential, row: Mapping[str, Any]) -> Pseudopotential:
    """With the table's cutoffs instead of the header's.

    Raises:
        SettingsError: the file's content is not what the table was made for.
    """
    if not row:
        return member
    expected = row.get("md5")
    if expected and member.md5 != expected:
        raise SettingsError(
            f"{KEY}.pseudopotentials: {member.path} is not the file whose cutoffs its directory's table holds (md5 "
            f"{expected} expected).",
            f"Download the file again, or name another one in {KEY}.pseudopotential_of.",
        )
    cutoff, density = _number(row.get("cutoff_wfc")), _number(row.get("cutoff_rho"))
    return replace(member, cutoff_Ry=cutoff or member.cutoff_Ry, density_cutoff_Ry=density or member.density_cutoff_Ry)


def _symbol(text: str) -> str | None:
    symbol = text.strip().capitalize()
    return symbol if atomic_numbers.get(symbol, 0) > 0 else None


def _number(word: object) -> float | None:
    try:
        return float(str(word).lower().replace("d", "e"))
    except ValueError:
        return None
