"""Tables of a page."""

import re
from collections.abc import Iterable, Sequence

from fmfsd.report.markup import Html, element, joined

_NUMBER = re.compile(r"[-+]?[0-9][0-9.,]*( (%|[TGMk]|± .*|min.*|s|h.*|\(.*\)))?|–")


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, marked: Iterable[int] = ()) -> Html:
    """Cells are text, or markup as it is; numbers stand to the right, and rows of the numbers `marked` stand out."""
    marked = set(marked)
    head = element("tr", *(element("th", name, scope="col") for name in header))
    body = [
        element("tr", *map(_cell, row), **({"class_": "marked"} if number in marked else {}))
        for number, row in enumerate(rows)
    ]
    return element("div", element("table", element("thead", head), element("tbody", *body)), class_="wide")


def pairs(rows: Iterable[tuple[str, str]]) -> Html:
    """Names and what they are, a line each."""
    lines = [element("tr", element("th", name, scope="row"), _cell(value)) for name, value in rows]
    return element("div", element("table", element("tbody", *lines)), class_="wide")


def folded(summary: str, *inside: str) -> Html:
    """Shown when it is asked for."""
    return element("details", element("summary", summary), *inside)


def code(text: str) -> Html:
    return element("pre", element("code", text))


def paragraphs(*texts: str) -> Html:
    return joined(*(element("p", text) for text in texts if text))


def _cell(value: str) -> Html:
    return element("td", value, **({"class_": "number"} if _NUMBER.fullmatch(value) else {}))
