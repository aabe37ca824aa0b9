"""`fmfsd-tune`: parse, call one function, return its exit code."""

import os
import sys

import typer

from fmfsd.system.cache_dir import complete_environment
from fmfsd.typer_app import App, Debug, ErrorCollectingCommand, Json, Version, invalid_options
from launcher.cli import option_types, tune_option_types
from launcher.config.launch_config import DEFAULT_GRACE_S, DEFAULT_HANG_TIMEOUT_S
from launcher.config.process_limits import prepare_process

app = App()


def main() -> None:
    prepare_process(os.environ)
    if note := complete_environment(os.environ):  # Ray's processes need a home
        print(f"warning: {note}", file=sys.stderr)
    app()


@app.command(cls=ErrorCollectingCommand)
def tune(
    context: typer.Context,
    config: tune_option_types.Config = None,
    space: tune_option_types.Space = None,
    overrides: option_types.Overrides = None,
    sweep_dir: tune_option_types.SweepDirectory = None,
    resume: tune_option_types.Resume = None,
    trials: tune_option_types.Trials = None,
    metrics: tune_option_types.Metrics = None,
    modes: tune_option_types.Modes = None,
    search: tune_option_types.Algorithm = None,
    scheduler: tune_option_types.Scheduler = None,
    seed: tune_option_types.Seed = None,
    seeds: tune_option_types.Seeds = None,
    best: tune_option_types.Best = None,
    nodes: tune_option_types.Nodes = 1,
    gpus: tune_option_types.Gpus = 1,
    device: option_types.Device = "auto",
    concurrent: tune_option_types.Concurrent = None,
    ray_address: tune_option_types.RayAddress = None,
    dashboard: tune_option_types.Dashboard = False,
    env: option_types.Env = None,
    max_failures: tune_option_types.MaxFailures = None,
    disk_budget: tune_option_types.DiskBudget = None,
    grace: option_types.Grace = DEFAULT_GRACE_S,
    hang_timeout: option_types.HangTimeout = DEFAULT_HANG_TIMEOUT_S,
    dry_run: tune_option_types.DryRun = False,
    as_json: Json = False,
    debug: Debug = False,
    _version: Version = False,
) -> None:
    """Search: draw configs from a space, train each as an ordinary run, and show which are best.

    Exit codes: 0 done, 1 the search failed, 2 command line or config, 3 a check failed (2 and 3: nothing was started),
    75 stopped on request (--resume continues), 130 interrupted at once (Ctrl-C twice, or before anything was started),
    143 SIGTERM before anything was started.
    """
    from fmfsd.errors import ConfigError
    from fmfsd.terminal import exit_on_error
    from launcher.cli.tune_arguments import TuneArguments
    from launcher.tune.run_sweep import run_sweep

    arguments = TuneArguments.from_options(locals())
    with exit_on_error(debug=debug):
        if problems := invalid_options(context):
            raise ConfigError(problems)
        request = arguments.to_request(os.environ)
        raise typer.Exit(run_sweep(request, environment=os.environ, cwd=os.getcwd(), argv=sys.argv))
