"""One launch from request to exit code: load, check, plan, and then show the plan or carry it out."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fmfsd.config import TrainConfig, dump_config, load_config
from fmfsd.config.load import config_name
from fmfsd.errors import CheckError, RunFailedError
from fmfsd.files import read_json, write_json, write_whole
from fmfsd.rundir import RunDir
from launcher.check import is_prepared, require_sound
from launcher.config import LaunchConfig
from launcher.plan import LaunchPlan, plan_run
from launcher.resources import Resources

DONE, STOPPED, INTERRUPTED = 0, 75, 130


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    config: str
    overrides: tuple[str, ...]
    launch: LaunchConfig
    stop_after: Literal["check", "plan", "run"]
    as_json: bool


def launch_run(request: Request, *, environment: Mapping[str, str], cwd: str, argv: Sequence[str]) -> int:
    """The exit code. Raises ConfigError or CheckError while nothing is started, RunFailedError after."""
    config = load_config(request.config, request.overrides, data_root=environment.get("FMFSD_DATA") or "data")
    run = _run_dir(request, cwd)
    resources = Resources.detect(environment)
    require_sound(config, request.launch, resources, run, checksums=request.stop_after != "plan")
    plan = plan_run(request.launch, resources, run, environment=environment, cwd=cwd, prepare=_prepare_command(config))
    if request.stop_after == "run":
        return _Launch(request, config, run, plan).carry_out(argv)
    text = plan.to_json() if request.as_json else plan.render()
    print("nothing is wrong" if request.stop_after == "check" and not request.as_json else text.rstrip())
    return DONE


def _run_dir(request: Request, cwd: str) -> RunDir:
    asked = request.launch.run_dir
    return (
        RunDir((Path(cwd) / asked).absolute())
        if asked
        else RunDir.fresh(Path(cwd) / "runs", config_name(request.config))
    )


def _prepare_command(config: TrainConfig) -> tuple[str, ...]:
    """What makes the data set first; nothing if it is there."""
    if is_prepared(config):
        return ()
    data = config.data
    options = {"--out": str(data.root), "--shards": str(data.shards), "--valid": str(data.valid)}
    flat = (part for option in options.items() for part in option)
    return (sys.executable, "-m", "fmfsd", "data", "prepare", data.name, *flat, "--download")


class _Launch:
    """Carries a plan out and shows it; human words go to stderr if stdout is for JSON."""

    def __init__(self, request: Request, config: TrainConfig, run: RunDir, plan: LaunchPlan) -> None:
        from rich.console import Console

        self._request, self._config, self._run, self._plan = request, config, run, plan
        self._console = Console(stderr=request.as_json, highlight=False, soft_wrap=True)

    def carry_out(self, argv: Sequence[str]) -> int:
        from launcher.display import RunDisplay
        from launcher.supervise import Requests, run_plan

        self._console.print(f"run: {self._run.path}", markup=False)
        if self._outcome().get("state") == "finished":
            self._console.print("this run is finished; nothing to do")
            return self._conclude("finished")
        self._introduce()
        requests = Requests()
        with requests.heard():
            self._prepare()
            if requests.stop:
                return INTERRUPTED
            self._write_run_dir(argv)
            with RunDisplay(self._console, self._run) as display:
                attempt = run_plan(
                    self._plan, self._run, grace_s=self._request.launch.grace_s, requests=requests, watch=display.update
                )
        if attempt.state == "failed":
            self._fail(attempt)
        return self._conclude(attempt.state)

    def _introduce(self) -> None:
        fallback = self._request.launch.device == "auto" and self._plan.device == "cpu"
        self._console.print(self._plan.summary() + (" (no GPU is visible)" if fallback else ""), markup=False)

    def _prepare(self) -> None:
        from launcher.hosts.local import run_here

        if self._plan.prepare and (code := run_here(self._plan.prepare)):
            raise CheckError(f"the data set was not prepared (exit code {code}); nothing was started")

    def _write_run_dir(self, argv: Sequence[str]) -> None:
        from launcher.manifest import manifest

        self._run.create()
        if not self._run.config.exists():
            write_json(self._run.manifest, manifest(self._config, argv))
            write_whole(self._run.config, dump_config(self._config))
        write_whole(self._run.plan, self._plan.to_json())

    def _fail(self, attempt: Any) -> None:
        from launcher.failures import first_failure, page

        failure = first_failure(self._run, attempt)
        content = {
            "state": "failed",
            "attempt": attempt.number,
            "cause": failure.cause,
            "victims": list(failure.victims),
        }
        write_json(self._run.outcome, {**content, "resumable": True})
        if self._request.as_json:
            print(json.dumps({"run_dir": str(self._run.path), "exit_code": 1, **self._outcome()}))
        raise RunFailedError(page(self._run, failure))

    def _conclude(self, state: str) -> int:
        from launcher.display import heads_table

        code = {"finished": DONE, "stopped": STOPPED, "interrupted": INTERRUPTED}[state]
        outcome = self._outcome()
        if state == "finished":
            self._console.print(heads_table(outcome["metrics"]))
        if state == "stopped":
            self._console.print(
                f"stopped after step {outcome['step']}; the same command with --run-dir {self._run.path} goes on",
                markup=False,
            )
        if self._request.as_json:
            print(json.dumps({"run_dir": str(self._run.path), "exit_code": code, **outcome}))
        return code

    def _outcome(self) -> dict[str, Any]:
        try:
            return read_json(self._run.outcome)
        except (OSError, ValueError):
            return {}


def print_schema() -> None:
    """The JSON schema of a config, for editors."""
    print(json.dumps(TrainConfig.model_json_schema(), indent=2))
