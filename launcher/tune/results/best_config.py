"""The config of the best trial, as a file for `fmfsd-launch`."""

import shlex
from typing import Any

import yaml

from fmfsd.config import dump_explicit
from fmfsd.config.strict_yaml import parse_yaml
from fmfsd.report.format_numbers import format_duration, format_metric
from launcher.run_dir.sweep_dir import SweepDir
from launcher.tune.records.history import Trial


def build_best_config(sweep: SweepDir, trial: Trial, metric: str, *, held_out: int) -> str:
    """Return the explicitly set keys of the trial's config, as YAML, without those that the sweep has set itself.

    The sweep sets `data.valid` to `held_out` samples (0: the user has set it, and it stays) and disables the
    evaluation of the test set. Raise the errors of `load_config`.
    """
    content = parse_yaml(dump_explicit(str(sweep.config), trial.overrides), "").content
    search_only = [*(["data.valid"] if held_out else []), "train.evaluate_test"]
    left_out = [f"{key} ({value})" for key in search_only if (value := _pop(content, key)) is not None]
    result = f"{metric} {format_metric(metric, trial.metrics.get(metric))}"
    launch = shlex.join(["fmfsd-launch", str(sweep.best)])
    lines = [f"{launch} · {format_duration(trial.seconds)} as trial {trial.name} of a sweep · {result}"]
    if left_out:
        lines.append(f"Without keys that only the sweep needed: {', '.join(left_out)}.")
    comment = "".join(f"# {_one_line(line)}\n" for line in lines)
    return comment + str(yaml.safe_dump(content, sort_keys=False, default_flow_style=None))


def _pop(content: dict[str, Any], dotted: str) -> Any:
    """Remove the key, and its section if that becomes empty. Return the value as text; None without the key."""
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
