"""One self-contained HTML page: no network access, light or dark mode as on the reader's system.

The only script sorts tables; the page is complete without it.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fmfsd.report.charts.render import insert_charts
from fmfsd.report.html.markup import Html, element, join_markup

GENERATOR = '<meta name="generator" content="fmfsd">'
"""Identifies a page that fmfsd wrote."""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{}'"


@dataclass(frozen=True)
class PageSection:
    """A heading and its content; `key`: its anchor in the page."""

    key: str
    title: str
    content: Html


def render_page(title: str, lead: str, sections: Sequence[PageSection]) -> str:
    """Return the page as HTML. `lead`: one sentence below the title."""
    style, script = _read_asset("page.css"), _read_asset("page.js")
    policy = _POLICY.format(base64.b64encode(hashlib.sha256(script.encode()).digest()).decode())
    head = join_markup(
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
    main = element("main", *map(_section_element, sections), id="content")
    body = element("body", skip, top, main, element("script", script))
    return insert_charts(f'<!DOCTYPE html>\n<html lang="en">{element("head", head)}{body}</html>\n')


def _section_element(section: PageSection) -> Html:
    return element("section", element("h2", section.title), section.content, id=section.key)


def _read_asset(name: str) -> Html:
    return Html(Path(__file__).with_name(name).read_text(encoding="utf-8"))
