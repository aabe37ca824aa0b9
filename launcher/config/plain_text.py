"""Sanitises external text for a terminal, and sorts file names naturally."""

import re
from pathlib import Path

_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?")


def sanitize_line(line: str) -> str:
    """Return the line as a terminal would finally show it, without colours; other control characters become escapes."""
    text = _SEQUENCE.sub("", line).rstrip("\r").rpartition("\r")[2]
    return "".join(char if char.isprintable() or char == "\t" else _escape(char) for char in text)


def to_single_line(text: str) -> str:
    """Join lines with " / " and sanitise the result."""
    return sanitize_line(" / ".join(text.splitlines()))


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()


def natural_sort_key(path: Path) -> list[int | str]:
    """Return a sort key that orders numbers naturally: rank-10 after rank-9."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", str(path))]
