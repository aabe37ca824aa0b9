"""`fmfsd-launch`: choose the command, parse, call one function, return its exit code."""

import difflib
import os
import sys
from collections.abc import Mapping, Sequence

import typer

from fmfsd.command_line import App, Debug, ErrorCollectingCommand, Json, Version, invalid_options
from fmfsd.errors import ConfigError
from launcher.cli import options
from launcher.cli.diagnose import DIAGNOSE_COMMANDS, diagnose_app
from launcher.cli.manage import MANAGE_COMMANDS, manage_app
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


def suggest_command(word: str) -> str:
    """Return an error message if `word` is a mistyped subcommand, else an empty string."""
    close = difflib.get_close_matches(word, options.COMMANDS, n=1, cutoff=_SIMILARITY)
    return f"{word}: neither a config nor a command: did you mean `fmfsd-launch {close[0]}`?" if close else ""


@app.command(cls=ErrorCollectingCommand)
def launch(
    context: typer.Context,
    config: options.Config = "cifar100-resnet18",
    overrides: options.Overrides = None,
    schema: options.Schema = False,
    run_dir: options.RunDirectory = None,
    resume: options.Resume = "auto",
    on: options.On = "auto",
    nodes: options.Nodes = None,
    gpus: options.Gpus = None,
    device: options.Device = "auto",
    hosts: options.Hosts = None,
    hostfile: options.Hostfile = None,
    interface: options.Interface = None,
    env: options.Env = None,
    engine: options.Engine = None,
    starter: options.Starter = "torchrun",
    wrap: options.Wrap = None,
    max_restarts: options.MaxRestarts = DEFAULT_MAX_RESTARTS,
    elastic: options.Elastic = None,
    grace: options.Grace = DEFAULT_GRACE_S,
    hang_timeout: options.HangTimeout = DEFAULT_HANG_TIMEOUT_S,
    check: options.Check = False,
    check_data: options.CheckData = False,
    dry_run: options.DryRun = False,
    preflight: options.Preflight = None,
    partition: options.Partition = None,
    account: options.Account = None,
    qos: options.Qos = None,
    time: options.Time = None,
    mem: options.Mem = None,
    cpus_per_gpu: options.CpusPerGpu = None,
    array: options.Array = None,
    sbatch_args: options.SbatchArgs = None,
    srun_args: options.SrunArgs = None,
    wait: options.Wait = False,
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
    from launcher.cli.arguments import LaunchArguments
    from launcher.config.error_collector import ErrorCollector
    from launcher.launch import launch_run, print_schema

    arguments = LaunchArguments.from_options(locals())
    with exit_on_error(debug=debug):
        if schema:
            print_schema()
            return
        request = arguments.to_request(ErrorCollector(invalid_options(context)), os.environ, os.getcwd())
        raise typer.Exit(launch_run(request, environment=os.environ, cwd=os.getcwd(), argv=sys.argv))
