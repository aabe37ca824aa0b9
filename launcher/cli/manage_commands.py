"""`fmfsd-launch stop|status|logs|cancel|resume RUN`: parse, call one function, return its exit code."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from fmfsd.typer_app import App, Debug, Json

manage_app = App()
MANAGE_COMMANDS = ("stop", "status", "logs", "cancel", "resume")
EXIT_INTERRUPTED = 130

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The run directory, or the directory of a job array.")]
Wait = Annotated[bool, typer.Option("--wait", help="Return once the run has ended.")]


@manage_app.callback()
def manage() -> None:
    """Manage an existing run, wherever it was launched."""


@manage_app.command()
def stop(run: RunFolder, wait: Wait = False, debug: Debug = False) -> None:
    """Stop a run with a checkpoint; its launcher exits with 75. A job that is still queued is removed."""
    from fmfsd.terminal import exit_on_error
    from launcher.manage.stop import request_stop

    with exit_on_error(debug=debug):
        print(request_stop(run.absolute(), wait=wait))


@manage_app.command()
def cancel(run: RunFolder, wait: Wait = False, debug: Debug = False) -> None:
    """End a run at once, without a checkpoint; its launcher then exits with 130."""
    from fmfsd.terminal import exit_on_error
    from launcher.manage.stop import request_cancel

    with exit_on_error(debug=debug):
        print(request_cancel(run.absolute(), wait=wait))


@manage_app.command()
def status(run: RunFolder, as_json: Json = False, debug: Debug = False) -> None:
    """Show the state of a run, or of each run in a folder: where it runs, its progress, its outcome."""
    from fmfsd.terminal import exit_on_error
    from launcher.manage.render_status import render_status

    with exit_on_error(debug=debug):
        print(render_status(run.absolute(), as_json=as_json))


@manage_app.command()
def logs(
    run: RunFolder,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until the run has ended.")] = False,
    rank: Annotated[int | None, typer.Option(min=0, help="Show only this worker.")] = None,
    lines: Annotated[int, typer.Option(min=0, help="Number of last lines of each log.")] = 20,
    debug: Debug = False,
) -> None:
    """Show the logs of workers, their starters and batch jobs; each line names its source."""
    from fmfsd.terminal import exit_on_error
    from launcher.manage.logs import follow_logs, show_logs

    with exit_on_error(debug=debug):
        try:
            (follow_logs if follow else show_logs)(run.absolute(), sys.stdout, rank=rank, lines=lines)
        except KeyboardInterrupt as interrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from interrupt


@manage_app.command()
def resume(run: RunFolder, wait: Wait = False, as_json: Json = False, debug: Debug = False) -> None:
    """Launch a run again with the options of its last launch. --wait waits for the end of a batch job."""
    from fmfsd.terminal import exit_on_error
    from launcher.manage.resume import resume as resume_run

    with exit_on_error(debug=debug):
        folder, cwd = run.absolute(), os.getcwd()
        code = resume_run(folder, wait=wait, as_json=as_json, environment=os.environ, cwd=cwd, argv=sys.argv)
        raise typer.Exit(code)
