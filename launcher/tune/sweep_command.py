"""The `fmfsd-tune` command: check a new or resumed sweep, then run it and return the exit code."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from fmfsd.config import dump_given, load_config
from fmfsd.config.load import config_name
from fmfsd.errors import CheckError, ConfigError, Problem
from fmfsd.system.atomic_files import write_whole
from launcher.agent.resources import Resources
from launcher.config.launch_config import LaunchConfig, TuneOptions
from launcher.config.packaged_files import find_space
from launcher.prepare_launch import Checked, Request, checked, prepare_command
from launcher.resources.allocation import Allocation
from launcher.resources.host_probe import UnreachableError
from launcher.resources.resolve_site import settle
from launcher.resources.site import Site
from launcher.run_dir.manifest import masked
from launcher.run_dir.run_lock import sole_owner
from launcher.run_dir.sweep_dir import SweepDir
from launcher.slurm.job_options import LEAD_BEYOND_S, LEAD_S
from launcher.supervise.unreachable_nodes import handle_unreachable
from launcher.tune import check
from launcher.tune.coordinator import BEYOND_GRACE_S, Coordination
from launcher.tune.records.history import History
from launcher.tune.records.ledger import Ledger
from launcher.tune.records.sweep_settings import Begun
from launcher.tune.records.trial_resources import Shape, device_of
from launcher.tune.space import validation_split
from launcher.tune.space.load import Space, read_space


@dataclass(frozen=True)
class SweepRequest:
    """The parsed command line. `cli_options`: the TuneOptions that it sets; `launch`: launch config of each trial."""

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
    """A checked sweep. `content`: the initial files of a new sweep, by path."""

    sweep: SweepDir
    begun: Begun
    space: Space
    prepare: tuple[str, ...]
    shape: Shape
    warnings: Sequence[str]
    content: Mapping[Path, str]

    def in_batch_job(self) -> "Ready":
        """Return the sweep with settings for a batch job of Slurm."""
        settings = sweep_in_job(self.begun)
        return Ready(self.sweep, settings, self.space, self.prepare, self.shape, self.warnings, self.content)


def run_sweep(request: SweepRequest, *, environment: Mapping[str, str], cwd: str, argv: Sequence[str]) -> int:
    """Run a sweep and return the exit code.

    Raise ConfigError or CheckError if nothing was started, and RunFailedError afterwards.
    """
    job = Allocation.of(environment)
    request = _of_job(request, cwd, job)
    site, _ = settle(LaunchConfig(), nodes=None, environment=environment)
    if request.stop_after == "run" and "ray_address" not in request.given:
        site = _probe_hosts(request, site, job, environment, cwd)
    ready = (
        _prepare_resumed(request, site, environment)
        if request.resume
        else _prepare_new(request, site, environment, cwd)
    )
    ready = ready.in_batch_job() if job is not None and job.is_batch else ready
    coordination = Coordination(
        ready.sweep, ready.begun, ready.space, site, environment, as_json=request.as_json, job=job
    )
    if request.stop_after == "plan":
        print(json.dumps(_to_dict(ready), indent=2) if request.as_json else _render_plan(ready, coordination))
        return 0
    with sole_owner(ready.sweep.coordination):
        _write(ready, argv)
        return coordination.run_to_end(prepare=ready.prepare, shape=ready.shape, warnings=ready.warnings)


def _probe_hosts(
    request: SweepRequest, site: Site, job: Allocation | None, environment: Mapping[str, str], cwd: str
) -> Site:
    """Return the site with the hosts that answer; if none answers, requeue the job if possible."""
    folder = Path(cwd, request.resume or request.sweep_dir or Path("runs", "new"))
    try:
        return check.probe_site(site, request.launch, folder, environment, cwd)
    except UnreachableError as error:
        if job is not None:
            handle_unreachable(error, job, SweepDir(folder).coordination, partial(print, file=sys.stderr, flush=True))
        raise


def _of_job(request: SweepRequest, cwd: str, job: Allocation | None) -> SweepRequest:
    """Return the request with the sweep folder of the batch job, which a requeued job resumes."""
    if job is None or not job.is_batch or request.resume is not None:
        return request
    name = f"{config_name(request.space or 'sweep')}-{job.name}"
    sweep = SweepDir((Path(cwd) / (request.sweep_dir or Path("runs") / name)).absolute())
    if not job.restarts or not sweep.ledger.exists():
        return replace(request, sweep_dir=sweep.path)
    return replace(request, resume=sweep.path, space=None, config=None, overrides=(), sweep_dir=None)


def sweep_in_job(settings: Begun) -> Begun:
    """Return the settings with the longest grace that fits between Slurm's warning and the job's end.

    Time for Ray to shut down after the trials is left.
    """
    launch = settings.launch
    left_s = LEAD_S - LEAD_BEYOND_S - BEYOND_GRACE_S
    return replace(settings, launch=replace(launch, grace_s=min(launch.longest_grace_s, max(launch.grace_s, left_s))))


def _prepare_new(request: SweepRequest, site: Site, environment: Mapping[str, str], cwd: str) -> Ready:
    if request.space is None:
        raise ConfigError([Problem("--space", "is missing: give a file, or the name of a space of the package")])
    path = find_space(request.space)
    space = read_space(path, config=request.config, overrides=request.overrides)
    split_overrides, held_out = validation_split.for_search(
        space.config, request.overrides, data_root=request.data_root
    )
    options, sweep = check.options_of(space, request.given), _sweep_dir(request, cwd, path)
    check.require_sound(space, options, sweep)
    launch = _trial_launch(request.launch, options)
    machines = check.machines(site, options, sweep, asks=request.stop_after == "run")
    overrides = (*request.overrides, *split_overrides)
    base = _check_base(
        replace(request, config=space.config, overrides=overrides), launch, machines, sweep, environment, cwd
    )
    settings = Begun(options, launch, held_out, base.costs.memory.get("total", 0))
    check.require_metrics(options, space, base.costs)
    resources = settings.shape_on(machines)
    check.require_room(sweep, options, base.config, base.costs, resources)
    config_text = dump_given(space.config, overrides, data_root=request.data_root)
    content = {sweep.space: path.read_text("utf-8"), sweep.config: config_text}
    return Ready(sweep, settings, space, prepare_command(base.config), resources, base.warnings, content)


def _check_base(
    request: SweepRequest,
    launch: LaunchConfig,
    machines: Sequence[Resources],
    sweep: SweepDir,
    environment: Mapping[str, str],
    cwd: str,
) -> Checked:
    """Check the base config as a single run, on an imaginary machine with room for one trial.

    `trial_resources` checks that the real machines have room. A dry run downloads no weights.
    """
    assert request.config is not None
    device = device_of(machines, launch)
    gpus = tuple(map(str, range(launch.nodes * (launch.gpus or 1)))) if device == "cuda" else ()
    offline = ("model.pretrained=false",) if request.stop_after == "plan" else ()
    single = Request(
        config=request.config,
        overrides=(*request.overrides, *offline),
        launch=replace(launch, device=device),
        site=Site(Resources(max((each.cores for each in machines), default=1), gpus)),
        stop_after="check",
        as_json=False,
        data_root=request.data_root,
    )
    return checked(single, sweep.trial("0001"), environment, cwd)


def _prepare_resumed(request: SweepRequest, site: Site, environment: Mapping[str, str]) -> Ready:
    """Prepare a sweep from the files in its folder."""
    assert request.resume is not None
    sweep = SweepDir(request.resume.absolute())
    if not sweep.ledger.exists():
        raise CheckError([Problem(str(sweep.path), "is not a sweep folder: it has no ledger")])
    _require_no_new_inputs(request)
    settings = Begun.of(sweep.ledger, environment).going_on(request.given)
    History.read(sweep.ledger, settings.options)
    space = read_space(sweep.space, config=str(sweep.config))
    check.require_sound(space, settings.options, sweep, is_new=False)
    machines = check.machines(site, settings.options, sweep, asks=request.stop_after == "run")
    resources = settings.shape_on(machines)
    return Ready(sweep, settings, space, prepare_command(load_config(str(sweep.config))), resources, (), {})


def _require_no_new_inputs(request: SweepRequest) -> None:
    inputs = {
        "--space": request.space,
        "CONFIG": request.config,
        "--set": request.overrides,
        "--sweep-dir": request.sweep_dir,
    }
    if wrong := [
        Problem(name, "can not be changed when a sweep is resumed: leave it out")
        for name, value in inputs.items()
        if value
    ]:
        raise ConfigError(wrong)


def _sweep_dir(request: SweepRequest, cwd: str, space: Path) -> SweepDir:
    if request.sweep_dir is None:
        return SweepDir.fresh(Path(cwd) / "runs", config_name(str(space)))
    return SweepDir((Path(cwd) / request.sweep_dir).absolute())


def _trial_launch(launch: LaunchConfig, options: TuneOptions) -> LaunchConfig:
    """Return the launch config of a trial; a trial has one worker by default."""
    return replace(launch, on="local", gpus=launch.gpus or 1, max_restarts=options.max_failures)


def _write(ready: Ready, argv: Sequence[str]) -> None:
    """Write the initial files of a new sweep, and a ledger fact for each start."""
    try:
        ready.sweep.trials.mkdir(exist_ok=True, mode=0o700)
        for path, text in ready.content.items():
            write_whole(path, text)
        ledger = Ledger(ready.sweep.ledger)
        ledger.note("begun", **ready.begun.told(), argv=masked(argv))
        ledger.close()
    except OSError as error:
        raise CheckError([Problem(str(ready.sweep.path), f"can't be written: {error}")]) from error


def _to_dict(ready: Ready) -> dict[str, Any]:
    parameters = [parameter.describe() for parameter in ready.space.parameters]
    return {"sweep_dir": str(ready.sweep.path), **ready.begun.told(), "parameters": parameters}


def _render_plan(ready: Ready, coordination: Coordination) -> str:
    """Return the text of a dry run."""
    options = ready.begun.options
    goals = ", ".join(f"{mode} {metric}" for metric, mode in zip(options.metrics, options.modes, strict=True))
    lines = [
        f"{options.trials} trials over {ready.space.config}: {goals}",
        f"search {options.search}, scheduler {options.scheduler}",
        *(f"  {parameter.describe()}" for parameter in ready.space.parameters),
    ]
    if ready.begun.held_out:
        lines.append(f"data.valid: {ready.begun.held_out} training samples are held out for validation")
    return "\n".join([*lines, str(ready.shape), coordination.plan().render()])
