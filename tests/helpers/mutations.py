"""Texts and files that are almost right: bytes with random changes, and with pieces that parsers have stumbled over."""

import re
from collections.abc import Callable, Iterator, Sequence
from random import Random

LARGEST = 200_000
"""Bytes; what changes make longer is cut there."""

CANARY = "this"
"""A module that nobody imports, but whoever runs the code in some of the TOKENS does."""

TOKENS = (
    *(b"!!python/object/apply:importlib.import_module [this]", b"!!python/module:this ''", b"!!python/name:this.s ''"),
    *(b"cimportlib\nimport_module\n(Vthis\ntR.", b"!!int 3", b"! x", b"&a *a", b"&a [*a]", b"<<: *a", b"*a"),
    *(
        b"---\n",
        b"...\n",
        b"%YAML 9.9\n",
        b"? ",
        b"- ",
        b"|\n",
        b": ",
        b"#",
        b"a=b",
        b"a.b=c",
        b"\n",
        b"\r",
        b"\t",
        b"\0",
    ),
    *(b"\x85", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xe2\x80\xae", b"\\ud800", b"\\u0000"),
    *(b"0", b"-1", b"010", b"0x10", b"1e400", b"1e-400", b"NaN", b"-Infinity", b".inf", b"9" * 30, b"9" * 5_000),
    *(b"null", b"true", b"''", b'""', b"[]", b"{}", b"[[]]", b'{"":{}}', b"x" * 300, b"x" * 5_000, b"a." * 2_000),
    *(b"../../etc/passwd", b"/dev/zero", b"~nobody-is-called-so"),
)
BRACKETS = ((b"[", b"]"), (b'{"a":', b"}"), (b"- ", b""), (b"a.", b""))


def mutations(examples: Sequence[bytes], draw: Random) -> Iterator[bytes]:
    """Without end: one of the examples with a few changes."""
    while True:
        content = draw.choice(examples)
        for _ in range(draw.choice((1, 1, 1, 2, 4))):
            content = draw.choice(_CHANGES)(content, draw.choice(examples), draw)[:LARGEST]
        yield content


def _flip(content: bytes, other: bytes, draw: Random) -> bytes:
    place = draw.randrange(len(content) + 1)
    return content[:place] + bytes([draw.randrange(256)]) + content[place + 1 :]


def _cut(content: bytes, other: bytes, draw: Random) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def _leave_out(content: bytes, other: bytes, draw: Random) -> bytes:
    start, end = _piece(content, draw)
    return content[:start] + content[end:]


def _repeat(content: bytes, other: bytes, draw: Random) -> bytes:
    start, end = _piece(content, draw)
    return content[:end] + content[start:end] * draw.choice((1, 2, 30, 2_000)) + content[end:]


def _splice(content: bytes, other: bytes, draw: Random) -> bytes:
    return content[: draw.randrange(len(content) + 1)] + other[draw.randrange(len(other) + 1) :]


def _insert(content: bytes, other: bytes, draw: Random) -> bytes:
    place = draw.randrange(len(content) + 1)
    return content[:place] + draw.choice(TOKENS) + content[place:]


def _exchange(content: bytes, other: bytes, draw: Random) -> bytes:
    """A word for a token, or for another word."""
    start, end = _word(content, draw)
    return content[:start] + _substitute(content, draw) + content[end:]


def _overwrite(content: bytes, other: bytes, draw: Random) -> bytes:
    """As `_exchange`, but nothing moves, so that lengths and offsets stay true."""
    start, end = _word(content, draw)
    return content[:start] + _substitute(content, draw)[: end - start].ljust(end - start) + content[end:]


def _nest(content: bytes, other: bytes, draw: Random) -> bytes:
    start, end = _word(content, draw)
    opening, closing = draw.choice(BRACKETS)
    depth = draw.choice((1, 40, draw.randrange(100, 1_000), 9_000))
    return content[:start] + opening * depth + content[start:end] + closing * depth + content[end:]


_CHANGES: tuple[Callable[[bytes, bytes, Random], bytes], ...]
_CHANGES = (_flip, _cut, _leave_out, _repeat, _splice, _insert, _exchange, _exchange, _overwrite, _nest)


def _piece(content: bytes, draw: Random) -> tuple[int, int]:
    start = draw.randrange(len(content) + 1)
    return start, min(len(content), start + draw.choice((1, 10, 100, len(content))))


def _word(content: bytes, draw: Random) -> tuple[int, int]:
    found = [match.span() for match in re.finditer(rb'"[^"\n]*"|[\w.+-]+', content)]
    return draw.choice(found) if found else (0, 0)


def _substitute(content: bytes, draw: Random) -> bytes:
    start, end = _word(content, draw)
    return draw.choice((content[start:end], draw.choice(TOKENS)))
