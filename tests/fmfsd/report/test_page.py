"""HTML pages: self-contained, well-formed, without foreign scripts, and with every number of a chart in a table."""

import base64
import hashlib
import html
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fmfsd.report.charts.render import insert_charts
from fmfsd.report.charts.run_charts import MAX_LINE_POINTS, Axis, Bar, Line, Point, bar_chart, downsample, plot
from fmfsd.report.format_numbers import format_difference, format_duration, format_metric, format_value
from fmfsd.report.html.markup import Html, element
from fmfsd.report.html.tables import table
from fmfsd.report.page import PageSection, render_page

HOSTILE = "\"><script>alert(1)</script><img src=x onerror='alert(1)'>\x1b\udc80"
MACS = Axis("cost/train_macs")
TOP1 = Axis.for_metric("valid/deepest_top1")

pytestmark = pytest.mark.usefixtures("charts_in_process")


class Tags(HTMLParser):
    """Parser that records the open tags and all tag names; fails if a tag is closed that is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def chart(text: str) -> ElementTree.Element:
    """Return the only chart in `text`."""
    (svg,) = re.findall(r"<svg.*?</svg>", insert_charts(text), re.DOTALL)
    return ElementTree.fromstring(svg)


def texts(svg: ElementTree.Element) -> list[str | None]:
    return [each.text for each in svg.iter("text")]


def test_a_page_is_well_formed_and_escapes_all_values() -> None:
    hostile_bars = bar_chart(HOSTILE, Axis(HOSTILE), [Bar(HOSTILE, 1.0, 0.5)])
    hostile_plot = plot(HOSTILE, Axis(HOSTILE), TOP1, points=[Point(HOSTILE, (1, 1))], lines=[Line(HOSTILE, [(1, 1)])])
    content = Html(table((HOSTILE,), [(HOSTILE,)]) + hostile_bars + hostile_plot)
    text = render_page(HOSTILE, HOSTILE, [PageSection("key", HOSTILE, content)])
    tags = Tags(text)
    assert tags.open == []
    assert not tags.names & {"img", "link", "iframe"}
    assert text.count("<script>") == 1
    text.encode()


def test_a_page_loads_nothing_from_other_addresses() -> None:
    text = render_page("Title", "Lead", [PageSection("a", "A", element("p", "text"))])
    assert "default-src 'none'" in text
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html.unescape(text)
    assert not re.search(r"https?:|url\(|@import", text)
    assert "prefers-color-scheme: dark" in text


def test_a_chart_that_cannot_be_drawn_is_omitted_but_its_table_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "fmfsd.report.charts.render.render_in_child", lambda specs: [{"error": f"no <V8> {HOSTILE}"}] * len(specs)
    )
    charts = [bar_chart(str(number), Axis("change"), [Bar("up", 2.125)]) for number in range(2)]
    text = render_page("", "", [PageSection("a", "A", Html("".join(charts)))])
    assert (
        text.count("This chart is omitted: no &lt;V8&gt; ")
        == text.count("<td>2.125</td>") + text.count(">2.125</td>")
        == 2
    )
    assert Tags(text).open == []
    assert not {"svg", "vega-lite", "img"} & Tags(text).names


def test_attributes_are_escaped() -> None:
    assert element("a", "b", href='"<', class_="c") == '<a href="&quot;&lt;" class="c">b</a>'


def marks(svg: ElementTree.Element, kind: str) -> list[ElementTree.Element]:
    return [each for each in svg.iter() if each.get("aria-roledescription") == kind]


def position(mark: ElementTree.Element) -> tuple[float, float]:
    x, y = re.findall(r"-?[0-9.]+", mark.attrib["transform"])
    return float(x), float(y)


def test_a_chart_has_titles_for_itself_and_its_axes() -> None:
    svg = chart(plot("A front", MACS, TOP1, points=[Point("0001", (6e8, 0.61)), Point("0002", (7e8, 0.68))]))
    assert (svg.get("aria-label"), svg.findtext("title"), svg.get("role")) == ("A front", "A front", "img")
    assert {"cost/train_macs", "valid/deepest_top1", "600M", "62%"} <= set(texts(svg))
    assert [each.findtext("title") for each in marks(svg, "circle")] == [
        "0001: cost/train_macs 600 M, valid/deepest_top1 61.00 %",
        "0002: cost/train_macs 700 M, valid/deepest_top1 68.00 %",
    ]


def test_positions_are_to_scale() -> None:
    """The middle point is half-way between the others, and larger values are higher."""
    points = [Point(str(x), (x, y)) for x, y in ((0, 0.0), (5, 0.5), (10, 1.0))]
    low, middle, high = map(position, marks(chart(plot("", Axis("x"), Axis("y"), points=points)), "circle"))
    assert middle == pytest.approx([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2], abs=0.01)
    assert high[1] < low[1]


def test_highlighted_lines_are_drawn_last() -> None:
    lines = [Line("best", [(1, 1), (2, 2)], "best"), Line("pale", [(1, 2), (2, 2)], "pale")]
    lines_drawn = marks(chart(plot("", Axis("x"), Axis("y"), lines=lines)), "line mark")
    assert [each.findtext("title") for each in lines_drawn] == ["pale", "best"]


def test_series_differ_in_colour_or_dashes_and_have_labels_and_bands() -> None:
    points = [(1.0, 0.2), (2.0, 0.4)]
    lines = [Line(f"head{number}", points, "series", [(0.1, 0.3), (0.3, 0.5)]) for number in range(10)]
    svg = chart(plot("", Axis("epoch", integer=True), TOP1, lines=lines))
    lines_drawn = marks(svg, "line mark")
    assert {each.attrib["stroke"] for each in lines_drawn} == {f"var(--series-{number})" for number in range(8)}
    assert len({(each.attrib["stroke"], each.get("stroke-dasharray")) for each in lines_drawn}) == 8
    assert {line.label for line in lines} <= set(texts(svg))
    assert sum("fill-opacity" in each.attrib or each.get("opacity") == "0.18" for each in svg.iter()) >= len(lines)


def test_long_lines_are_thinned_but_their_ends_and_extremes_stay() -> None:
    points = [(float(x), float((x * 7919) % 10_007)) for x in range(10_000)]
    line = downsample(Line("long", points))
    assert len(line.points) <= MAX_LINE_POINTS + 2
    lowest, highest = min(points, key=lambda at: at[1]), max(points, key=lambda at: at[1])
    assert {points[0], points[-1], lowest, highest} <= set(line.points)
    assert downsample(Line("short", points[:10])).points == points[:10]


def test_every_number_of_a_chart_is_also_in_a_table() -> None:
    text = plot(
        "", Axis("epoch", integer=True), TOP1, lines=[Line("0001", [(1, 0.5), (2, 0.625)]), Line("0002", [(1, 0.25)])]
    )
    rows = re.findall(r"<tr>(.*?)</tr>", text)
    assert [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows] == [
        ["epoch", "0001", "0002"],
        ["1", "50.00 %", "25.00 %"],
        ["2", "62.50 %", ""],
    ]


def test_bars_start_at_0_and_have_their_intervals() -> None:
    svg = chart(bar_chart("", Axis("change"), [Bar("up", 2.0, 1.0), Bar("down", -1.0)]))
    up, down = ([float(each) for each in re.findall(r"-?[0-9.]+", mark.attrib["d"])] for mark in marks(svg, "bar"))
    assert [mark.findtext("title") for mark in marks(svg, "bar")] == ["up: 2", "down: -1"]
    up_ends, down_ends = ({each[0], each[0] + each[2]} for each in (up, down))
    assert len(up_ends & down_ends) == 1, "both start at 0"
    assert len(marks(svg, "rule mark")) == 1


@pytest.mark.parametrize(
    ("metric", "value", "expected"),
    [
        ("valid/deepest_top1", 0.38333, "38.33 %"),
        ("cost/train_macs", 5.56e8, "556 M"),
        ("valid/loss", 1.23456, "1.235"),
        ("valid/loss", None, "–"),
        ("valid/loss", float("nan"), "nan"),
    ],
)
def test_metrics_are_shown_in_their_units(metric: str, value: float | None, expected: str) -> None:
    assert format_metric(metric, value) == expected


def test_differences_have_a_sign() -> None:
    assert [format_difference("a_top1", 0.0123), format_difference("loss", -0.5)] == ["+1.23", "-0.5"]


def test_values_are_shown_without_brackets() -> None:
    assert [format_value(each) for each in (["stage1", "stage2"], 1e-05, True, "deepest", [])] == [
        *("stage1, stage2", "1e-05", "true", "deepest", "none")
    ]


def test_durations_have_suitable_units() -> None:
    assert [format_duration(each) for each in (5.4, 125, 7300)] == ["5 s", "2 min 5 s", "2 h 1 min"]


def test_only_columns_of_numbers_are_right_aligned() -> None:
    assert table(("trial", "top1"), [("0001", "71.20 %")]).count('class="number"') == 2


def test_the_style_sheet_is_part_of_the_package() -> None:
    import fmfsd.report

    assert (Path(fmfsd.report.__file__).parent / "page.css").is_file()
