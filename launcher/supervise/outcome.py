"""A run's outcome as the launcher writes it for workers that could not, and the failure page."""

from contextlib import suppress
from typing import Any

from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json, write_json
from launcher.supervise.failure_report import render_page
from launcher.supervise.restarts import RunResult


def read_outcome(run: RunDir) -> dict[str, Any]:
    """Return the run's outcome; empty if there is none."""
    try:
        return read_json(run.outcome)
    except (OSError, ValueError):
        return {}


def write_outcome(run: RunDir, result: RunResult, command: str) -> None:
    """Write the outcome of a failed or interrupted run, best effort. `command` resumes the run."""
    with suppress(OSError):
        _write_outcome(run, result, command)


def _write_outcome(run: RunDir, result: RunResult, command: str) -> None:
    failure, attempt = result.failure, result.attempt
    content: dict[str, Any] = {"state": attempt.state, "attempt": attempt.number, "resumable": True}
    if failure is not None:
        details = {name: getattr(failure, name) for name in ("cause", "rank", "node", "step", "time", "advice")}
        more = {"victims": list(failure.victims), "resumable": failure.resumable, "command": command}
        write_json(run.outcome, {**content, **details, **more, "no_other_attempt": result.refusal})
    elif attempt.state == "interrupted":
        write_json(run.outcome, content)


def render_failure_page(run: RunDir, result: RunResult, command: str) -> str:
    """Render the failure page of a run that has failed."""
    assert result.failure is not None
    history = f"no attempt follows attempt {result.attempt.number}: {result.refusal}"
    return render_page(run, result.failure, history=history, command=command, repeats=result.is_repeated_failure)
