"""Report page of a search, from its sweep.json and space.yaml."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fmfsd.report.charts.sweep_charts import (
    Content,
    effect_bars,
    importance_bars,
    learning_curve_chart,
    pareto_front_charts,
    result_history_chart,
)
from fmfsd.report.format_numbers import (
    MISSING,
    difference_unit,
    format_difference,
    format_duration,
    format_metric,
    format_value,
)
from fmfsd.report.html.markup import Html, element, join_markup
from fmfsd.report.html.tables import code_block, collapsible, facts_table, paragraphs, table
from fmfsd.report.page import PageSection, render_page

STATE_LABELS = {"finished": "finished", "pruned": "stopped early", "failed": "failed", "asked": "running"}


def render_sweep_page(content: Content, space: str) -> str:
    """Return the page; `space`: text of the search space's file."""
    parts = (
        ("best", "Best", _best(content)),
        ("confirmed", "Confirmation with new seeds", _confirmations(content)),
        ("tested", "Test results", _test_results(content)),
        ("front", "Pareto front", join_markup(*pareto_front_charts(content))),
        (
            "course",
            "Progress",
            join_markup(*filter(None, (result_history_chart(content), learning_curve_chart(content)))),
        ),
        ("importances", "Importance of parameters", join_markup(*map(_importance, content["importances"] or ()))),
        ("placements", "Placements", join_markup(*map(_effects, content["effects"]))),
        ("trials", "Trials", _trials(content)),
        ("failed", "Failed", join_markup(*_failed(content))),
        ("searched", "Search space and options", _search_settings(content, space)),
        (
            "versions",
            "Versions",
            facts_table((name, value or "not installed") for name, value in content["versions"].items()),
        ),
    )
    sections = [PageSection(key, title, body) for key, title, body in parts if body]
    return render_page(f"Search {Path(content['folder']).name}", _lead(content), sections)


def _lead(content: Content) -> str:
    options, counts = content["options"], content["counts"]
    states = [f"{counts[state]} {label}" for state, label in STATE_LABELS.items() if counts[state]]
    repeated = [f"{counts['repeated']} repeated an earlier trial"] if counts["repeated"] else []
    objectives = " and ".join(
        f"{metric} ({mode})" for metric, mode in zip(options["metrics"], options["modes"], strict=True)
    )
    return f"{len(content['trials'])} trials: {', '.join([*states, *repeated])} · {objectives} by {options['search']}"


def _best(content: Content) -> Html:
    best = content["best"]
    if best is None:
        return paragraphs("No trial has finished.")
    several = len(content["options"]["metrics"]) > 1
    note = "The best of the Pareto front by the first metric." if several else ""
    return join_markup(
        paragraphs(f"Trial {best['trial']}. {note}".rstrip()),
        facts_table((name, format_metric(name, value)) for name, value in _ordered_metrics(content, best["metrics"])),
        facts_table((key, format_value(value)) for key, value in best["values"].items()),
        code_block(best["command"]),
    )


def _ordered_metrics(content: Content, metrics: Mapping[str, float]) -> list[tuple[str, float | None]]:
    return [(name, metrics.get(name)) for name in _metric_names(content, [metrics])]


def _metric_names(content: Content, results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the objectives, then those of the other metrics."""
    objectives = content["options"]["metrics"]
    return [*objectives, *sorted({name for metrics in results for name in metrics} - set(objectives))]


def _confirmations(content: Content) -> Html:
    confirmations = content["confirmations"]
    if not confirmations:
        return Html("")
    judged_by = confirmations[0]["judged_by"]
    objectives = [name for name in content["options"]["metrics"] if name in confirmations[0]["metrics"]]
    names = list(dict.fromkeys([judged_by, *objectives]))
    header = ("config", "seeds", *names, f"{judged_by} minus base", "95 % interval", "p")
    rows = [_confirmation_row(each, names) for each in confirmations]
    findings = [f"Trial {each['config']}: {each['finding']}." for each in confirmations if each["finding"]]
    return join_markup(paragraphs(*findings), table(header, rows), paragraphs(_COMPARISON_NOTE))


def _confirmation_row(result: Content, metrics: Sequence[str]) -> list[str]:
    spreads = [_spread(name, result["metrics"].get(name)) for name in metrics]
    p = MISSING if result["p"] is None else f"{result['p']:.2g}"
    return [result["config"], str(len(result["seeds"])), *spreads, *_difference(metrics[0], result["difference"]), p]


_COMPARISON_NOTE = (
    "Mean and standard deviation over seeds that the search did not use. Differences are between runs of the same "
    "seed, intervals are Student's t; p is corrected for the number of compared configs (Holm)."
)


def _spread(metric: str, spread: Mapping[str, float | None] | None) -> str:
    if spread is None:
        return MISSING
    mean, deviation = spread["mean"], spread["deviation"]
    return format_metric(metric, mean) if deviation is None else _plus_minus(metric, mean, deviation)


def _plus_minus(metric: str, mean: float | None, deviation: float) -> str:
    """Format as in `38.33 ± 0.58 %`."""
    return f"{format_metric(metric, mean).removesuffix(' %')} ± {format_metric(metric, deviation)}"


def _difference(metric: str, difference: Mapping[str, Any] | None) -> tuple[str, str]:
    if difference is None or difference["mean"] is None:
        return MISSING, MISSING
    mean, half = difference["mean"], difference["half_width"]
    if half is None:
        return format_difference(metric, mean), MISSING
    ends = (format_difference(metric, mean + side * half) for side in (-1, 1))
    return format_difference(metric, mean), " to ".join(ends)


def _test_results(content: Content) -> Html:
    """Return a table of the trials evaluated on the test set, which are only the winners."""
    results = content["tested"]
    if not results:
        return Html("")
    names = sorted({name for metrics in results.values() for name in metrics})
    rows = [(trial, *(format_metric(name, metrics.get(name)) for name in names)) for trial, metrics in results.items()]
    return table(("trial", *names), rows)


def _importance(importances: Content) -> Html:
    if importances["shares"] is None:
        return paragraphs(f"{importances['metric']}: {importances['reason']}.")
    note = (
        "PED-ANOVA: how far the parameter values of the best tenth (at least five trials) differ from those of all "
        "trials, as shares of all parameters. A choice of few values gets a smaller share than a continuous range."
    )
    return join_markup(
        importance_bars(importances), paragraphs(f"Over {importances['trials']} finished trials. {note}")
    )


def _effects(effects: Content) -> Html:
    method = f"{effects['parameter']}: least squares over {effects['trials']} finished trials, all taps at once"
    note = f"{method}. Lines are 95 % intervals. Other searched parameters are not in the model."
    parts = [element("h3", effects["parameter"]), paragraphs(note)]
    for kind in _EFFECT_HEADERS:
        parts += [effect_bars(effects, kind) or Html(""), _effect_table(effects, kind)]
    header = ("placement", "trials", effects["metric"])
    rows = [_placement(effects["metric"], each) for each in effects["placements"]]
    return join_markup(*parts, collapsible("Each placement", table(header, rows)))


_EFFECT_HEADERS = {
    "taps": ("tap", "without", "with", "effect"),
    "pairs": ("pair", "neither", "second", "first", "both", "interaction"),
}


def _effect_table(effects: Content, kind: str) -> Html:
    """Return a table of the effects with their numbers of trials."""
    if not effects[kind]:
        return Html("")
    metric = effects["metric"]
    rows = [
        (" x ".join(each["taps"]), *map(str, each["counts"]), *_estimate(metric, each["value"], each["error"]))
        for each in effects[kind]
    ]
    *counts, name = _EFFECT_HEADERS[kind]
    return table((*counts, f"{name}, {difference_unit(metric)}", "standard error"), rows)


def _estimate(metric: str, value: float | None, error: float | None) -> tuple[str, str]:
    if value is None:
        return "not identifiable: confounded with other taps", MISSING
    return format_difference(metric, value), MISSING if error is None else format_difference(metric, error).lstrip("+")


def _placement(metric: str, placement: Content) -> tuple[str, str, str]:
    return format_value(placement["taps"]), str(placement["count"]), _spread(metric, placement)


def _trials(content: Content) -> Html:
    """Return a table of all trials, with the best one or the Pareto front highlighted."""
    trials, keys = content["trials"], list(content["space"]["parameters"])
    objectives = content["options"]["metrics"]
    others = _metric_names(content, [trial["metrics"] for trial in trials])[len(objectives) :]
    rows = [_trial_row(trial, objectives, keys, others) for trial in trials]
    front = [number for number, trial in enumerate(trials) if trial["name"] in content["front"]]
    return table(("trial", "state", "epochs", "time", *objectives, *keys, *others), rows, marked=front)


def _trial_row(trial: Content, objectives: Sequence[str], keys: Sequence[str], others: Sequence[str]) -> list[str]:
    cells = [trial["name"], _state(trial), str(trial["epochs"]), format_duration(trial["seconds"])]
    values = [format_value(trial["values"][key]) if key in trial["values"] else "" for key in keys]
    metrics = trial["metrics"]
    first, last = ([format_metric(name, metrics.get(name)) for name in names] for names in (objectives, others))
    return [*cells, *first, *values, *last]


def _state(trial: Content) -> str:
    label = STATE_LABELS[trial["state"]]
    return label if trial["repeats"] is None else f"{label}, repeats {trial['repeats']}"


def _failed(content: Content) -> Iterator[Html]:
    for trial in content["trials"]:
        if trial["state"] == "failed" and trial["repeats"] is None:
            yield element("h3", f"Trial {trial['name']}")
            yield code_block(trial["cause"] or "unknown cause")
            yield collapsible("Command to run this trial alone", code_block(trial["command"]))


def _search_settings(content: Content, space: str) -> Html:
    options = facts_table(
        (name, format_value(value)) for name, value in content["options"].items() if value is not None
    )
    return join_markup(code_block(space), collapsible("Options", options))
