"""One self-contained HTML page: nothing from the network, light or dark as the reader's system is, whole without its
one script, which sorts tables."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fmfsd.report.charts.render import draw_charts
from fmfsd.report.html.markup import Html, element, joined

GENERATOR = '<meta name="generator" content="fmfsd">'
"""By which a page of ours is known."""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{}'"


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it; `key` is its address in the page."""

    key: str
    title: str
    content: Html


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """`lead` is one sentence under the title."""
    style, script = _beside("page.css"), _beside("page.js")
    policy = _POLICY.format(base64.b64encode(hashlib.sha256(script.encode()).digest()).decode())
    head = joined(
        Html('<meta charset="utf-8">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        Html(GENERATOR),
        element("title", title),
        element("style", style),
    )
    links = [element("a", section.title, href=f"#{section.key}") for section in sections]
    skip = element("a", "Skip to the content", href="#content", class_="skip")
    top = element("header", element("h1", title), element("p", lead), element("nav", *links, aria_label="Sections"))
    main = element("main", *map(_written, sections), id="content")
    body = element("body", skip, top, main, element("script", script))
    return draw_charts(f'<!DOCTYPE html>\n<html lang="en">{element("head", head)}{body}</html>\n')


def _written(section: Section) -> Html:
    return element("section", element("h2", section.title), section.content, id=section.key)


def _beside(name: str) -> Html:
    return Html(Path(__file__).with_name(name).read_text(encoding="utf-8"))
