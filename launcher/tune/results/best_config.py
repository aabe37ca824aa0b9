"""The best trial's config, as a file to be launched."""

import shlex
from typing import Any

import yaml

from fmfsd.config import dump_given
from fmfsd.config.strict_yaml import parse
from fmfsd.report.format_numbers import shown_duration, shown_metric
from launcher.run_dir.sweep_dir import SweepDir
from launcher.tune.records.history import Trial


def best_config(sweep: SweepDir, trial: Trial, metric: str, *, held_out: int) -> str:
    """As given, so without what a method means, and without what the search itself has set in its base config.

    That are the `held_out` samples that it chose by (0: they are the user's own wish, and stay held out), and that no
    trial looks at the test set. Raises as `load_config` does.
    """
    content = parse(dump_given(str(sweep.config), trial.overrides), "").content
    search_only = [*(["data.valid"] if held_out else []), "train.evaluate_test"]
    left_out = [f"{key} ({taken})" for key in search_only if (taken := _taken(content, key)) is not None]
    result = f"{metric} {shown_metric(metric, trial.metrics.get(metric))}"
    launch = shlex.join(["fmfsd-launch", str(sweep.best)])
    lines = [f"{launch} · {shown_duration(trial.seconds)} as trial {trial.name} of a search · {result}"]
    if left_out:
        lines.append(f"Without what only the search needed: {', '.join(left_out)}.")
    comment = "".join(f"# {_one_line(line)}\n" for line in lines)
    return comment + str(yaml.safe_dump(content, sort_keys=False, default_flow_style=None))


def _taken(content: dict[str, Any], dotted: str) -> Any:
    """Take the key out, and its section with it if nothing else is in there. The value as text; None without it."""
    section, _, key = dotted.rpartition(".")
    inside = content.get(section, {})
    if key not in inside:
        return None
    value = yaml.safe_dump(inside.pop(key)).split("\n")[0]
    if not inside:
        del content[section]
    return value


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)
