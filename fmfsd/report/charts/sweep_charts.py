"""Charts of a search, from the contents of its sweep.json."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fmfsd.report.charts.run_charts import Axis, Bar, Kind, Line, Point, bar_chart, plot
from fmfsd.report.format_numbers import is_share
from fmfsd.report.html.markup import Html

Content = Mapping[str, Any]


def result_history_chart(content: Content) -> Html | None:
    """Return a chart of the finished trials' results in the order of the trials, and of the best result so far."""
    metric, mode = content["options"]["metrics"][0], content["options"]["modes"][0]
    finished = [trial for trial in _runs(content, "finished") if trial["metrics"].get(metric) is not None]
    if not finished:
        return None
    points = [Point(trial["name"], (int(trial["name"]), trial["metrics"][metric])) for trial in finished]
    results = [point.xy for point in points]
    best = Line("best so far", list(_best_so_far(results, max if mode == "max" else min)), "best")
    title, trial = "Result by trial, and the best so far", Axis("trial", integer=True)
    return plot(title, trial, Axis.for_metric(metric), points=points, lines=[best])


def _best_so_far(
    results: Sequence[tuple[float, float]], better: Callable[[float, float], float]
) -> Iterator[tuple[float, float]]:
    """Yield a step line of the best value so far."""
    best = results[0][1]
    for x, y in results:
        yield x, best
        best = better(best, y)
        yield x, best


def learning_curve_chart(content: Content) -> Html | None:
    """Return a chart of the first metric over epochs: the best trial highlighted, stopped and failed ones pale."""
    metric, best = content["options"]["metrics"][0], content["best"]
    lines = []
    for trial in content["trials"]:
        results = [(report["epoch"], report[metric]) for report in trial["reports"] if report.get(metric) is not None]
        if trial["repeats"] is None and results:
            lines.append(Line(trial["name"], results, _kind(trial, best)))
    return plot(_CURVES, Axis("epoch", integer=True), Axis.for_metric(metric), lines=lines) if lines else None


_CURVES = "Learning curves: the best trial is highlighted, pale trials were stopped early or failed"


def _kind(trial: Content, best: Content | None) -> Kind:
    if best is not None and trial["name"] == best["trial"]:
        return "best"
    return "plain" if trial["state"] in ("finished", "asked") else "pale"


def pareto_front_charts(content: Content) -> list[Html]:
    """Return a chart of the first metric over each other one; trials on the Pareto front are highlighted."""
    first, *others = content["options"]["metrics"]
    return [chart for other in others if (chart := _front(content, other, first))]


def _front(content: Content, x: str, y: str) -> Html | None:
    front = set(content["front"])
    results = [
        (trial["name"], (trial["metrics"][x], trial["metrics"][y]))
        for trial in _runs(content, "finished")
        if trial["metrics"].get(x) is not None and trial["metrics"].get(y) is not None
    ]
    points = [Point(name, xy, "best" if name in front else "plain") for name, xy in results]
    line = Line("front", sorted(point.xy for point in points if point.kind == "best"), "pale")
    return (
        plot(f"{y} over {x}", Axis.for_metric(x), Axis.for_metric(y), points=points, lines=[line]) if points else None
    )


def importance_bars(importances: Content) -> Html:
    """Return a bar chart of the importance of each parameter for one metric."""
    values = [Bar(name, share) for name, share in importances["shares"].items()]
    return bar_chart(f"Importance for {importances['metric']}", Axis("share", percent=True), values)


def effect_bars(effects: Content, kind: str) -> Html | None:
    """Return a bar chart of the effects of taps or pairs with 95 % intervals; for an accuracy in percentage points."""
    is_in_points = is_share(effects["metric"])
    factor = 100 if is_in_points else 1
    values = [
        Bar(" x ".join(each["taps"]), factor * each["value"], _times(factor, each["half_width"]))
        for each in effects[kind]
        if each["value"] is not None
    ]
    axis = Axis(f"change of {effects['metric']}{', percentage points' if is_in_points else ''}")
    return bar_chart(f"{_TITLES[kind]} on {effects['metric']}", axis, values) if values else None


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value


_TITLES = {"taps": "Effect of each tap", "pairs": "Interaction of each pair of taps"}


def _runs(content: Content, state: str) -> list[Content]:
    """Return the trials in `state`, without those that repeat another trial."""
    return [trial for trial in content["trials"] if trial["state"] == state and trial["repeats"] is None]
