"""Tables of a page."""

import re
from collections.abc import Iterable, Sequence

from fmfsd.report.markup import Html, element, joined

_NUMBER = re.compile(r"[-+]?(?!0[0-9])[0-9.]+(e[-+][0-9]+)?( [^,]*)?|–")
"""Not names of trials, which begin with a 0."""


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, marked: Iterable[int] = ()) -> Html:
    """Cells are text, or markup as it is. Columns of numbers stand to the right; rows with the indices `marked` out."""
    rows, marked = list(rows), set(marked)
    kinds = [_kind([row[column] for row in rows]) for column in range(len(header))]
    head = [element("th", name, scope="col", **kind) for name, kind in zip(header, kinds, strict=True)]
    body = [
        element("tr", *map(_cell, row, kinds), **({"class_": "marked"} if number in marked else {}))
        for number, row in enumerate(rows)
    ]
    whole = element("table", element("thead", element("tr", *head)), element("tbody", *body))
    name = ", ".join(filter(None, header))
    return element("div", whole, class_="wide", tabindex="0", role="region", aria_label=f"Table: {name}")


def _kind(column: Sequence[str]) -> dict[str, str]:
    """A column is of numbers if all that stands in it is."""
    filled = [cell for cell in column if cell]
    return {"class_": "number"} if filled and all(map(_NUMBER.fullmatch, filled)) else {}


def _cell(value: str, kind: dict[str, str]) -> Html:
    return element("td", value, **kind)


def pairs(rows: Iterable[tuple[str, str]]) -> Html:
    """Names and what they are, a line each."""
    lines = [element("tr", element("th", name, scope="row"), element("td", value)) for name, value in rows]
    return element("div", element("table", element("tbody", *lines)), class_="wide")


def folded(summary: str, *inside: str) -> Html:
    """Shown when it is asked for."""
    return element("details", element("summary", summary), *inside)


def code(text: str) -> Html:
    return element("pre", element("code", text))


def paragraphs(*texts: str) -> Html:
    return joined(*(element("p", text) for text in texts if text))
