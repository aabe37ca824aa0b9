"""PNG images embedded in a page: heat maps and images of a data set."""

import base64
import io
from collections.abc import Sequence

from fmfsd.report.html.markup import Html, element

Grid = Sequence[Sequence[float]]


def inline_image(png: str, alt: str, kind: str = "pixels") -> Html:
    """Return an img element of `png` (base64); `alt`: text description of the image."""
    markup = element("img", src=f"data:image/png;base64,{png}", alt=alt, class_=kind, title=alt)
    return Html(markup.removesuffix("</img>"))


def heatmap(grid: Grid, alt: str, *, low: float, high: float, kind: str = "pixels") -> Html:
    """Return a heat map of `grid`, from dark at `low` to light at `high`."""
    from PIL import Image  # not needed for a page without images

    span = (high - low) or 1.0
    shades = bytes(min(255, max(0, round(255 * (value - low) / span))) for row in grid for value in row)
    image = Image.frombytes("L", (len(grid[0]), len(grid)), shades)
    image.putpalette([part for shade in range(256) for part in _colour(shade / 255)])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return inline_image(base64.b64encode(buffer.getvalue()).decode(), alt, kind)


_STOPS = ((13, 8, 60), (120, 28, 109), (237, 105, 37), (252, 255, 164))
"""Colours of increasing lightness, distinguishable without colour vision."""


def _colour(share: float) -> tuple[int, ...]:
    position = share * (len(_STOPS) - 1)
    first = min(int(position), len(_STOPS) - 2)
    channels = zip(_STOPS[first], _STOPS[first + 1], strict=True)
    return tuple(round(one + (other - one) * (position - first)) for one, other in channels)


def value_range(grids: Sequence[Grid]) -> tuple[float, float]:
    """Return the minimum and maximum of the grids."""
    values = [value for grid in grids for row in grid for value in row]
    return min(values), max(values)
