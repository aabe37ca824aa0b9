"""One launch from request to exit code: load, check, plan, and then show the plan or carry it out."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fmfsd.config import TrainConfig, load_config
from fmfsd.config.load import config_name
from fmfsd.errors import ConfigError
from fmfsd.rundir import RunDir
from launcher.check import is_prepared, problems_of_any_config, require_sound
from launcher.config import LaunchConfig
from launcher.plan import plan_run
from launcher.resources import Resources


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
    run, resources = _run_dir(request, cwd), Resources.detect(environment)
    try:
        config = load_config(request.config, request.overrides, data_root=environment.get("FMFSD_DATA") or "data")
    except ConfigError as error:
        raise ConfigError([*error.problems, *problems_of_any_config(request.launch, resources, run)]) from error
    require_sound(config, request.launch, resources, run, checksums=request.stop_after != "plan")
    plan = plan_run(request.launch, resources, run, environment=environment, cwd=cwd, prepare=_prepare_command(config))
    if request.stop_after == "run":
        from launcher.execution import Execution  # what only a real launch needs would slow down a dry run

        return Execution(config, request.launch, run, plan, as_json=request.as_json).run_to_end(argv)
    text = plan.to_json() if request.as_json else plan.render()
    print("nothing is wrong" if request.stop_after == "check" and not request.as_json else text.rstrip())
    return 0


def print_schema() -> None:
    """The JSON schema of a config, for editors."""
    print(json.dumps(TrainConfig.model_json_schema(), indent=2))


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
    return (sys.executable, "-P", "-m", "fmfsd", "data", "prepare", data.name, *flat, "--download")
