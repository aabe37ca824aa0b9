"""Text from outside as one plain line for a terminal, and the natural order of file names."""

import re
from pathlib import Path

_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?")


def harmless(line: str) -> str:
    """As a terminal would show it in the end, without colours; what else would move the cursor is shown as its code."""
    text = _SEQUENCE.sub("", line).rstrip("\r").rpartition("\r")[2]
    return "".join(letter if letter.isprintable() or letter == "\t" else _code(letter) for letter in text)


def in_a_line(text: str) -> str:
    """Lines behind one another."""
    return harmless(" / ".join(text.splitlines()))


def _code(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


def in_order(path: Path) -> list[int | str]:
    """rank-10 after rank-9."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", str(path))]
