"""YAML text to plain data, strictly: safe types, no duplicate keys, one document, and the line every key stands on.

PyYAML alone keeps the last of two equal keys without a word, reads ``1e-3`` as text and ``1:30`` as the number 90:
three silent mistakes.
"""

import re
from dataclasses import dataclass
from typing import Any, TypeAlias

import yaml

from pipeline.errors import SettingsError

KeyPath = tuple[str | int, ...]

Plain: TypeAlias = Any
"""What YAML holds: mappings, lists, text, numbers, truth values, nothing."""


class _Loader(yaml.SafeLoader):
    """Safe types only, with the numbers of YAML 1.2: ``1e-3`` is one and ``12:30`` is none."""


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_INT, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_NUMBERS = {
    _INT: r"^[-+]?(0b[01]+|0x[0-9a-fA-F]+|0|[1-9][0-9_]*)$",
    _FLOAT: r"^([-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+|\.[0-9]+[eE][-+]?[0-9]+|\.(inf|Inf|INF))"
    r"|\.(nan|NaN|NAN))$",
}
for _tag, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), list("-+.0123456789"))


@dataclass(frozen=True, slots=True)
class YAMLSource:
    """Parsed YAML: ``data`` as plain Python, and ``lines`` (counted from 1) by key path."""

    data: Plain
    lines: dict[KeyPath, int]


def parse_yaml(text: str, *, where: str) -> YAMLSource:
    """Parse one YAML document.

    Args:
        text: the document.
        where: file name or option, for messages.

    Raises:
        SettingsError: a syntax error (with its line), duplicate keys (all of them), or more than one document.
    """
    lines: dict[KeyPath, int] = {}
    duplicates: list[str] = []
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            _visit(node, (), lines, duplicates, frozenset())
        if duplicates:
            listing = "\n".join(f"  {line}" for line in duplicates)
            raise SettingsError(f"{where}: the same key is given twice\n{listing}", "Keep one of the two.")
        data = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        raise _syntax_error(error, text, where) from None
    return YAMLSource(data, lines)


def _visit(
    node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], duplicates: list[str], above: frozenset[int]
) -> None:
    """Record lines and duplicate keys below a node; ``above`` stops at an alias that contains itself."""
    if id(node) in above:
        return
    above = above | {id(node)}
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
            _visit(item, (*path, index), lines, duplicates, above)
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            key = (*path, str(key_node.value))
            line = key_node.start_mark.line + 1
            if key in lines:
                duplicates.append(f"{show_path(key)}: lines {lines[key]} and {line}")
            lines[key] = line
            _visit(value_node, key, lines, duplicates, above)


def _syntax_error(error: yaml.YAMLError, text: str, where: str) -> SettingsError:
    """The scanner's complaint with line, column and the offending line."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    if mark is None:
        return SettingsError(f"{where}: not YAML: {problem}.", "Save it as UTF-8 text.")
    rows = text.splitlines()
    row = rows[mark.line].strip() if mark.line < len(rows) else "end of file"
    begun = getattr(error, "context_mark", None)
    since = (
        f", {getattr(error, 'context', '')} begun in line {begun.line + 1}" if begun and begun.line != mark.line else ""
    )
    message = (
        f"{where}: not YAML: line {mark.line + 1}, column {mark.column + 1}: {problem}{since}; the line is {row!r}."
    )
    if "\\t" in problem or (mark.line < len(rows) and "\t" in rows[mark.line]):
        return SettingsError(message, "Indent with spaces; YAML does not allow tabs.")
    return SettingsError(message, "Check indentation, colons and quotes around this line.")


def show_path(path: KeyPath) -> str:
    """``systems[0].name`` for ``("systems", 0, "name")``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
