"""From a description of a chart to a drawing in a page.

Vega-Lite draws them (vl-convert-python: Vega's own renderer in one wheel, no browser and no network) as SVG when the
page is written: they need no script, their colours are the page's CSS variables, so that one drawing serves light and
dark, and every mark says its values to a screen reader. Interactive charts would need a megabyte of script a page.
All charts of a page are drawn by one child process: where V8 can't run, the page has no charts and is whole otherwise.
"""

import html
import json
import re
from typing import Any

from fmfsd.report.charts.vega import Drawn, draw_in_child
from fmfsd.report.html.markup import Html, cleaned, element

Spec = dict[str, Any]

LETTERS = 13
"""Their size, in pixels of the drawing."""
_CONFIG: Spec = {
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "text": {"fontSize": LETTERS},
    "axis": {
        "labelColor": "var(--ink)",
        "titleColor": "var(--quiet)",
        "titleFontWeight": "normal",
        "gridColor": "var(--line)",
        "domainColor": "var(--quiet)",
        "tickColor": "var(--quiet)",
        "labelFontSize": LETTERS,
        "titleFontSize": LETTERS,
        "titlePadding": 10,
        "labelFlush": False,
    },
    "legend": {
        "labelColor": "var(--ink)",
        "labelFontSize": LETTERS,
        "symbolStrokeWidth": 2,
        "orient": "bottom",
        "columnPadding": 18,
    },
}


_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
_PLACEHOLDER = re.compile(r'<vega-lite title="([^"]*)">([^<]*)</vega-lite>')


def drawing(title: str, spec: Spec) -> Html:
    """Return the place of a chart, which `draw_charts` fills; `spec` lacks what all charts have in common."""
    whole = {"$schema": _SCHEMA, "background": None, "config": _CONFIG, **spec}
    return element("vega-lite", Html(html.escape(json.dumps(_cleaned(whole)), quote=False)), title=title)


def draw_charts(page: str) -> str:
    """Return the page with all its charts drawn, or with the reason where one can't be drawn."""
    found = [(html.unescape(title), json.loads(html.unescape(spec))) for title, spec in _PLACEHOLDER.findall(page)]
    if not found:
        return page
    drawn = iter(zip(draw_in_child([spec for _, spec in found]), [title for title, _ in found], strict=True))
    return _PLACEHOLDER.sub(lambda _: _filled(*next(drawn)), page)


def _filled(drawn: Drawn, title: str) -> Html:
    if "svg" in drawn:
        return _in_a_page(drawn["svg"], title)
    return element("p", f"This chart is omitted: {drawn['error']}. Its numbers are in the table.", class_="omitted")


def _cleaned(part: Any) -> Any:
    if isinstance(part, dict):
        return {name: _cleaned(value) for name, value in part.items()}
    if isinstance(part, list | tuple):
        return [_cleaned(each) for each in part]
    return cleaned(part) if isinstance(part, str) else part


MOST_LARGER = 1.2
"""Than it was drawn, in a wide page."""
_TOLD = re.compile(r'(<(?:path|text|rect) aria-label="([^"]*)" role="graphics-symbol"[^>]*?)/>')


def _in_a_page(svg: str, title: str) -> Html:
    """Named, in the page's width, and with the values of a mark shown where the pointer is."""
    hovered = _TOLD.sub(lambda found: f"{found[1]}><title>{found[2]}</title></path>", svg)
    box, inside = re.fullmatch(r'<svg [^>]*(viewBox="[^"]*")>(.*)</svg>', hovered, re.DOTALL).groups()  # type: ignore[union-attr]
    sides = box.partition('"')[2].rstrip('"')
    widest = f"max-width: {MOST_LARGER * float(sides.split()[2]):.0f}px"
    name = element("title", title)
    return element("svg", name, Html(inside), viewBox=sides, role="img", aria_label=title, style=widest)
