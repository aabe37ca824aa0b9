"""What is left to say when the workers have not said how their run ended: its outcome, and the failure page."""

from contextlib import suppress
from typing import Any

from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json, write_json
from launcher.supervise.failure_report import page
from launcher.supervise.restarts import Ended


def outcome_of(run: RunDir) -> dict[str, Any]:
    """How it ended; empty if nobody has said so."""
    try:
        return read_json(run.outcome)
    except (OSError, ValueError):
        return {}


def write_last_word(run: RunDir, ended: Ended, command: str) -> None:
    """Best effort, as the page says it too. `command` goes on with the run."""
    with suppress(OSError):
        _write_last_word(run, ended, command)


def _write_last_word(run: RunDir, ended: Ended, command: str) -> None:
    failure, attempt = ended.failure, ended.attempt
    content: dict[str, Any] = {"state": attempt.state, "attempt": attempt.number, "resumable": True}
    if failure is not None:
        told = {name: getattr(failure, name) for name in ("cause", "rank", "node", "step", "time", "advice")}
        more = {"victims": list(failure.victims), "resumable": failure.resumable, "command": command}
        write_json(run.outcome, {**content, **told, **more, "no_other_attempt": ended.refusal})
    elif attempt.state == "interrupted":
        write_json(run.outcome, content)


def page_of(run: RunDir, ended: Ended, command: str) -> str:
    """Of a run that has failed."""
    assert ended.failure is not None
    history = f"no attempt follows attempt {ended.attempt.number}: {ended.refusal}"
    return page(run, ended.failure, history=history, command=command, repeats=ended.repeats)
