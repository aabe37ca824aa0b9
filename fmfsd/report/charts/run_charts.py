"""Line, scatter and bar charts, each with its data as a table below it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fmfsd.report.charts.render import Spec, chart_placeholder
from fmfsd.report.format_numbers import MISSING, format_metric, is_share
from fmfsd.report.html.markup import Html, element
from fmfsd.report.html.tables import collapsible, table

Kind = Literal["best", "plain", "pale", "series"]
XY = tuple[float, float]
WIDTH, HEIGHT = 400, 220
"""Size of the plot area: two charts fit side by side, and one is legible on a telephone."""
MAX_LINE_POINTS = 400
"""Most points of a line. A longer line is reduced to the minimum and the maximum of half as many equal parts."""
MAX_CHART_POINTS = 20_000
"""Most points of all lines of a chart, to limit the size of the page."""
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 4], [10, 3], [1, 3], [6, 2, 1, 2, 1, 2])
COLOURS = [f"var(--series-{number})" for number in range(len(DASHES))]


@dataclass(frozen=True)
class Axis:
    """Name and number format of an axis: `percent` for fractions, `integer` for counts."""

    name: str
    percent: bool = False
    integer: bool = False

    @classmethod
    def for_metric(cls, metric: str) -> "Axis":
        return cls(metric, percent=is_share(metric))

    def format(self, value: float) -> str:
        if self.integer:
            return f"{value:.0f}"
        return f"{100 * value:.2f} %" if self.percent else format_metric("", value)


@dataclass(frozen=True)
class Point:
    """A labelled point."""

    label: str
    xy: XY
    kind: Kind = "plain"


@dataclass(frozen=True)
class Line:
    """A labelled line; `band`: the lowest and highest value at each point.

    Lines of the kind `series` differ in colour and dashes and are named in a legend.
    """

    label: str
    points: Sequence[XY]
    kind: Kind = "plain"
    band: Sequence[XY] = ()


@dataclass(frozen=True)
class Bar:
    """A labelled value, with the half width of its confidence interval if known."""

    label: str
    value: float
    half_width: float | None = None


def plot(title: str, x: Axis, y: Axis, *, points: Sequence[Point] = (), lines: Sequence[Line] = ()) -> Html:
    """Return a chart of points and lines, at least one point in all."""
    limit = min(MAX_LINE_POINTS, max(10, MAX_CHART_POINTS // max(1, len(lines))))
    lines = [downsample(line, limit) for line in lines]
    names = [line.label for line in lines if line.kind == "series"]
    coordinates = [*(point.xy for point in points), *(xy for line in lines for xy in line.points)]
    layers = [
        *(_band(line, names) for line in lines if line.band),
        *_lines(lines, names),
        *_points([*points, *_single_points(lines)], x, y),
        *_labels(points, [xy[0] for xy in coordinates]),
    ]
    axes = {"x": _axis(x, "x", [xy[0] for xy in coordinates]), "y": _axis(y, "y", [xy[1] for xy in coordinates])}
    spec = {"width": WIDTH, "height": HEIGHT, "encoding": axes, "layer": layers}
    rows = [(point.label, x.format(point.xy[0]), y.format(point.xy[1])) for point in points]
    data = [table(("", x.name, y.name), rows)] if rows else []
    return _figure(title, spec, [*data, *([_lines_table(x, y, lines)] if lines else [])])


def bar_chart(title: str, axis: Axis, values: Sequence[Bar]) -> Html:
    """Return a horizontal bar chart, at least one bar. `half_width` is drawn as an error bar."""
    labels = [bar.label for bar in values]
    y = {"field": "label", "type": "nominal", "sort": labels, "title": None, "axis": {"labelLimit": 200}}
    x = _axis(axis, "x", [bar.value for bar in values])
    rows = [
        {"label": bar.label, "x": bar.value, "description": f"{bar.label}: {axis.format(bar.value)}"} for bar in values
    ]
    intervals = [
        {"label": bar.label, "x": bar.value - bar.half_width, "x2": bar.value + bar.half_width}
        for bar in values
        if bar.half_width is not None
    ]
    bar_layer = _layer({"type": "bar", "color": "var(--plain)"}, rows, x=x, y=y, description={"field": "description"})
    interval_layer = _layer({"type": "rule", "color": "var(--ink)", "size": 1.5}, intervals, x=x, y=y, x2=_X2)
    spec = {
        "width": WIDTH - 100,
        "height": {"step": 24},
        "layer": [bar_layer, *([interval_layer] if intervals else [])],
    }
    data = [(bar.label, axis.format(bar.value), _half_width_text(bar, axis)) for bar in values]
    return _figure(title, spec, [table(("", axis.name, "half width of the interval"), data)])


_X2 = {"field": "x2"}


def downsample(line: Line, max_points: int = MAX_LINE_POINTS) -> Line:
    """Return the line with about `max_points` points, ends and extremes included; the same line if it has no more."""
    if len(line.points) <= max_points:
        return line
    size = -(-len(line.points) // (max_points // 2))
    selected = set()
    for start in range(0, len(line.points), size):
        part = range(start, min(start + size, len(line.points)))
        selected |= {
            min(part, key=lambda index: line.points[index][1]),
            max(part, key=lambda index: line.points[index][1]),
        }
    indices = sorted({0, *selected, len(line.points) - 1})
    band = [line.band[index] for index in indices] if line.band else ()
    return Line(line.label, [line.points[index] for index in indices], line.kind, band)


def _axis(axis: Axis, channel: str, values: Sequence[float]) -> Spec:
    """Return the encoding of an axis. It starts at 0 for bars only."""
    large = max(map(abs, values), default=0.0) >= LARGE
    number: Spec = {"format": "~%" if axis.percent else "~s" if large else "d" if axis.integer else ".6~g"}
    ticks = {"values": _integers(values)} if axis.integer and max(values) - min(values) <= MAX_TICKS else {}
    return {"field": channel, "type": "quantitative", "title": axis.name, "axis": {**number, **ticks}, "scale": _SCALE}


LARGE = 1e4
"""Numbers from here on have a prefix: 20k."""
MAX_TICKS = 10


def _integers(values: Sequence[float]) -> list[int]:
    """Return the integers in the range of the values: Vega would add ticks between them and round their labels."""
    return list(range(math.ceil(min(values)), math.floor(max(values)) + 1))


_SCALE = {"zero": False, "nice": True}


def _layer(mark: Spec, rows: Sequence[Mapping[str, Any]], **encoding: Spec) -> Spec:
    return {"data": {"values": list(rows)}, "mark": mark, "encoding": encoding}


def _band(line: Line, names: Sequence[str]) -> Spec:
    rows = [{"x": x, "low": low, "high": high} for (x, _), (low, high) in zip(line.points, line.band, strict=True)]
    mark = {"type": "area", "opacity": 0.18, "color": _colour(line, names), "aria": False}
    low = {"field": "low", "type": "quantitative"}
    return _layer(mark, rows, y=low, y2={"field": "high"})


def _colour(line: Line, names: Sequence[str]) -> str:
    return COLOURS[names.index(line.label) % len(COLOURS)] if line.kind == "series" else f"var(--{line.kind})"


def _lines(lines: Sequence[Line], names: Sequence[str]) -> list[Spec]:
    """Return one layer per kind, the highlighted kind last (on top)."""
    layers = []
    for kind, width, opacity in (("pale", 1.2, 1.0), ("plain", 1.5, 0.5), ("series", 1.8, 1.0), ("best", 2.5, 1.0)):
        rows = [
            {"x": x, "y": y, "name": line.label, "number": number, "at": at}
            for number, line in enumerate(lines)
            if line.kind == kind
            for at, (x, y) in enumerate(line.points)
        ]
        if rows:
            mark = {"type": "line", "strokeWidth": width, "opacity": opacity, "color": f"var(--{kind})"}
            channels = (
                _series_channels(names) if kind == "series" else {"detail": {"field": "number", "type": "nominal"}}
            )
            layers.append(_layer(mark, rows, order={"field": "at"}, description={"field": "name"}, **channels))
    return layers


def _series_channels(names: Sequence[str]) -> dict[str, Spec]:
    """Return colours and dashes by name, with one legend."""
    times = -(-len(names) // len(DASHES))
    scales = {"color": (COLOURS * times)[: len(names)], "strokeDash": (list(DASHES) * times)[: len(names)]}
    longest = max(map(len, names))
    columns = max(1, min(4, LEGEND_LETTERS // (longest + 6)))
    options = {"title": None, "symbolType": "stroke", "symbolSize": 500, "labelLimit": WIDTH, "columns": columns}
    legend = options if len(names) > 1 else None
    return {
        channel: {
            "field": "name",
            "type": "nominal",
            "scale": {"domain": list(names), "range": values},
            "legend": legend,
        }
        for channel, values in scales.items()
    }


LEGEND_LETTERS = 58
"""Letters that fit into one line of a legend below a chart."""


def _single_points(lines: Sequence[Line]) -> list[Point]:
    """Return the points of lines with a single point, which would be invisible as lines."""
    return [Point(line.label, line.points[0], line.kind) for line in lines if len(line.points) == 1]


def _points(points: Sequence[Point], x: Axis, y: Axis) -> list[Spec]:
    layers = []
    for kind, size in (("pale", 30), ("plain", 36), ("series", 36), ("best", 80)):
        rows = [
            {"x": point.xy[0], "y": point.xy[1], "description": _description(point, x, y)}
            for point in points
            if point.kind == kind
        ]
        if rows:
            mark = {"type": "circle", "size": size, "opacity": 1, "color": f"var(--{kind})"}
            layers.append(_layer(mark, rows, description={"field": "description"}))
    return layers


def _labels(points: Sequence[Point], across: Sequence[float]) -> list[Spec]:
    """Label up to MAX_POINT_LABELS highlighted points, towards the middle; labels of one position are joined."""
    labels_by_position: dict[XY, list[str]] = {}
    for point in points:
        if point.kind == "best":
            labels_by_position.setdefault(point.xy, []).append(point.label)
    if not 0 < len(labels_by_position) <= MAX_POINT_LABELS:
        return []
    middle = (min(across) + max(across)) / 2
    sides = {"left": [], "right": []}  # type: dict[str, list[Spec]]
    for xy, labels in labels_by_position.items():
        row = {"x": xy[0], "y": xy[1], "text": ", ".join(dict.fromkeys(labels))}
        sides["right" if xy[0] > middle else "left"].append(row)
    return [_text(side, rows) for side, rows in sides.items() if rows]


MAX_POINT_LABELS = 8


def _text(side: str, rows: Sequence[Spec]) -> Spec:
    mark = {"type": "text", "align": side, "dx": 9 if side == "left" else -9, "dy": -9, "color": "var(--ink)"}
    return _layer({**mark, "aria": False}, rows, text={"field": "text"})


def _description(point: Point, x: Axis, y: Axis) -> str:
    return f"{point.label}: {x.name} {x.format(point.xy[0])}, {y.name} {y.format(point.xy[1])}"


def _half_width_text(bar: Bar, axis: Axis) -> str:
    return MISSING if bar.half_width is None else axis.format(bar.half_width)


def _figure(title: str, spec: Spec, data: Sequence[Html]) -> Html:
    return element(
        "figure", element("figcaption", title), chart_placeholder(title, spec), collapsible("Numbers", *data)
    )


def _lines_table(x: Axis, y: Axis, lines: Sequence[Line]) -> Html:
    """Return a table with one row per x and one column per line; with many lines, one row per line."""
    xs = sorted({point[0] for line in lines for point in line.points})
    values = [dict(line.points) for line in lines]
    if len(lines) > len(DASHES):
        rows = [(line.label, *_cells(each, xs, y)) for line, each in zip(lines, values, strict=True)]
        return table((f"{y.name} by {x.name}", *map(x.format, xs)), rows)
    rows = [(x.format(value), *(_cells(each, [value], y)[0] for each in values)) for value in xs]
    return table((x.name, *(line.label for line in lines)), rows)


def _cells(values: Mapping[float, float], xs: Sequence[float], y: Axis) -> list[str]:
    return [y.format(values[x]) if x in values else "" for x in xs]
