"""From a description of a chart to a drawing in a page.

Vega-Lite draws them (vl-convert-python: Vega's own renderer in one wheel, no browser and no network) as SVG when the
page is written: they need no script, their colours are the page's CSS variables, so that one drawing serves light and
dark, and every mark says its values to a screen reader. Interactive charts would need a megabyte of script a page.
"""

import json
import re
from typing import Any

from fmfsd.report.markup import Html, cleaned, element

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


def drawing(title: str, spec: Spec) -> Html:
    """`spec` without what all charts have in common."""
    from vl_convert import vegalite_to_svg  # not before there is something to draw

    whole = {"$schema": _SCHEMA, "background": None, "config": _CONFIG, **spec}
    return _in_a_page(vegalite_to_svg(json.dumps(_cleaned(whole))), title)


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
