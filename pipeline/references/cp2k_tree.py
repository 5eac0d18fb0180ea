"""CP2K's input as a tree of sections, read and written without a list of its keywords.

Libraries that know every keyword refuse those of newer versions, or write them differently; here a line that nobody asks for
goes through as it is. Read are sections, continued lines, comments, and of the preprocessor ``@SET``, ``${NAME}``, ``@INCLUDE``
and ``@IF``; other ``@`` lines are CP2K's own affair.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import MissingFileError, SettingsError

_COMMENT = re.compile(r"""^((?:[^!#"']|"[^"]*"|'[^']*')*)[!#].*$""")
_VARIABLE = re.compile(r"\$\{(\w+)(?:-([^}]*))?\}|\$(\w+)")
_DEEPEST_INCLUDE = 20
_OFF = {"OFF", "F", "FALSE", ".FALSE.", "NO", "N", "0"}


@dataclass(slots=True)
class Section:
    """One section: ``&NAME parameter``, its lines and sections in their order, ``&END NAME``.

    Names compare without regard to case.
    """

    name: str
    parameter: str = ""
    items: list["Section | str"] = field(default_factory=list)

    def sections(self, name: str) -> list["Section"]:
        """Subsections of a name."""
        return [item for item in self.items if isinstance(item, Section) and item.name == name]

    def find(self, *path: str) -> "Section | None":
        """The first section at a path; None where there is none."""
        here: Section | None = self
        for name in path:
            here = next(iter(here.sections(name)), None) if here else None
        return here

    def at(self, *path: str) -> "Section":
        """The first section at a path, made where there is none."""
        here = self
        for name in path:
            found = here.find(name)
            if found is None:
                found = Section(name)
                here.items.append(found)
            here = found
        return here

    def on(self, name: str) -> bool:
        """Whether a subsection is there and not switched off by its parameter."""
        section = self.find(name)
        return section is not None and section.parameter.upper() not in _OFF

    def values(self, *names: str) -> list[str]:
        """What the lines of a keyword (or of its other names) say."""
        return [value for key, value in self._lines() if key in names]

    def value(self, *names: str) -> str | None:
        """What the last line of a keyword says; None where there is none."""
        return next(reversed(self.values(*names)), None)

    def put(self, name: str, value: object) -> None:
        """Set a keyword, in place of what was there."""
        self.drop(name)
        self.items.insert(0, f"{name} {value}")

    def replace(self, section: "Section") -> "Section":
        """Put a subsection in place of those of its name."""
        self.drop(section.name)
        self.items.append(section)
        return section

    def drop(self, *names: str) -> None:
        """Remove keywords and subsections."""
        self.items = [item for item in self.items if _name(item) not in names]

    def walk(self) -> Iterator["Section"]:
        """This section and all below it."""
        yield self
        for item in self.items:
            if isinstance(item, Section):
                yield from item.walk()

    def text(self, depth: int = 0) -> str:
        """As CP2K reads it."""
        inner = depth + 1 if self.name else depth
        lines = [item.text(inner) if isinstance(item, Section) else f"{'  ' * inner}{item}\n" for item in self.items]
        if not self.name:
            return "".join(lines)
        head = f"{'  ' * depth}&{self.name} {self.parameter}".rstrip()
        return f"{head}\n{''.join(lines)}{'  ' * depth}&END {self.name}\n"

    def _lines(self) -> Iterator[tuple[str, str]]:
        for item in self.items:
            if isinstance(item, str):
                key, _, value = item.partition(" ")
                yield key.upper(), value.strip()


def read_tree(path: Path) -> Section:
    """The input file as a tree; its root has no name.

    Raises:
        SettingsError: the file or one it includes is missing, a variable is not set, or sections do not close.
    """
    root = Section("")
    open_sections = [root]
    for where, line in _preprocessed(path, {}):
        here = open_sections[-1]
        if not line.startswith("&"):
            here.items.append(re.sub(r"\s+", " ", line, count=1))
            continue
        name, _, parameter = line[1:].strip().partition(" ")
        if name.upper() == "END":
            closed = parameter.split()
            if here is root or (closed and closed[0].upper() != here.name):
                raise _unreadable(where, f"{line} closes nothing that is open here")
            open_sections.pop()
            continue
        section = Section(name.upper(), parameter.strip())
        here.items.append(section)
        open_sections.append(section)
    if len(open_sections) > 1:
        raise _unreadable(str(path), f"&{open_sections[-1].name} is not closed")
    return root


def unquoted(value: str) -> str:
    """A keyword's value without quotes."""
    return value.strip().strip("\"'")


def numbers(value: str, units: Mapping[str, float] | None = None) -> list[float]:
    """A keyword's numbers as CP2K reads them: exponents with D, fractions, before them perhaps a unit.

    Args:
        value: all that stands behind the keyword.
        units: in which it may be given, by their names in capitals; without a unit it is in the keyword's own.

    Raises:
        SettingsError: it is no number, or in another unit.
    """
    unit, text = re.match(r"(?:\[ *([^]]*?) *\])?(.*)", value.strip()).groups()  # type: ignore[union-attr]  # matches all
    try:
        factor = 1.0 if unit is None else (units or {})[unit.upper()]
        return [factor * _real(word) for word in text.split()]
    except (KeyError, ValueError, ZeroDivisionError):
        raise SettingsError(
            f"labels.reference.template: {value.strip()!r} is no number, or in a unit that is not known here.",
            "Write it as a plain number in CP2K's own unit of that keyword.",
        ) from None


def number(value: str, units: Mapping[str, float] | None = None) -> float:
    """A keyword's one number; as :func:`numbers`."""
    found = numbers(value, units)
    if len(found) != 1:
        raise SettingsError(
            f"labels.reference.template: {value.strip()!r} is not one number.", "Correct the CP2K input file."
        )
    return found[0]


def _real(word: str) -> float:
    above, _, below = re.sub("[dD]", "e", word).partition("/")
    return float(above) / float(below or 1)


def _preprocessed(path: Path, variables: dict[str, str], depth: int = 0) -> Iterator[tuple[str, str]]:
    """Lines without comments, continued ones joined, variables filled in, files included; each after its place.

    Raises:
        SettingsError: as :func:`read_tree`.
    """
    skipping = False
    for number, line in _lines_of(path):
        where = f"{path} line {number}"
        word, _, rest = line.partition(" ")
        match word.upper():
            case "@ENDIF":
                skipping = False
            case _ if skipping:
                continue
            case "@IF":
                skipping = not _holds(_filled(rest, variables, where), where)
            case "@SET":
                name, _, value = rest.strip().partition(" ")
                variables[name.upper()] = _filled(value.strip(), variables, where)
            case "@INCLUDE":
                if depth == _DEEPEST_INCLUDE:
                    raise _unreadable(where, "files include each other")
                included = path.parent / unquoted(_filled(rest, variables, where))
                yield from _preprocessed(included, variables, depth + 1)
            case _:
                yield where, _filled(line, variables, where)


def _lines_of(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MissingFileError(
            f"labels.reference.template: {path}: {error}.",
            "Name a readable CP2K input file; included ones lie beside it.",
        ) from error
    joined = ""
    for number, raw in enumerate(text.splitlines(), start=1):
        line = joined + _COMMENT.sub(r"\1", raw).strip()
        joined = ""
        if line.endswith("\\"):
            joined = line[:-1]
        elif line:
            yield number, line.replace("\t", " ")


def _filled(text: str, variables: dict[str, str], where: str) -> str:
    def value(match: re.Match[str]) -> str:
        name, default = (match[1] or match[3]).upper(), match[2]
        if name in variables:
            return variables[name]
        if default is None:
            raise _unreadable(where, f"${{{name}}} is not set")
        return str(default)

    return _VARIABLE.sub(value, text)


def _holds(condition: str, where: str) -> bool:
    """CP2K's rule: texts compared by == or /=, to the letter; alone, anything but nothing and 0 holds.

    Parentheses may stand around a comparison. Elsewhere CP2K reads them otherwise than they look: (0) holds.

    Raises:
        SettingsError: parentheses elsewhere, or not one comparison of two texts.
    """
    text, compared = condition.strip(), re.findall("==|/=", condition)
    if compared and text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    sides = [side.strip() for side in re.split("==|/=", text)]
    if len(compared) > 1 or re.search("[()]", text) or (compared and not sides[1]):
        raise _unreadable(where, f"@IF {condition.strip()} is no condition of the form A == B, ( A == B ) or A")
    return (sides[0] == sides[1]) is (compared[0] == "==") if compared else text not in ("", "0")


def _name(item: Section | str) -> str:
    return item.name if isinstance(item, Section) else item.partition(" ")[0].upper()


def _unreadable(where: str, problem: str) -> SettingsError:
    return SettingsError(f"labels.reference.template: {where}: {problem}.", "Correct the CP2K input file.")
