"""A sweep from its command line to its exit code: everything is checked, then it is carried out or gone on with."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fmfsd.config import dump_given, load_config
from fmfsd.config.load import config_name
from fmfsd.errors import CheckError, ConfigError, Problem
from fmfsd.files import read_json, write_whole
from launcher.config import LaunchConfig, TuneOptions
from launcher.launch import Request, checked, prepare_command
from launcher.ownership import sole_owner
from launcher.resources import Resources
from launcher.shipped import find_space
from launcher.site import Site
from launcher.tune import check, held_out
from launcher.tune.begun import Begun
from launcher.tune.coordination import Coordination
from launcher.tune.ledger import Ledger
from launcher.tune.shape import Shape, shape_of
from launcher.tune.space import Space, read_space
from launcher.tune.sweep_dir import SweepDir


@dataclass(frozen=True)
class SweepRequest:
    """What the command line asks for. `given`: those of TuneOptions that it names; `launch`: of each trial."""

    space: str | None
    config: str | None
    overrides: tuple[str, ...]
    given: Mapping[str, Any]
    launch: LaunchConfig
    sweep_dir: Path | None = None
    resume: Path | None = None
    stop_after: Literal["plan", "run"] = "run"
    as_json: bool = False
    data_root: str = "data"


@dataclass(frozen=True)
class Ready:
    """A sweep that nothing is wrong with. `content`: the files that a new one begins with, by name."""

    sweep: SweepDir
    begun: Begun
    space: Space
    prepare: tuple[str, ...]
    shape: Shape | None
    warnings: Sequence[str]
    content: Mapping[Path, str]


def run_sweep(request: SweepRequest, *, environment: Mapping[str, str], cwd: str, argv: Sequence[str]) -> int:
    """The exit code. Raises ConfigError or CheckError while nothing is started, RunFailedError after."""
    ready = _going_on(request, environment) if request.resume else _new(request, environment, cwd)
    coordination = Coordination(ready.sweep, ready.begun, ready.space, environment, as_json=request.as_json)
    if request.stop_after == "plan":
        print(json.dumps(_told(ready), indent=2) if request.as_json else _described(ready, coordination))
        return 0
    with sole_owner(ready.sweep.coordination):
        _write(ready, argv)
        return coordination.run_to_end(prepare=ready.prepare, shape=ready.shape, warnings=ready.warnings)


def _new(request: SweepRequest, environment: Mapping[str, str], cwd: str) -> Ready:
    if request.space is None:
        raise ConfigError([Problem("--space", "which one? A file, or a shipped space's name")])
    path = find_space(request.space)
    space = read_space(path, config=request.config)
    also, count = held_out.for_search(space.config, request.overrides, data_root=request.data_root)
    overrides = (*request.overrides, *also)
    options = check.options_of(space, request.given)
    sweep = _folder(request, cwd, path)
    asks = request.stop_after == "run"
    check.require_sound(space, options, request.launch, sweep, asks=asks)
    launch = _trials_launch(request.launch, options)
    site = Site(Resources.detect(environment))
    single = Request(
        config=space.config,
        overrides=overrides,
        launch=launch if options.ray_address is None else replace(launch, device="cpu"),
        site=site,
        stop_after=request.stop_after,
        as_json=False,
        data_root=request.data_root,
    )
    found = checked(single, sweep.trial("0001"), environment, cwd)
    check.require_metrics(options, space, found.costs)
    worker_bytes = found.costs.memory.get("total", 0)
    shape = shape_of([site.resources], launch, options, worker_bytes=worker_bytes) if not options.ray_address else None
    given = dump_given(space.config, overrides, data_root=request.data_root)
    content = {sweep.space: path.read_text(), sweep.config: given}
    begun = Begun(options, launch, count)
    return Ready(sweep, begun, space, prepare_command(found.config), shape, found.warnings, content)


def _going_on(request: SweepRequest, environment: Mapping[str, str]) -> Ready:
    """With what is in the sweep's folder, and nothing else."""
    assert request.resume is not None
    sweep = SweepDir(request.resume.absolute())
    if not sweep.ledger.exists():
        raise CheckError([Problem(str(sweep.path), "no sweep's folder: it has no ledger")])
    said = {
        "--space": request.space,
        "CONFIG": request.config,
        "--set": request.overrides,
        "--sweep-dir": request.sweep_dir,
    }
    if wrong := [Problem(name, "the sweep has its own: leave it out") for name, value in said.items() if value]:
        raise ConfigError(wrong)
    begun = Begun.of(sweep.ledger, environment).going_on(request.given)
    space = read_space(sweep.space, config=str(sweep.config))
    check.require_sound(space, begun.options, begun.launch, sweep, asks=request.stop_after == "run", is_new=False)
    local = begun.options.ray_address is None
    shape = shape_of([Resources.detect(environment)], begun.launch, begun.options) if local else None
    return Ready(sweep, begun, space, prepare_command(load_config(str(sweep.config))), shape, (), {})


def _folder(request: SweepRequest, cwd: str, space: Path) -> SweepDir:
    if request.sweep_dir is None:
        return SweepDir.fresh(Path(cwd) / "runs", config_name(str(space)))
    return SweepDir((Path(cwd) / request.sweep_dir).absolute())


def _trials_launch(launch: LaunchConfig, options: TuneOptions) -> LaunchConfig:
    """One worker a trial unless more were asked for."""
    return replace(launch, on="local", gpus=launch.gpus or 1, max_restarts=options.max_failures)


def _write(ready: Ready, argv: Sequence[str]) -> None:
    """What a sweep begins with; how it is gone on with is one more fact."""
    try:
        ready.sweep.trials.mkdir(exist_ok=True, mode=0o700)
        for path, text in ready.content.items():
            write_whole(path, text)
        ledger = Ledger(ready.sweep.ledger)
        ledger.note("begun", **ready.begun.told(), argv=list(argv))
        ledger.close()
    except OSError as error:
        raise CheckError([Problem(str(ready.sweep.path), f"can't be written: {error}")]) from error


def _told(ready: Ready) -> dict[str, Any]:
    parameters = [parameter.describe() for parameter in ready.space.parameters]
    return {"sweep_dir": str(ready.sweep.path), **ready.begun.told(), "parameters": parameters}


def _described(ready: Ready, coordination: Coordination) -> str:
    """For a dry run."""
    options = ready.begun.options
    goals = ", ".join(f"{mode} {metric}" for metric, mode in zip(options.metrics, options.modes, strict=True))
    lines = [
        f"{options.trials} trials over {ready.space.config}: {goals}; search {options.search}, scheduler {options.scheduler}",
        *(f"  {parameter.describe()}" for parameter in ready.space.parameters),
    ]
    if ready.begun.held_out:
        lines.append(f"data.valid: {ready.begun.held_out} training samples are held out for the search")
    if ready.shape is not None:
        lines.append(str(ready.shape))
    return "\n".join([*lines, coordination.plan().render()])
