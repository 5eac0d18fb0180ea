"""The text of a pw.x input: namelists and cards, read from a user's file and written again."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NAMELISTS = ("control", "system", "electrons")
"""Those of an SCF calculation, in the order pw.x wants them."""
CARDS = (
    "ATOMIC_SPECIES",
    "ATOMIC_POSITIONS",
    "K_POINTS",
    "ADDITIONAL_K_POINTS",
    "CELL_PARAMETERS",
    "CONSTRAINTS",
    "OCCUPATIONS",
    "ATOMIC_VELOCITIES",
    "ATOMIC_FORCES",
    "SOLVENTS",
    "HUBBARD",
)
_QUOTED = r"'[^'\n]*'|\"[^\"\n]*\""
_COMMENT = re.compile(rf"({_QUOTED})|![^\n]*")
_NAMELIST = re.compile(rf"^[ \t]*&(\w+)((?:{_QUOTED}|[^'\"/])*)/", re.MULTILINE)
_NAME = r"[A-Za-z_]\w*(?:[ \t]*\([^)\n]*\))?"
_ENTRY = re.compile(rf"({_NAME})\s*=\s*((?:{_QUOTED}|(?!{_NAME}\s*=)[^'\"])*)")

Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class PwInput:
    """A pw.x input.

    Attributes:
        namelists: name -> key -> value as Fortran text, names and keys in small letters.
        cards: name in capitals -> its line's remainder and the lines under it.
    """

    namelists: Mapping[str, Mapping[str, str]]
    cards: Mapping[str, tuple[str, tuple[str, ...]]]

    def value(self, namelist: str, key: str) -> str:
        """A value without quotes; empty where there is none."""
        return self.namelists.get(namelist, {}).get(key, "").strip("'\" \t")

    def number(self, namelist: str, key: str) -> float | None:
        """A value as a number; None where there is none."""
        try:
            return float(self.value(namelist, key).lower().replace("d", "e"))
        except ValueError:
            return None

    def flag(self, namelist: str, key: str) -> bool:
        """Whether a value is Fortran's true."""
        return self.value(namelist, key).lower().lstrip(".").startswith("t")

    def with_values(self, namelist: str, values: Mapping[str, Value]) -> "PwInput":
        """With other values of some keys."""
        changed = {**self.namelists.get(namelist, {}), **{key: fortran(value) for key, value in values.items()}}
        return PwInput({**self.namelists, namelist: changed}, self.cards)

    def without(self, namelist: str, keys: Sequence[str]) -> "PwInput":
        """Without some keys, and their elements where they are arrays."""
        kept = {
            key: value for key, value in self.namelists.get(namelist, {}).items() if key.partition("(")[0] not in keys
        }
        return PwInput({**self.namelists, namelist: kept}, self.cards)

    def with_card(self, name: str, option: str, lines: Sequence[str]) -> "PwInput":
        """With another card, in the place of the one of that name."""
        return PwInput(self.namelists, {**self.cards, name: (option, tuple(lines))})

    def to_text(self) -> str:
        """As pw.x reads it; other namelists than those of an SCF calculation are left out."""
        lines: list[str] = []
        for name in NAMELISTS:
            lines.append(f"&{name.upper()}")
            lines += [f"  {key} = {value}" for key, value in self.namelists.get(name, {}).items()]
            lines.append("/")
        for card, (option, rows) in self.cards.items():
            lines += [f"{card} {option}".rstrip(), *rows]
        return "\n".join(lines) + "\n"


def fortran(value: Value) -> str:
    """A value as a Fortran namelist takes it."""
    if isinstance(value, bool):
        return ".true." if value else ".false."
    if isinstance(value, str):
        return f"'{value}'"
    return repr(value)


def read_input(text: str) -> PwInput:
    """The namelists and cards of a pw.x input; empty ones where the text has none."""
    text = _COMMENT.sub(lambda match: match[1] or "", text.replace("\r\n", "\n"))
    namelists: dict[str, dict[str, str]] = {}
    end = 0
    for found in _NAMELIST.finditer(text):
        entries = {
            re.sub(r"\s", "", entry[1]).lower(): entry[2].strip().rstrip(",").rstrip()
            for entry in _ENTRY.finditer(found[2])
        }
        namelists.setdefault(found[1].lower(), {}).update(entries)
        end = found.end()
    cards: dict[str, tuple[str, list[str]]] = {}
    rows: list[str] = []
    for line in text[end:].splitlines():
        words = line.split(maxsplit=1)
        if not words or words[0].startswith("#"):
            continue
        # the option may stick to the name: K_POINTS{gamma}
        name = re.split(r"[{(]", words[0])[0].upper()
        if name in CARDS:
            rows = []
            cards[name] = (line.strip()[len(name) :].strip(" {}()\t"), rows)
        else:
            rows.append(line.strip())
    return PwInput(namelists, {name: (option, tuple(under)) for name, (option, under) in cards.items()})
