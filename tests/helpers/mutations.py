"""Fuzzing inputs: valid texts and files with random changes and with byte sequences that have broken parsers."""

import re
from collections.abc import Callable, Iterator, Sequence
from random import Random

LARGEST = 200_000
"""Bytes: longer mutations are truncated."""

CANARY = "this"
"""A module of the standard library that nothing imports: it is loaded only if a parser executes the code in TOKENS."""

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


def mutations(examples: Sequence[bytes], random: Random) -> Iterator[bytes]:
    """Yield forever: a random example with a few random changes."""
    while True:
        content = random.choice(examples)
        for _ in range(random.choice((1, 1, 1, 2, 4))):
            content = random.choice(_CHANGES)(content, random.choice(examples), random)[:LARGEST]
        yield content


def _flip(content: bytes, other: bytes, random: Random) -> bytes:
    place = random.randrange(len(content) + 1)
    return content[:place] + bytes([random.randrange(256)]) + content[place + 1 :]


def _cut(content: bytes, other: bytes, random: Random) -> bytes:
    return content[: random.randrange(len(content) + 1)]


def _leave_out(content: bytes, other: bytes, random: Random) -> bytes:
    start, end = _random_span(content, random)
    return content[:start] + content[end:]


def _repeat(content: bytes, other: bytes, random: Random) -> bytes:
    start, end = _random_span(content, random)
    return content[:end] + content[start:end] * random.choice((1, 2, 30, 2_000)) + content[end:]


def _splice(content: bytes, other: bytes, random: Random) -> bytes:
    return content[: random.randrange(len(content) + 1)] + other[random.randrange(len(other) + 1) :]


def _insert(content: bytes, other: bytes, random: Random) -> bytes:
    place = random.randrange(len(content) + 1)
    return content[:place] + random.choice(TOKENS) + content[place:]


def _replace_word(content: bytes, other: bytes, random: Random) -> bytes:
    """Replace a word by a token or by another word."""
    start, end = _word_span(content, random)
    return content[:start] + _substitute(content, random) + content[end:]


def _overwrite(content: bytes, other: bytes, random: Random) -> bytes:
    """Do as `_replace_word`, but keep the length, so that lengths and offsets in the content stay valid."""
    start, end = _word_span(content, random)
    return content[:start] + _substitute(content, random)[: end - start].ljust(end - start) + content[end:]


def _nest(content: bytes, other: bytes, random: Random) -> bytes:
    start, end = _word_span(content, random)
    opening, closing = random.choice(BRACKETS)
    depth = random.choice((1, 40, random.randrange(100, 1_000), 9_000))
    return content[:start] + opening * depth + content[start:end] + closing * depth + content[end:]


_CHANGES: tuple[Callable[[bytes, bytes, Random], bytes], ...]
_CHANGES = (_flip, _cut, _leave_out, _repeat, _splice, _insert, _replace_word, _replace_word, _overwrite, _nest)


def _random_span(content: bytes, random: Random) -> tuple[int, int]:
    start = random.randrange(len(content) + 1)
    return start, min(len(content), start + random.choice((1, 10, 100, len(content))))


def _word_span(content: bytes, random: Random) -> tuple[int, int]:
    spans = [match.span() for match in re.finditer(rb'"[^"\n]*"|[\w.+-]+', content)]
    return random.choice(spans) if spans else (0, 0)


def _substitute(content: bytes, random: Random) -> bytes:
    start, end = _word_span(content, random)
    return random.choice((content[start:end], random.choice(TOKENS)))
