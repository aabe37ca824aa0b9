"""Small pictures inside a page: grids of numbers and images of a data set, as PNG in the markup itself."""

import base64
import io
from collections.abc import Sequence

from fmfsd.report.html.markup import Html, element

Grid = Sequence[Sequence[float]]


def picture(png: str, alt: str, kind: str = "pixels") -> Html:
    """`png` in base64; `alt` is what it shows, in words."""
    whole = element("img", src=f"data:image/png;base64,{png}", alt=alt, class_=kind, title=alt)
    return Html(whole.removesuffix("</img>"))


def heat(grid: Grid, alt: str, *, low: float, high: float, kind: str = "pixels") -> Html:
    """From dark at `low` to light at `high`."""
    from PIL import Image  # a page without pictures needs none

    span = (high - low) or 1.0
    shades = bytes(min(255, max(0, round(255 * (value - low) / span))) for row in grid for value in row)
    image = Image.frombytes("L", (len(grid[0]), len(grid)), shades)
    image.putpalette([part for shade in range(256) for part in _colour(shade / 255)])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return picture(base64.b64encode(buffer.getvalue()).decode(), alt, kind)


_STOPS = ((13, 8, 60), (120, 28, 109), (237, 105, 37), (252, 255, 164))
"""Rising in lightness, so that they can be told apart without colour."""


def _colour(share: float) -> tuple[int, ...]:
    place = share * (len(_STOPS) - 1)
    first = min(int(place), len(_STOPS) - 2)
    pair = zip(_STOPS[first], _STOPS[first + 1], strict=True)
    return tuple(round(one + (other - one) * (place - first)) for one, other in pair)


def ends(grids: Sequence[Grid]) -> tuple[float, float]:
    """The least and the most."""
    values = [value for grid in grids for row in grid for value in row]
    return min(values), max(values)
