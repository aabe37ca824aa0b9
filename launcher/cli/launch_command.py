"""`fmfsd-launch`: choose the command, parse, call one function, return its exit code."""

import difflib
import os
import sys
from collections.abc import Mapping, Sequence

import typer

from fmfsd.errors import ConfigError
from fmfsd.typer_app import App, Debug, ErrorCollectingCommand, Json, Version, invalid_options
from launcher.cli import option_types
from launcher.cli.diagnostic_commands import DIAGNOSE_COMMANDS, diagnose_app
from launcher.cli.manage_commands import MANAGE_COMMANDS, manage_app
from launcher.config.launch_config import DEFAULT_GRACE_S, DEFAULT_HANG_TIMEOUT_S, DEFAULT_MAX_RESTARTS
from launcher.config.process_limits import prepare_process

app = App()
_SIMILARITY = 0.7
"""High enough that no preset's name is taken for a mistyped command."""


def main() -> None:
    prepare_process(os.environ)
    command = first_argument(sys.argv, os.environ)
    if command in MANAGE_COMMANDS:
        manage_app()
    elif command in DIAGNOSE_COMMANDS:
        diagnose_app()
    elif message := suggest_command(command):
        print(message, file=sys.stderr)
        sys.exit(ConfigError.exit_code)
    else:
        app()


def first_argument(argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return the first argument; while a shell completes a command line, the first argument of that line."""
    arguments = environment.get("_TYPER_COMPLETE_ARGS", "").split() or argv
    return arguments[1] if len(arguments) > 1 else ""


def suggest_command(argument: str) -> str:
    """Return an error message if `argument` is a mistyped subcommand, else an empty string."""
    close = difflib.get_close_matches(argument, option_types.COMMANDS, n=1, cutoff=_SIMILARITY)
    return f"{argument}: neither a config nor a command: did you mean `fmfsd-launch {close[0]}`?" if close else ""


@app.command(cls=ErrorCollectingCommand)
def launch(
    context: typer.Context,
    config: option_types.Config = "cifar100-resnet18",
    overrides: option_types.Overrides = None,
    schema: option_types.Schema = False,
    run_dir: option_types.RunDirectory = None,
    resume: option_types.Resume = "auto",
    on: option_types.On = "auto",
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
    max_restarts: option_types.MaxRestarts = DEFAULT_MAX_RESTARTS,
    elastic: option_types.Elastic = None,
    grace: option_types.Grace = DEFAULT_GRACE_S,
    hang_timeout: option_types.HangTimeout = DEFAULT_HANG_TIMEOUT_S,
    check: option_types.Check = False,
    check_data: option_types.CheckData = False,
    dry_run: option_types.DryRun = False,
    preflight: option_types.Preflight = None,
    partition: option_types.Partition = None,
    account: option_types.Account = None,
    qos: option_types.Qos = None,
    time: option_types.Time = None,
    mem: option_types.Mem = None,
    cpus_per_gpu: option_types.CpusPerGpu = None,
    array: option_types.Array = None,
    sbatch_args: option_types.SbatchArgs = None,
    srun_args: option_types.SrunArgs = None,
    wait: option_types.Wait = False,
    as_json: Json = False,
    debug: Debug = False,
    _version: Version = False,
) -> None:
    """Train: check everything, start an agent and its workers on each node, and supervise them to the end.

    `fmfsd-launch stop|status|logs|cancel|resume RUN` manages existing runs.
    `fmfsd-launch doctor|drill|verify|profile` tests machines and configs. Each has its own --help.

    Exit codes: 0 done, 1 the run failed, 2 command line or config, 3 a check failed (2 and 3: nothing was started), 75
    stopped on request with a checkpoint saved (run again to resume), 130 interrupted at once (Ctrl-C twice, or before
    anything was started), 143 SIGTERM before anything was started.
    """
    from fmfsd.terminal import exit_on_error
    from launcher.cli.launch_arguments import LaunchArguments
    from launcher.config.error_collector import ErrorCollector
    from launcher.launch import launch_run, print_schema

    arguments = LaunchArguments.from_options(locals())
    with exit_on_error(debug=debug):
        if schema:
            print_schema()
            return
        request = arguments.to_request(ErrorCollector(invalid_options(context)), os.environ, os.getcwd())
        raise typer.Exit(launch_run(request, environment=os.environ, cwd=os.getcwd(), argv=sys.argv))
