"""The `fmfsd-tune` command: check a new or resumed sweep, then run it and return the exit code."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from fmfsd.config import dump_explicit, load_config
from fmfsd.config.load import config_name
from fmfsd.errors import CheckError, ConfigError, Problem
from fmfsd.system.atomic_files import write_atomic
from launcher.agent.available_resources import Resources
from launcher.config.launch_config import LaunchConfig, TuneOptions
from launcher.config.packaged_files import find_space
from launcher.launch_request import CheckedLaunch, LaunchRequest, check_request, prepare_command
from launcher.resources.allocation import Allocation
from launcher.resources.host_probe import UnreachableError
from launcher.resources.resolve_site import resolve_site
from launcher.resources.site import Site
from launcher.run_dir.manifest import mask_command
from launcher.run_dir.run_lock import hold_run_lock
from launcher.run_dir.sweep_dir import SweepDir
from launcher.slurm.job_options import LEAD_MARGIN_S, LEAD_S
from launcher.supervise.unreachable_nodes import handle_unreachable
from launcher.tune import sweep_checks
from launcher.tune.coordinator import RAY_SHUTDOWN_S, SweepCoordinator
from launcher.tune.records.history import History
from launcher.tune.records.ledger import Ledger
from launcher.tune.records.sweep_settings import SweepSettings
from launcher.tune.records.trial_resources import TrialResources, choose_device
from launcher.tune.space import validation_split
from launcher.tune.space.load import Space, read_space


@dataclass(frozen=True)
class SweepRequest:
    """The parsed command line. `cli_options`: the TuneOptions that it sets; `launch`: launch config of each trial."""

    space: str | None
    config: str | None
    overrides: tuple[str, ...]
    cli_options: Mapping[str, Any]
    launch: LaunchConfig
    sweep_dir: Path | None = None
    resume: Path | None = None
    stop_after: Literal["plan", "run"] = "run"
    as_json: bool = False
    data_root: str = "data"


@dataclass(frozen=True)
class PreparedSweep:
    """A checked sweep. `content`: the initial files of a new sweep, by path."""

    sweep: SweepDir
    settings: SweepSettings
    space: Space
    prepare: tuple[str, ...]
    resources: TrialResources
    warnings: Sequence[str]
    content: Mapping[Path, str]

    def in_batch_job(self) -> "PreparedSweep":
        """Return the sweep with settings for a batch job of Slurm."""
        settings = settings_in_batch_job(self.settings)
        return PreparedSweep(
            self.sweep, settings, self.space, self.prepare, self.resources, self.warnings, self.content
        )


def run_sweep(request: SweepRequest, *, environment: Mapping[str, str], cwd: str, argv: Sequence[str]) -> int:
    """Run a sweep and return the exit code.

    Raise ConfigError or CheckError if nothing was started, and RunFailedError afterwards.
    """
    job = Allocation.from_environment(environment)
    request = _with_sweep_dir_of_job(request, cwd, job)
    site, _ = resolve_site(LaunchConfig(), nodes=None, environment=environment)
    if request.stop_after == "run" and "ray_address" not in request.cli_options:
        site = _probe_hosts(request, site, job, environment, cwd)
    ready = (
        _prepare_resumed(request, site, environment)
        if request.resume
        else _prepare_new(request, site, environment, cwd)
    )
    ready = ready.in_batch_job() if job is not None and job.is_batch else ready
    coordination = SweepCoordinator(
        ready.sweep, ready.settings, ready.space, site, environment, as_json=request.as_json, job=job
    )
    if request.stop_after == "plan":
        print(json.dumps(_to_dict(ready), indent=2) if request.as_json else _render_plan(ready, coordination))
        return 0
    with hold_run_lock(ready.sweep.coordinator_dir):
        _write_sweep_files(ready, argv)
        return coordination.run_to_end(prepare=ready.prepare, resources=ready.resources, warnings=ready.warnings)


def _probe_hosts(
    request: SweepRequest, site: Site, job: Allocation | None, environment: Mapping[str, str], cwd: str
) -> Site:
    """Return the site with the hosts that answer; if none answers, requeue the job if possible."""
    folder = Path(cwd, request.resume or request.sweep_dir or Path("runs", "new"))
    try:
        return sweep_checks.probe_site(site, request.launch, folder, environment, cwd)
    except UnreachableError as error:
        if job is not None:
            handle_unreachable(
                error, job, SweepDir(folder).coordinator_dir, partial(print, file=sys.stderr, flush=True)
            )
        raise


def _with_sweep_dir_of_job(request: SweepRequest, cwd: str, job: Allocation | None) -> SweepRequest:
    """Return the request with the sweep folder of the batch job, which a requeued job resumes."""
    if job is None or not job.is_batch or request.resume is not None:
        return request
    name = f"{config_name(request.space or 'sweep')}-{job.run_name}"
    sweep = SweepDir((Path(cwd) / (request.sweep_dir or Path("runs") / name)).absolute())
    if not job.restarts or not sweep.ledger.exists():
        return replace(request, sweep_dir=sweep.path)
    return replace(request, resume=sweep.path, space=None, config=None, overrides=(), sweep_dir=None)


def settings_in_batch_job(settings: SweepSettings) -> SweepSettings:
    """Return the settings with the longest grace that fits between Slurm's warning and the job's end.

    Time for Ray to shut down after the trials is left.
    """
    launch = settings.launch
    left_s = LEAD_S - LEAD_MARGIN_S - RAY_SHUTDOWN_S
    return replace(settings, launch=replace(launch, grace_s=min(launch.max_grace_s, max(launch.grace_s, left_s))))


def _prepare_new(request: SweepRequest, site: Site, environment: Mapping[str, str], cwd: str) -> PreparedSweep:
    if request.space is None:
        raise ConfigError([Problem("--space", "is missing: give a file, or the name of a space of the package")])
    path = find_space(request.space)
    space = read_space(path, config=request.config, overrides=request.overrides)
    split_overrides, held_out = validation_split.split_overrides(
        space.config, request.overrides, data_root=request.data_root
    )
    options, sweep = sweep_checks.resolve_options(space, request.cli_options), _sweep_dir(request, cwd, path)
    sweep_checks.require_valid_search(space, options, sweep)
    launch = _trial_launch(request.launch, options)
    machines = sweep_checks.list_machines(site, options, sweep, probe_ray=request.stop_after == "run")
    overrides = (*request.overrides, *split_overrides)
    base = _check_base(
        replace(request, config=space.config, overrides=overrides), launch, machines, sweep, environment, cwd
    )
    settings = SweepSettings(options, launch, held_out, base.costs.memory.get("total", 0))
    sweep_checks.require_metrics(options, space, base.costs)
    resources = settings.fit_on(machines)
    sweep_checks.require_disk_space(sweep, options, base.config, base.costs, resources)
    config_text = dump_explicit(space.config, overrides, data_root=request.data_root)
    content = {sweep.space: path.read_text("utf-8"), sweep.config: config_text}
    return PreparedSweep(sweep, settings, space, prepare_command(base.config), resources, base.warnings, content)


def _check_base(
    request: SweepRequest,
    launch: LaunchConfig,
    machines: Sequence[Resources],
    sweep: SweepDir,
    environment: Mapping[str, str],
    cwd: str,
) -> CheckedLaunch:
    """Check the base config as a single run, on an imaginary machine with room for one trial.

    `trial_resources` checks that the real machines have room. A dry run downloads no weights.
    """
    assert request.config is not None
    device = choose_device(machines, launch)
    gpus = tuple(map(str, range(launch.nodes * (launch.gpus or 1)))) if device == "cuda" else ()
    offline = ("model.pretrained=false",) if request.stop_after == "plan" else ()
    single = LaunchRequest(
        config=request.config,
        overrides=(*request.overrides, *offline),
        launch=replace(launch, device=device),
        site=Site(Resources(max((each.cores for each in machines), default=1), gpus)),
        stop_after="check",
        as_json=False,
        data_root=request.data_root,
    )
    return check_request(single, sweep.trial("0001"), environment, cwd)


def _prepare_resumed(request: SweepRequest, site: Site, environment: Mapping[str, str]) -> PreparedSweep:
    """Prepare a sweep from the files in its folder."""
    assert request.resume is not None
    sweep = SweepDir(request.resume.absolute())
    if not sweep.ledger.exists():
        raise CheckError([Problem(str(sweep.path), "is not a sweep folder: it has no ledger")])
    _require_no_new_inputs(request)
    settings = SweepSettings.read(sweep.ledger, environment).with_changes(request.cli_options)
    History.read(sweep.ledger, settings.options)
    space = read_space(sweep.space, config=str(sweep.config))
    sweep_checks.require_valid_search(space, settings.options, sweep, is_new=False)
    machines = sweep_checks.list_machines(site, settings.options, sweep, probe_ray=request.stop_after == "run")
    resources = settings.fit_on(machines)
    return PreparedSweep(sweep, settings, space, prepare_command(load_config(str(sweep.config))), resources, (), {})


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


def _write_sweep_files(ready: PreparedSweep, argv: Sequence[str]) -> None:
    """Write the initial files of a new sweep, and a ledger fact for each start."""
    try:
        ready.sweep.trials.mkdir(exist_ok=True, mode=0o700)
        for path, text in ready.content.items():
            write_atomic(path, text)
        ledger = Ledger(ready.sweep.ledger)
        ledger.append_fact("begun", **ready.settings.to_dict(), argv=mask_command(argv))
        ledger.close()
    except OSError as error:
        raise CheckError([Problem(str(ready.sweep.path), f"can't be written: {error}")]) from error


def _to_dict(ready: PreparedSweep) -> dict[str, Any]:
    parameters = [parameter.describe() for parameter in ready.space.parameters]
    return {"sweep_dir": str(ready.sweep.path), **ready.settings.to_dict(), "parameters": parameters}


def _render_plan(ready: PreparedSweep, coordination: SweepCoordinator) -> str:
    """Return the text of a dry run."""
    options = ready.settings.options
    goals = ", ".join(f"{mode} {metric}" for metric, mode in zip(options.metrics, options.modes, strict=True))
    lines = [
        f"{options.trials} trials over {ready.space.config}: {goals}",
        f"search {options.search}, scheduler {options.scheduler}",
        *(f"  {parameter.describe()}" for parameter in ready.space.parameters),
    ]
    if ready.settings.held_out:
        lines.append(f"data.valid: {ready.settings.held_out} training samples are held out for validation")
    return "\n".join([*lines, str(ready.resources), coordination.plan().render()])
