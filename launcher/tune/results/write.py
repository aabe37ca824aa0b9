"""Writes the results of a sweep: sweep.json, trials.csv, best.yaml and report.html.

All files are derived from the ledger and rewritten after new facts, so they need not survive a power loss.
"""

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from fmfsd.system.atomic_files import write_atomic
from launcher.run_dir.sweep_dir import SweepDir
from launcher.transport.local_commands import run_captured
from launcher.tune.records.history import History, Trial
from launcher.tune.results.best_config import build_best_config
from launcher.tune.results.importance import Importances, compute_importances
from launcher.tune.results.summary import build_summary
from launcher.tune.space.load import Space

REPORT_TIMEOUT_S = 300.0


def write_results(sweep: SweepDir, space: Space, history: History, *, held_out: int) -> None:
    """Write the current results, without importances and report: quick enough to run after each trial.

    `held_out`: number of validation samples held out by the sweep itself; best.yaml leaves them out.
    """
    _write(sweep, space, history, None, held_out)


def write_final_results(sweep: SweepDir, space: Space, history: History, *, held_out: int) -> None:
    """Write the results with importances."""
    _write(sweep, space, history, compute_importances(space, history), held_out)


def write_report(sweep: SweepDir) -> str:
    """Have `fmfsd report` write the page, with the user's umask; return the error, or an empty string."""
    code, _, errors = run_captured(
        (sys.executable, "-P", "-m", "fmfsd", "report", str(sweep.path)), timeout_s=REPORT_TIMEOUT_S
    )
    if code == 0:
        return ""
    return (errors.strip().splitlines() or [f"exit code {code}"])[-1]


def _write(
    sweep: SweepDir, space: Space, history: History, by_metric: Sequence[Importances] | None, held_out: int
) -> None:
    write_atomic(sweep.summary, _format_json(build_summary(sweep, space, history, by_metric)), durable=False)
    write_atomic(sweep.table, format_trials_csv(space, history), durable=False)
    if ranked := history.rank_trials():
        best = build_best_config(sweep, ranked[0], history.options.metrics[0], held_out=held_out)
        write_atomic(sweep.best, best, durable=False)


def _format_json(content: Mapping[str, Any]) -> str:
    """Return JSON with a line for each key and each trial; the indentation of `json` is slow."""
    trials = ",\n".join(map(json.dumps, content["trials"]))
    keys = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items() if key != "trials"]
    return ",\n".join(["{" + keys[0], *keys[1:], f'"trials": [\n{trials}\n]}}\n'])


def format_trials_csv(space: Space, history: History) -> str:
    """Return a row per trial. Missing values are empty; strings are written as they are, other values as JSON."""
    trials = list(history.trials.values())
    keys = [parameter.key for parameter in space.parameters]
    metrics = sorted({name for trial in trials for name in trial.metrics})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "epochs", "seconds", "repeats", "cause", *keys, *metrics])
    writer.writerows(_row(trial, keys, metrics) for trial in trials)
    return text.getvalue()


def _row(trial: Trial, keys: Sequence[str], metrics: Sequence[str]) -> list[str]:
    repeats = "" if trial.duplicate_of is None else f"{trial.duplicate_of:04d}"
    about = [trial.name, trial.state, str(max(trial.reports, default=0)), f"{trial.seconds:.1f}", repeats, trial.cause]
    values = [_cell(trial.values[key]) if key in trial.values else "" for key in keys]
    return [*about, *values, *(_cell(trial.metrics[name]) if name in trial.metrics else "" for name in metrics)]


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
