"""Rendering of Vega-Lite specifications to SVG inside a page.

Charts are rendered when the page is written, by vl-convert-python (Vega's own renderer in one wheel, without browser or
network). The SVG needs no script, uses the page's CSS variables as colours, so that it fits light and dark mode, and
labels every mark for screen readers. Interactive charts would need a megabyte of script per page. One child process
renders all charts of a page: where V8 can't run, the page is complete except for the charts.
"""

import html
import json
import re
from typing import Any

from fmfsd.report.charts.vega import RenderResult, render_in_child
from fmfsd.report.html.markup import Html, element, replace_control_characters

Spec = dict[str, Any]

FONT_SIZE = 13
"""Font size, in pixels of the SVG."""
_CONFIG: Spec = {
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "text": {"fontSize": FONT_SIZE},
    "axis": {
        "labelColor": "var(--ink)",
        "titleColor": "var(--quiet)",
        "titleFontWeight": "normal",
        "gridColor": "var(--line)",
        "domainColor": "var(--quiet)",
        "tickColor": "var(--quiet)",
        "labelFontSize": FONT_SIZE,
        "titleFontSize": FONT_SIZE,
        "titlePadding": 10,
        "labelFlush": False,
    },
    "legend": {
        "labelColor": "var(--ink)",
        "labelFontSize": FONT_SIZE,
        "symbolStrokeWidth": 2,
        "orient": "bottom",
        "columnPadding": 18,
    },
}


_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
_PLACEHOLDER = re.compile(r'<vega-lite title="([^"]*)">([^<]*)</vega-lite>')


def chart_placeholder(title: str, spec: Spec) -> Html:
    """Return a placeholder that `insert_charts` replaces by the chart. `spec` omits settings common to all charts."""
    full_spec = {"$schema": _SCHEMA, "background": None, "config": _CONFIG, **spec}
    return element("vega-lite", Html(html.escape(json.dumps(_cleaned(full_spec)), quote=False)), title=title)


def insert_charts(page: str) -> str:
    """Return the page with all placeholders replaced by SVG, or by the reason why a chart can't be drawn."""
    charts = [(html.unescape(title), json.loads(html.unescape(spec))) for title, spec in _PLACEHOLDER.findall(page)]
    if not charts:
        return page
    results = iter(zip(render_in_child([spec for _, spec in charts]), [title for title, _ in charts], strict=True))
    return _PLACEHOLDER.sub(lambda _: _chart_element(*next(results)), page)


def _chart_element(result: RenderResult, title: str) -> Html:
    if "svg" in result:
        return _embed_svg(result["svg"], title)
    return element("p", f"This chart is omitted: {result['error']}. Its numbers are in the table.", class_="omitted")


def _cleaned(part: Any) -> Any:
    if isinstance(part, dict):
        return {name: _cleaned(value) for name, value in part.items()}
    if isinstance(part, list | tuple):
        return [_cleaned(each) for each in part]
    return replace_control_characters(part) if isinstance(part, str) else part


MAX_SCALE = 1.2
"""Largest scale factor of a chart on a wide page."""
_LABELLED_MARK = re.compile(r'(<(?:path|text|rect) aria-label="([^"]*)" role="graphics-symbol"[^>]*?)/>')


def _embed_svg(svg: str, title: str) -> Html:
    """Add a title, a maximum width, and tooltips with the values of the marks."""
    with_tooltips = _LABELLED_MARK.sub(lambda match: f"{match[1]}><title>{match[2]}</title></path>", svg)
    box, inside = re.fullmatch(r'<svg [^>]*(viewBox="[^"]*")>(.*)</svg>', with_tooltips, re.DOTALL).groups()  # type: ignore[union-attr]
    sides = box.partition('"')[2].rstrip('"')
    style = f"max-width: {MAX_SCALE * float(sides.split()[2]):.0f}px"
    name = element("title", title)
    return element("svg", name, Html(inside), viewBox=sides, role="img", aria_label=title, style=style)
