"""Tables of a page."""

import re
from collections.abc import Iterable, Sequence

from fmfsd.report.html.markup import Html, element, joined

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
    name = ", ".join(" ".join(each.split()) for each in header if each)
    return _framed(element("table", element("thead", element("tr", *head)), element("tbody", *body)), name, len(rows))


LONG = 30
"""Rows, above which a table has a scroll bar of its own, and its header stays in sight."""


def _framed(whole: Html, name: str, rows: int) -> Html:
    """It may be wider than the page."""
    kind = "wide long" if rows > LONG else "wide"
    return element("div", whole, class_=kind, tabindex="0", role="region", aria_label=f"Table: {name}")


def matrix(
    corner: str, names: Sequence[str], counts: Sequence[Sequence[int]], shares: Sequence[Sequence[float]]
) -> Html:
    """Counts, as dark as their shares are large; the names are those of the rows and of the columns."""
    head = element("tr", *(element("th", name, scope="col") for name in (corner, *names)))
    body = [
        element("tr", element("th", name, scope="row"), *map(_shaded, own, of_row))
        for name, own, of_row in zip(names, counts, shares, strict=True)
    ]
    return _framed(element("table", element("thead", head), element("tbody", *body), class_="matrix"), corner, 0)


def _shaded(count: int, share: float) -> Html:
    """Zeros are left out: what is there stands out."""
    return element("td", str(count or ""), class_="number", style=f"background: rgb(43 108 176 / {0.6 * share:.2f})")


def _kind(column: Sequence[str]) -> dict[str, str]:
    """A column is of numbers if all that stands in it is."""
    filled = [cell for cell in column if cell]
    return {"class_": "number"} if filled and all(map(_NUMBER.fullmatch, filled)) else {}


def _cell(value: str, kind: dict[str, str]) -> Html:
    return element("td", value, **kind)


def pairs(rows: Iterable[tuple[str, str]]) -> Html:
    """Names and what they are, a line each."""
    lines = [element("tr", element("th", name, scope="row"), element("td", value)) for name, value in rows]
    return element("div", element("table", element("tbody", *lines)), class_="wide facts")


def folded(summary: str, *inside: str) -> Html:
    """Shown when it is asked for."""
    return element("details", element("summary", summary), *inside)


def code(text: str) -> Html:
    return element("pre", element("code", text))


def paragraphs(*texts: str) -> Html:
    return joined(*(element("p", text) for text in texts if text))
