"""Strict YAML: the YAML 1.2 core schema; no tags, no aliases, no duplicate keys, bounded size.

PyYAML's own loader reads `1e-3` as a string, `on` as true, `010` as 8 and `12:30` as 750, and silently ignores the
first of two equal keys. Here plain scalars follow YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema), except that
a number with a leading zero stays text, because YAML parsers disagree on it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fmfsd.errors import ConfigError, Problem

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 10_000

_Loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,30})")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_CONSTANTS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **{sign + name: float(sign + "inf") for sign in ("", "+", "-") for name in (".inf", ".Inf", ".INF")},
}

KeyPath = tuple[str, ...]


@dataclass
class Document:
    """A parsed file: plain dicts, lists and scalars, and the line number of each key."""

    content: Any
    lines: dict[KeyPath, int]
    name: str

    def locate(self, path: KeyPath) -> str:
        """Return `file:line` of `path`, or of its nearest parent key in the file; empty without a file."""
        line = next((self.lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self.lines), 1)
        return f"{self.name}:{line}" if self.name else ""


def read_document(path: Path) -> Document:
    """Return the one YAML document in `path`. ConfigError if it can't be read or breaks a rule of this module."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError([Problem(str(path), f"can't be read: {error.strerror}")]) from error
    if len(data) > MAX_BYTES:
        raise ConfigError([Problem(str(path), f"larger than {MAX_BYTES} bytes; a config is a few hundred")])
    try:
        return parse_yaml(data.decode(), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(str(path), f"not UTF-8: byte {error.start} is {data[error.start]:#04x}")]) from error


def parse_yaml(text: str, name: str) -> Document:
    """Return the one YAML document in `text`; messages show `name` as the file. ConfigError as in `read_document`."""
    builder = _Builder(name)
    try:
        text.encode()  # bytes of an argument that are not UTF-8 arrive as lone surrogates
        for event in yaml.parse(text, Loader=_Loader):
            builder.handle_event(event)
    except UnicodeEncodeError as error:
        raise ConfigError([Problem(ascii(name), "not UTF-8")]) from error
    except yaml.YAMLError as error:
        raise ConfigError([_describe_yaml_error(error, text, name)]) from error
    if builder.problems:
        raise ConfigError(builder.problems)
    return Document(builder.content, builder.lines, name)


def parse_scalar(text: str) -> Any:
    """Return the value of an unquoted YAML scalar."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


@dataclass
class _Open:
    """A mapping or sequence that is not closed yet."""

    content: dict[str, Any] | list[Any]
    path: KeyPath
    key: str | None = None
    key_lines: dict[str, int] = field(default_factory=dict)


class _Builder:
    """Builds plain values from parse events without recursion, so that deep nesting can't exhaust the stack."""

    def __init__(self, name: str) -> None:
        self.name, self.content, self.lines = name, None, dict[KeyPath, int]()
        self.problems: list[Problem] = []
        self._open: list[_Open] = []
        self._nodes = self._documents = 0

    def handle_event(self, event: yaml.Event) -> None:
        line = (event.start_mark.line if event.start_mark else 0) + 1
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            self._require(self._documents == 1, line, "a second document starts here; a config is one document")
        elif isinstance(event, yaml.AliasEvent):
            self._refuse(line, f"alias *{event.anchor} is not allowed: write the value out")
            self._add_value(None, line)
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            self._handle_node(event, line)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._open.pop()

    def _handle_node(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent, line: int) -> None:
        self._nodes += 1
        self._require(self._nodes <= MAX_NODES, line, f"more than {MAX_NODES} values")
        self._require(len(self._open) < MAX_DEPTH, line, f"nested deeper than {MAX_DEPTH} levels")
        if event.tag not in (None, "!"):
            self._refuse(line, f"tag {event.tag} is not allowed: tags can name code")
        if isinstance(event, yaml.ScalarEvent):
            self._handle_scalar(event, line)
        else:
            content: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
            self._open.append(_Open(content, self._add_value(content, line)))

    def _handle_scalar(self, event: yaml.ScalarEvent, line: int) -> None:
        inside = self._open[-1] if self._open else None
        if inside is not None and isinstance(inside.content, dict) and inside.key is None:
            self._handle_key(inside, event.value, line)
        else:
            self._add_value(parse_scalar(event.value) if event.implicit[0] else event.value, line)

    def _handle_key(self, inside: _Open, key: str, line: int) -> None:
        if key in inside.key_lines:
            dotted = ".".join((*inside.path, key))
            self._refuse(line, f"duplicate key {dotted}, also on line {inside.key_lines[key]}: remove one of the two")
        inside.key, inside.key_lines[key] = key, line
        self.lines.setdefault((*inside.path, key), line)

    def _add_value(self, value: Any, line: int) -> KeyPath:
        """Add `value` to the open mapping or sequence and return its path."""
        if not self._open:
            self.content = value
            return ()
        inside = self._open[-1]
        if isinstance(inside.content, list):
            inside.content.append(value)
            return self._record_line((*inside.path, str(len(inside.content) - 1)), line)
        self._require(inside.key is not None, line, "a key must be a scalar, not a list or a mapping")
        key, inside.key = str(inside.key), None
        inside.content[key] = value
        return (*inside.path, key)

    def _record_line(self, path: KeyPath, line: int) -> KeyPath:
        self.lines[path] = line
        return path

    def _refuse(self, line: int, message: str) -> None:
        self.problems.append(Problem(f"{self.name}:{line}", message))

    def _require(self, fits: bool, line: int, message: str) -> None:
        """Stop at once where continuing would be pointless or might never end."""
        if not fits:
            raise ConfigError([*self.problems, Problem(f"{self.name}:{line}", message)])


def _describe_yaml_error(error: yaml.YAMLError, text: str, name: str) -> Problem:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return Problem(name, f"invalid YAML: {' '.join(str(error).split())}")
    excerpt = "\n".join(_excerpt(text, mark.line, mark.column))
    return Problem(f"{name}:{mark.line + 1}", f"invalid YAML: {getattr(error, 'problem', error)}\n{excerpt}")


def _excerpt(text: str, line: int, column: int) -> Iterator[str]:
    lines = text.splitlines()
    if line < len(lines):
        yield f"    {lines[line][:120]}"
        if column <= 120:
            yield f"    {' ' * column}^"
