"""HTML tables and other blocks of a page."""

import re
from collections.abc import Iterable, Sequence

from fmfsd.report.html.markup import Html, element, join_markup

_NUMBER = re.compile(r"[-+]?(?!0[0-9])[0-9.]+(e[-+][0-9]+)?( [^,]*)?|–")
"""A number with an optional unit. Not a trial's name, which starts with a 0."""


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, marked: Iterable[int] = ()) -> Html:
    """Return a table; cells are text or markup. Columns of numbers are right-aligned, rows in `marked` highlighted."""
    rows, marked = list(rows), set(marked)
    kinds = [_kind([row[column] for row in rows]) for column in range(len(header))]
    head = [element("th", name, scope="col", **kind) for name, kind in zip(header, kinds, strict=True)]
    body = [
        element("tr", *map(_cell, row, kinds), **({"class_": "marked"} if number in marked else {}))
        for number, row in enumerate(rows)
    ]
    name = ", ".join(" ".join(each.split()) for each in header if each)
    return _scroll_frame(
        element("table", element("thead", element("tr", *head)), element("tbody", *body)), name, len(rows)
    )


LONG_TABLE_ROWS = 30
"""Number of rows above which a table has its own scroll bar and a sticky header."""


def _scroll_frame(content: Html, name: str, rows: int) -> Html:
    """Wrap a table in a scrollable frame: it may be wider than the page."""
    kind = "wide long" if rows > LONG_TABLE_ROWS else "wide"
    return element("div", content, class_=kind, tabindex="0", role="region", aria_label=f"Table: {name}")


def matrix(
    corner: str, names: Sequence[str], counts: Sequence[Sequence[int]], shares: Sequence[Sequence[float]]
) -> Html:
    """Return a matrix of counts, darker for larger shares; `names` label its rows and columns."""
    head = element("tr", *(element("th", name, scope="col") for name in (corner, *names)))
    body = [
        element("tr", element("th", name, scope="row"), *map(_shaded_cell, row_counts, row_shares))
        for name, row_counts, row_shares in zip(names, counts, shares, strict=True)
    ]
    return _scroll_frame(element("table", element("thead", head), element("tbody", *body), class_="matrix"), corner, 0)


def _shaded_cell(count: int, share: float) -> Html:
    """Return a cell with a shaded background; zeros are left blank."""
    return element("td", str(count or ""), class_="number", style=f"background: rgb(43 108 176 / {0.6 * share:.2f})")


def _kind(column: Sequence[str]) -> dict[str, str]:
    """Return the class of a column: number if all its non-empty cells are numbers."""
    filled = [cell for cell in column if cell]
    return {"class_": "number"} if filled and all(map(_NUMBER.fullmatch, filled)) else {}


def _cell(value: str, kind: dict[str, str]) -> Html:
    return element("td", value, **kind)


def facts_table(rows: Iterable[tuple[str, str]]) -> Html:
    """Return a table of names and values, one per row."""
    lines = [element("tr", element("th", name, scope="row"), element("td", value)) for name, value in rows]
    return element("div", element("table", element("tbody", *lines)), class_="wide facts")


def collapsible(summary: str, *inside: str) -> Html:
    """Return a collapsible block that is closed at first."""
    return element("details", element("summary", summary), *inside)


def code_block(text: str) -> Html:
    """Return a code block."""
    return element("pre", element("code", text))


def paragraphs(*texts: str) -> Html:
    """Return a paragraph per text, without the empty ones."""
    return join_markup(*(element("p", text) for text in texts if text))
