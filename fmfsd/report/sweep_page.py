"""A search's page, from what its sweep.json and space.yaml hold."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fmfsd.report.charts.sweep_charts import Content, course, curves, effect_bars, fronts, importance_bars
from fmfsd.report.format_numbers import (
    NOTHING,
    shown_difference,
    shown_duration,
    shown_metric,
    shown_value,
    unit_of_differences,
)
from fmfsd.report.html.markup import Html, element, joined
from fmfsd.report.html.tables import code, folded, pairs, paragraphs, table
from fmfsd.report.page import Section, page

STATES = {"finished": "finished", "pruned": "stopped early", "failed": "failed", "asked": "under way"}


def sweep_page(content: Content, space: str) -> str:
    """`space` is the search space's file."""
    parts = (
        ("best", "Best", _best(content)),
        ("confirmed", "More than noise?", _confirmed(content)),
        ("tested", "On the test set", _tested(content)),
        ("front", "Between the metrics", joined(*fronts(content))),
        ("course", "Course", joined(*filter(None, (course(content), curves(content))))),
        ("importances", "What decides", joined(*map(_importance, content["importances"] or ()))),
        ("placements", "Placements", joined(*map(_effects, content["effects"]))),
        ("trials", "Trials", _trials(content)),
        ("failed", "Failed", joined(*_failed(content))),
        ("searched", "What was searched", _searched(content, space)),
        (
            "versions",
            "Versions",
            pairs((name, value or "not installed") for name, value in content["versions"].items()),
        ),
    )
    sections = [Section(key, title, inside) for key, title, inside in parts if inside]
    return page(f"Search {Path(content['folder']).name}", _lead(content), sections)


def _lead(content: Content) -> str:
    options, counts = content["options"], content["counts"]
    states = [f"{counts[state]} {word}" for state, word in STATES.items() if counts[state]]
    repeated = [f"{counts['repeated']} repeated an earlier one"] if counts["repeated"] else []
    aims = " and ".join(f"{metric} ({mode})" for metric, mode in zip(options["metrics"], options["modes"], strict=True))
    return f"{len(content['trials'])} trials: {', '.join([*states, *repeated])} · {aims} by {options['search']}"


def _best(content: Content) -> Html:
    best = content["best"]
    if best is None:
        return paragraphs("No trial has finished.")
    several = len(content["options"]["metrics"]) > 1
    note = "Of the front, the one that is best by the first metric." if several else ""
    return joined(
        paragraphs(f"Trial {best['trial']}. {note}".rstrip()),
        pairs((name, shown_metric(name, value)) for name, value in _searched_first(content, best["metrics"])),
        pairs((key, shown_value(value)) for key, value in best["values"].items()),
        code(best["command"]),
    )


def _searched_first(content: Content, metrics: Mapping[str, float]) -> list[tuple[str, float | None]]:
    return [(name, metrics.get(name)) for name in _metric_names(content, [metrics])]


def _metric_names(content: Content, found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those that are searched for, then the others."""
    asked = content["options"]["metrics"]
    return [*asked, *sorted({name for metrics in found for name in metrics} - set(asked))]


def _confirmed(content: Content) -> Html:
    found = content["confirmations"]
    if not found:
        return Html("")
    judged_by = found[0]["judged_by"]
    known = [name for name in content["options"]["metrics"] if name in found[0]["metrics"]]
    names = list(dict.fromkeys([judged_by, *known]))
    header = ("config", "seeds", *names, f"{judged_by} to base", "95 % interval", "p")
    rows = [_confirmed_row(each, names) for each in found]
    findings = [f"Trial {each['config']}: {each['finding']}." for each in found if each["finding"]]
    return joined(paragraphs(*findings), table(header, rows), paragraphs(_HOW_COMPARED))


def _confirmed_row(found: Content, metrics: Sequence[str]) -> list[str]:
    spreads = [_spread(name, found["metrics"].get(name)) for name in metrics]
    p = NOTHING if found["p"] is None else f"{found['p']:.2g}"
    return [found["config"], str(len(found["seeds"])), *spreads, *_difference(metrics[0], found["difference"]), p]


_HOW_COMPARED = (
    "Mean and standard deviation over seeds that the search has not seen. Differences are between runs of the same "
    "seed, their intervals Student's; p is corrected after Holm for the number of configs that are compared."
)


def _spread(metric: str, spread: Mapping[str, float | None] | None) -> str:
    if spread is None:
        return NOTHING
    mean, deviation = spread["mean"], spread["deviation"]
    return shown_metric(metric, mean) if deviation is None else _plus_minus(metric, mean, deviation)


def _plus_minus(metric: str, mean: float | None, deviation: float) -> str:
    """`38.33 ± 0.58 %`."""
    return f"{shown_metric(metric, mean).removesuffix(' %')} ± {shown_metric(metric, deviation)}"


def _difference(metric: str, difference: Mapping[str, Any] | None) -> tuple[str, str]:
    if difference is None or difference["mean"] is None:
        return NOTHING, NOTHING
    mean, half = difference["mean"], difference["half_width"]
    if half is None:
        return shown_difference(metric, mean), NOTHING
    ends = (shown_difference(metric, mean + side * half) for side in (-1, 1))
    return shown_difference(metric, mean), " to ".join(ends)


def _tested(content: Content) -> Html:
    """Winners alone are looked at there."""
    found = content["tested"]
    if not found:
        return Html("")
    names = sorted({name for metrics in found.values() for name in metrics})
    rows = [(trial, *(shown_metric(name, metrics.get(name)) for name in names)) for trial, metrics in found.items()]
    return table(("trial", *names), rows)


def _importance(found: Content) -> Html:
    if found["shares"] is None:
        return paragraphs(f"{found['metric']}: {found['reason']}.")
    how = (
        "How far the values of the best tenth (at least five) are from those of all, by PED-ANOVA, as shares of all "
        "parameters. A choice of few values comes out smaller than a range, where the best can stand closer together."
    )
    return joined(importance_bars(found), paragraphs(f"Over {found['trials']} finished trials. {how}"))


def _effects(found: Content) -> Html:
    counted = f"{found['parameter']}: least squares over {found['trials']} finished trials, all taps at once"
    note = f"{counted}. Lines are 95 % intervals. What else was searched is not in the model."
    parts = [element("h3", found["parameter"]), paragraphs(note)]
    for kind in _EFFECT_HEADERS:
        parts += [effect_bars(found, kind) or Html(""), _effect_table(found, kind)]
    header = ("placement", "trials", found["metric"])
    rows = [_placement(found["metric"], each) for each in found["placements"]]
    return joined(*parts, folded("Each placement", table(header, rows)))


_EFFECT_HEADERS = {
    "taps": ("tap", "without", "with", "effect"),
    "pairs": ("pair", "neither", "second", "first", "both", "interaction"),
}


def _effect_table(found: Content, kind: str) -> Html:
    """With the numbers of trials."""
    if not found[kind]:
        return Html("")
    metric = found["metric"]
    rows = [
        (" x ".join(each["taps"]), *map(str, each["counts"]), *_estimate(metric, each["value"], each["error"]))
        for each in found[kind]
    ]
    *counts, what = _EFFECT_HEADERS[kind]
    return table((*counts, f"{what}, {unit_of_differences(metric)}", "standard error"), rows)


def _estimate(metric: str, value: float | None, error: float | None) -> tuple[str, str]:
    if value is None:
        return "can't be told from the other taps", NOTHING
    return shown_difference(metric, value), NOTHING if error is None else shown_difference(metric, error).lstrip("+")


def _placement(metric: str, found: Content) -> tuple[str, str, str]:
    return shown_value(found["taps"]), str(found["count"]), _spread(metric, found)


def _trials(content: Content) -> Html:
    """The best or the front stand out."""
    trials, keys = content["trials"], list(content["space"]["parameters"])
    asked = content["options"]["metrics"]
    others = _metric_names(content, [trial["metrics"] for trial in trials])[len(asked) :]
    rows = [_trial_row(trial, asked, keys, others) for trial in trials]
    front = [number for number, trial in enumerate(trials) if trial["name"] in content["front"]]
    return table(("trial", "state", "epochs", "time", *asked, *keys, *others), rows, marked=front)


def _trial_row(trial: Content, asked: Sequence[str], keys: Sequence[str], others: Sequence[str]) -> list[str]:
    about = [trial["name"], _state(trial), str(trial["epochs"]), shown_duration(trial["seconds"])]
    values = [shown_value(trial["values"][key]) if key in trial["values"] else "" for key in keys]
    wanted, further = ([shown_metric(name, trial["metrics"].get(name)) for name in names] for names in (asked, others))
    return [*about, *wanted, *values, *further]


def _state(trial: Content) -> str:
    word = STATES[trial["state"]]
    return word if trial["repeats"] is None else f"{word}, as {trial['repeats']}"


def _failed(content: Content) -> Iterator[Html]:
    for trial in content["trials"]:
        if trial["state"] == "failed" and trial["repeats"] is None:
            yield element("h3", f"Trial {trial['name']}")
            yield code(trial["cause"] or "no cause is known")
            yield folded("To run it by itself", code(trial["command"]))


def _searched(content: Content, space: str) -> Html:
    options = pairs((name, shown_value(value)) for name, value in content["options"].items() if value is not None)
    return joined(code(space), folded("Options", options))
