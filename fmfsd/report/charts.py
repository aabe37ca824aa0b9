"""Charts of a page as inline SVG, each with its data as a table under it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from fmfsd.report.markup import Html, element
from fmfsd.report.numbers import NOTHING, is_share, shown_metric, tick_labels, ticks
from fmfsd.report.tables import folded, table

Kind = Literal["best", "plain", "pale"]
Place = tuple[float, float]
WIDTH, HEIGHT = 720, 330
LEFT, RIGHT, TOP, BOTTOM = 76, 28, 12, 48
BACK_TO_FRONT = ("pale", "plain", "best")
LETTER = 6.6
"""About a letter's width in the charts' font, in the charts' own pixels, which are those of the page or smaller."""


@dataclass(frozen=True)
class Axis:
    """What is along it; `percent` of fractions, `whole` of counts."""

    name: str
    percent: bool = False
    whole: bool = False

    @classmethod
    def of(cls, metric: str) -> "Axis":
        return cls(metric, percent=is_share(metric))

    def shown(self, value: float) -> str:
        if self.whole:
            return f"{value:.0f}"
        return f"{100 * value:.2f} %" if self.percent else shown_metric("", value)


@dataclass(frozen=True)
class Point:
    """A labelled place."""

    label: str
    place: Place
    kind: Kind = "plain"


@dataclass(frozen=True)
class Line:
    """A labelled way from place to place."""

    label: str
    places: Sequence[Place]
    kind: Kind = "plain"


@dataclass(frozen=True)
class Bar:
    """A labelled value, with the half width of its interval where that is known."""

    label: str
    value: float
    half_width: float | None = None


@dataclass(frozen=True)
class _Scale:
    """Values along an axis to pixels from `start` to `end`."""

    ticks: list[float]
    start: float
    end: float

    def __call__(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        return self.start + (self.end - self.start) * (value - low) / (high - low)


def plot(title: str, x: Axis, y: Axis, *, points: Sequence[Point] = (), lines: Sequence[Line] = ()) -> Html:
    """Points and lines over two axes: a front, a course, a history. At least one place."""
    places = [point.place for point in points] + [place for line in lines for place in line.places]
    to_x = _Scale(ticks(*_ends([place[0] for place in places]), whole=x.whole), LEFT, WIDTH - RIGHT)
    to_y = _Scale(ticks(*_ends([place[1] for place in places]), whole=y.whole), HEIGHT - BOTTOM, TOP)
    drawn = [
        *_y_grid(y, to_y),
        *_x_grid(x, to_x, HEIGHT),
        *(_polyline(line, to_x, to_y) for line in sorted(lines, key=_depth)),
        *(_circle(point, x, y, to_x, to_y) for point in sorted(points, key=_depth)),
    ]
    rows = [(point.label, x.shown(point.place[0]), y.shown(point.place[1])) for point in points]
    data = [table(("", x.name, y.name), rows)] if rows else []
    return _figure(title, HEIGHT, drawn, [*data, *([_lines_table(x, y, lines)] if lines else [])])


def bars(title: str, axis: Axis, given: Sequence[Bar]) -> Html:
    """A line a bar, from 0; at least one. `half_width` is drawn as a line around the bar's end."""
    ends = [end for bar in given for end in _bar_ends(bar)]
    letters = min(46, max(len(bar.label) for bar in given))
    left = 12 + LETTER * letters
    height = TOP + 26 * len(given) + BOTTOM
    to_x = _Scale(ticks(*_ends([0.0, *ends])), left, WIDTH - RIGHT)
    rows = chain.from_iterable(_bar(bar, TOP + 26 * number, to_x, axis, letters) for number, bar in enumerate(given))
    zero = element("line", x1=to_x(0), x2=to_x(0), y1=TOP, y2=height - BOTTOM, class_="zero")
    data = [(bar.label, axis.shown(bar.value), _shown_width(bar, axis)) for bar in given]
    drawn = [*_x_grid(axis, to_x, height), *rows, zero]
    return _figure(title, height, drawn, [table(("", axis.name, "to each side"), data)])


def _depth(drawn: Point | Line) -> int:
    """What stands out is drawn last."""
    return BACK_TO_FRONT.index(drawn.kind)


def _ends(values: Sequence[float]) -> Place:
    return min(values), max(values)


def _bar_ends(bar: Bar) -> Place:
    return bar.value - (bar.half_width or 0), bar.value + (bar.half_width or 0)


def _shown_width(bar: Bar, axis: Axis) -> str:
    return NOTHING if bar.half_width is None else axis.shown(bar.half_width)


def _figure(title: str, height: float, drawn: Sequence[Html], data: Sequence[Html]) -> Html:
    box = f"0 0 {WIDTH} {height:.0f}"
    svg = element("svg", element("title", title), *drawn, viewBox=box, role="img", aria_label=title)
    return element("figure", element("figcaption", title), svg, folded("Data", *data))


def _y_grid(axis: Axis, to_y: _Scale) -> list[Html]:
    labels = zip(to_y.ticks, tick_labels(to_y.ticks, percent=axis.percent), strict=True)
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f"rotate(-90 14 {middle:.0f})"
    return [
        *(_tick(LEFT, WIDTH - RIGHT, to_y(value), to_y(value)) for value in to_y.ticks),
        *(_label(label, LEFT - 6, to_y(value) + 4, "end") for value, label in labels),
        element("text", axis.name, x=14, y=middle, text_anchor="middle", transform=turned, class_="axis"),
    ]


def _x_grid(axis: Axis, to_x: _Scale, height: float) -> list[Html]:
    labels = zip(to_x.ticks, tick_labels(to_x.ticks, percent=axis.percent), strict=True)
    bottom, middle = height - BOTTOM, (to_x.start + to_x.end) / 2
    return [
        *(_tick(to_x(value), to_x(value), TOP, bottom) for value in to_x.ticks),
        *(_label(label, to_x(value), bottom + 16, "middle") for value, label in labels),
        element("text", axis.name, x=middle, y=height - 10, text_anchor="middle", class_="axis"),
    ]


def _tick(x1: float, x2: float, y1: float, y2: float) -> Html:
    return element("line", x1=x1, x2=x2, y1=y1, y2=y2, class_="grid")


def _label(text: str, x: float, y: float, anchor: str) -> Html:
    return element("text", text, x=x, y=y, text_anchor=anchor)


def _circle(point: Point, x: Axis, y: Axis, to_x: _Scale, to_y: _Scale) -> Html:
    place_x, place_y = point.place
    told = element("title", f"{point.label}: {x.name} {x.shown(place_x)}, {y.name} {y.shown(place_y)}")
    radius = 5.0 if point.kind == "best" else 3.5
    return element("circle", told, cx=to_x(place_x), cy=to_y(place_y), r=radius, class_=point.kind)


def _polyline(line: Line, to_x: _Scale, to_y: _Scale) -> Html:
    """Of one place a dot, which a line would not show."""
    if len(line.places) == 1:
        x, y = line.places[0]
        return element("circle", element("title", line.label), cx=to_x(x), cy=to_y(y), r=2.5, class_=line.kind)
    way = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in line.places)
    return element("polyline", element("title", line.label), points=way, class_=line.kind)


def _lines_table(x: Axis, y: Axis, lines: Sequence[Line]) -> Html:
    """A row a line, a column for each value of x."""
    columns = sorted({place[0] for line in lines for place in line.places})
    rows = [(line.label, *_at(line, columns, y.shown)) for line in lines]
    return table((f"{y.name} by {x.name}", *map(x.shown, columns)), rows)


def _at(line: Line, columns: Sequence[float], shown: Callable[[float], str]) -> list[str]:
    values = dict(line.places)
    return [shown(values[column]) if column in values else "" for column in columns]


def _bar(bar: Bar, top: float, to_x: _Scale, axis: Axis, letters: int) -> list[Html]:
    start, end = sorted((to_x(0), to_x(bar.value)))
    told = element("title", f"{bar.label}: {axis.shown(bar.value)}")
    label = bar.label if len(bar.label) <= letters else f"{bar.label[: letters - 1]}…"
    drawn = [
        element("text", label, x=to_x.start - 8, y=top + 16, text_anchor="end"),
        element("rect", told, x=start, y=top + 5, width=max(end - start, 1.0), height=15, class_="plain"),
    ]
    if bar.half_width is None:
        return drawn
    low, high = map(to_x, _bar_ends(bar))
    return [*drawn, element("line", x1=low, x2=high, y1=top + 12.5, y2=top + 12.5, class_="error")]
