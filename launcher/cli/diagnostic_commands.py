"""`fmfsd-launch doctor|drill|verify|profile`: parse, call one function, return its exit code."""

import os
from typing import Annotated

import typer

from fmfsd.typer_app import PANEL_WHAT, App, Debug, ErrorCollectingCommand, Json, invalid_options
from launcher.cli import option_types
from launcher.config.launch_config import DEFAULT_MAX_RESTARTS

diagnose_app = App()
DIAGNOSE_COMMANDS = ("doctor", "drill", "verify", "profile")

TestedConfig = Annotated[
    str, typer.Argument(help="A preset's name or a YAML file.", autocompletion=option_types.complete_config)
]


@diagnose_app.callback()
def diagnose() -> None:
    """Test this machine, its cluster, or a config on them."""


@diagnose_app.command(cls=ErrorCollectingCommand)
def doctor(
    context: typer.Context,
    on: option_types.OnNow = "auto",
    nodes: option_types.Nodes = None,
    hosts: option_types.Hosts = None,
    hostfile: option_types.Hostfile = None,
    wrap: option_types.Wrap = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what this machine, the given hosts or a Slurm allocation offer, and how to fix what is wrong.

    Exit code 3 if something is wrong.
    """
    from fmfsd.terminal import exit_on_error
    from launcher.cli.launch_arguments import LaunchArguments
    from launcher.config.error_collector import ErrorCollector
    from launcher.diagnostics.doctor import examine

    arguments = LaunchArguments.from_options(locals())
    with exit_on_error(debug=debug):
        site = arguments.resolve_site(ErrorCollector(invalid_options(context)), os.environ)
        raise typer.Exit(examine(site, environment=os.environ, cwd=os.getcwd(), as_json=as_json))


@diagnose_app.command(cls=ErrorCollectingCommand)
def drill(
    context: typer.Context,
    config: TestedConfig,
    faults: Annotated[str, typer.Argument(help="Comma-separated names of faults.")] = "all",
    seed: Annotated[
        int, typer.Option(rich_help_panel=PANEL_WHAT, help="Decides when a fault happens, and to which process.")
    ] = 0,
    overrides: option_types.Overrides = None,
    run_dir: option_types.RunDirectory = None,
    nodes: option_types.Nodes = None,
    gpus: option_types.Gpus = None,
    device: option_types.Device = "auto",
    env: option_types.Env = None,
    engine: option_types.Engine = None,
    starter: option_types.Starter = "torchrun",
    wrap: option_types.Wrap = None,
    max_restarts: option_types.MaxRestarts = DEFAULT_MAX_RESTARTS,
    check: option_types.Check = False,
    dry_run: option_types.DryRun = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Inject real faults into short runs of a config on this machine, and show the result of each.

    Exit code 1 if a run did not survive a fault, or if its result differs from that of an undisturbed run.
    """
    from fmfsd.terminal import exit_on_error
    from launcher.cli.launch_arguments import LaunchArguments
    from launcher.config.error_collector import ErrorCollector
    from launcher.diagnostics.drill import parse_faults, run_drill

    arguments = LaunchArguments.from_options(locals(), on="local")
    with exit_on_error(debug=debug):
        errors = ErrorCollector(invalid_options(context))
        names = errors.collect(lambda: parse_faults(faults), ())
        request = arguments.to_request(errors, os.environ, os.getcwd())
        raise typer.Exit(run_drill(request, names, seed, environment=os.environ, cwd=os.getcwd()))


@diagnose_app.command(cls=ErrorCollectingCommand)
def verify(
    context: typer.Context,
    config: TestedConfig,
    workers: Annotated[
        str, typer.Option(metavar="N,N...", rich_help_panel=PANEL_WHAT, help="Numbers of workers to compare.")
    ] = "1,2",
    steps: Annotated[int, typer.Option(min=1, rich_help_panel=PANEL_WHAT, help="Training steps of each run.")] = 5,
    overrides: option_types.Overrides = None,
    run_dir: option_types.RunDirectory = None,
    nodes: option_types.Nodes = None,
    device: option_types.Device = "auto",
    env: option_types.Env = None,
    engine: option_types.Engine = None,
    starter: option_types.Starter = "torchrun",
    wrap: option_types.Wrap = None,
    check: option_types.Check = False,
    dry_run: option_types.DryRun = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train some steps with each number of workers on this machine, and compare losses, gradients and weights.

    Exit code 1 if they differ by more than rounding.
    """
    from fmfsd.terminal import exit_on_error
    from launcher.cli.launch_arguments import LaunchArguments
    from launcher.config.error_collector import ErrorCollector
    from launcher.diagnostics.verify import parse_worker_counts, verify_invariance

    arguments = LaunchArguments.from_options(locals(), on="local")
    with exit_on_error(debug=debug):
        errors = ErrorCollector(invalid_options(context))
        counts = errors.collect(lambda: parse_worker_counts(workers), ())
        request = arguments.to_request(errors, os.environ, os.getcwd())
        raise typer.Exit(verify_invariance(request, counts, steps, environment=os.environ, cwd=os.getcwd()))


@diagnose_app.command(cls=ErrorCollectingCommand)
def profile(
    context: typer.Context,
    config: TestedConfig,
    steps: Annotated[
        int, typer.Option(min=1, rich_help_panel=PANEL_WHAT, help="Steps to time, and as many to profile.")
    ] = 10,
    overrides: option_types.Overrides = None,
    run_dir: option_types.RunDirectory = None,
    on: option_types.OnNow = "auto",
    nodes: option_types.Nodes = None,
    gpus: option_types.Gpus = None,
    device: option_types.Device = "auto",
    hosts: option_types.Hosts = None,
    hostfile: option_types.Hostfile = None,
    interface: option_types.Interface = None,
    env: option_types.Env = None,
    engine: option_types.Engine = None,
    starter: option_types.Starter = "torchrun",
    wrap: option_types.Wrap = None,
    check: option_types.Check = False,
    dry_run: option_types.DryRun = False,
    preflight: option_types.Preflight = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the time of each part of a training step, and the share of the machine's measured limit. Writes traces."""
    from fmfsd.terminal import exit_on_error
    from launcher.cli.launch_arguments import LaunchArguments
    from launcher.config.error_collector import ErrorCollector
    from launcher.diagnostics.profile import profile_run

    arguments = LaunchArguments.from_options(locals())
    with exit_on_error(debug=debug):
        request = arguments.to_request(ErrorCollector(invalid_options(context)), os.environ, os.getcwd())
        raise typer.Exit(profile_run(request, steps, environment=os.environ, cwd=os.getcwd()))
