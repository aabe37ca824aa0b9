"""One self-contained HTML page: no script, nothing from the network, light or dark as the reader's system is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fmfsd.report.markup import Html, element, joined

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it; `key` is its address in the page."""

    key: str
    title: str
    content: Html


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """`lead` is one sentence under the title."""
    style = Html(Path(__file__).with_name("page.css").read_text(encoding="utf-8"))
    head = joined(
        Html('<meta charset="utf-8">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        element("title", title),
        element("style", style),
    )
    links = [element("a", section.title, href=f"#{section.key}") for section in sections]
    top = element("header", element("h1", title), element("p", lead), element("nav", *links))
    body = element("body", top, element("main", *map(_written, sections)))
    return f'<!DOCTYPE html>\n<html lang="en">{element("head", head)}{body}</html>\n'


def _written(section: Section) -> Html:
    return element("section", element("h2", section.title), section.content, id=section.key)
