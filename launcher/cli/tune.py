"""`fmfsd-tune`: parse, call one function, return its exit code."""

import os
import sys

import typer

from fmfsd.command_line import App, Debug, ErrorCollectingCommand, Json, Version, invalid_options
from fmfsd.system.cache_dir import complete_environment
from launcher.cli import options, tune_options
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
    config: tune_options.Config = None,
    space: tune_options.Space = None,
    overrides: options.Overrides = None,
    sweep_dir: tune_options.SweepDirectory = None,
    resume: tune_options.Resume = None,
    trials: tune_options.Trials = None,
    metrics: tune_options.Metrics = None,
    modes: tune_options.Modes = None,
    search: tune_options.Algorithm = None,
    scheduler: tune_options.Scheduler = None,
    seed: tune_options.Seed = None,
    seeds: tune_options.Seeds = None,
    best: tune_options.Best = None,
    nodes: tune_options.Nodes = 1,
    gpus: tune_options.Gpus = 1,
    device: options.Device = "auto",
    concurrent: tune_options.Concurrent = None,
    ray_address: tune_options.RayAddress = None,
    dashboard: tune_options.Dashboard = False,
    env: options.Env = None,
    max_failures: tune_options.MaxFailures = None,
    disk_budget: tune_options.DiskBudget = None,
    grace: options.Grace = DEFAULT_GRACE_S,
    hang_timeout: options.HangTimeout = DEFAULT_HANG_TIMEOUT_S,
    dry_run: tune_options.DryRun = False,
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
    from launcher.tune.sweep_command import run_sweep

    arguments = TuneArguments.from_options(locals())
    with exit_on_error(debug=debug):
        if problems := invalid_options(context):
            raise ConfigError(problems)
        request = arguments.to_request(os.environ)
        raise typer.Exit(run_sweep(request, environment=os.environ, cwd=os.getcwd(), argv=sys.argv))
