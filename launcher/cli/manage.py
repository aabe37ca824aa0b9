"""`fmfsd-launch stop|status|logs|cancel|resume RUN`: parse, call one function, exit code."""

import difflib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from fmfsd.command_line import App, Debug, Json
from launcher.cli.options import RUN_COMMANDS

run_app = App()
EXIT_INTERRUPTED = 130
_ALIKE = 0.7
"""So that no preset's name is taken for a mistyped command."""

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder, or the folder of an array.")]
Wait = Annotated[bool, typer.Option("--wait", help="Return once the run has ended.")]


def meant(word: str) -> str:
    """What to tell somebody whose first word is almost one of the commands; empty if it is not."""
    close = difflib.get_close_matches(word, RUN_COMMANDS, n=1, cutoff=_ALIKE)
    return f"{word}: neither a config nor a command: did you mean `fmfsd-launch {close[0]} RUN`?" if close else ""


@run_app.callback()
def of_a_run() -> None:
    """Act on a run that exists, wherever and however it was launched."""


@run_app.command()
def stop(run: RunFolder, wait: Wait = False, debug: Debug = False) -> None:
    """Ask a run to stop with a checkpoint: its launcher then exits with 75; a job that waits in a queue leaves it."""
    from fmfsd.terminal import errors_shown
    from launcher.manage.stop import request_stop

    with errors_shown(debug=debug):
        print(request_stop(run.absolute(), wait=wait))


@run_app.command()
def cancel(run: RunFolder, wait: Wait = False, debug: Debug = False) -> None:
    """End a run at once, without a checkpoint; its launcher then exits with 130."""
    from fmfsd.terminal import errors_shown
    from launcher.manage.stop import request_end

    with errors_shown(debug=debug):
        print(request_end(run.absolute(), wait=wait))


@run_app.command()
def status(run: RunFolder, as_json: Json = False, debug: Debug = False) -> None:
    """Show how a run is doing, or each of the runs in a folder: who runs it, how far it is, what became of it."""
    from fmfsd.terminal import errors_shown
    from launcher.manage.render_status import shown

    with errors_shown(debug=debug):
        print(shown(run.absolute(), as_json=as_json))


@run_app.command()
def logs(
    run: RunFolder,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    rank: Annotated[int | None, typer.Option(min=0, help="Of this worker only.")] = None,
    lines: Annotated[int, typer.Option(min=0, help="How many of the last lines of each log.")] = 20,
    debug: Debug = False,
) -> None:
    """Show what workers, their starters and batch jobs have said, each line with who said it."""
    from fmfsd.terminal import errors_shown
    from launcher.manage.logs import follow_logs, show_logs

    with errors_shown(debug=debug):
        try:
            (follow_logs if follow else show_logs)(run.absolute(), sys.stdout, rank=rank, lines=lines)
        except KeyboardInterrupt as enough:
            raise typer.Exit(EXIT_INTERRUPTED) from enough


@run_app.command()
def resume(run: RunFolder, wait: Wait = False, as_json: Json = False, debug: Debug = False) -> None:
    """Launch a run again as it was last launched; exit codes are those of a launch. --wait: for a batch job's end."""
    from fmfsd.terminal import errors_shown
    from launcher.manage.resume import resume as resume_run

    with errors_shown(debug=debug):
        folder, cwd = run.absolute(), os.getcwd()
        code = resume_run(folder, wait=wait, as_json=as_json, environment=os.environ, cwd=cwd, argv=sys.argv)
        raise typer.Exit(code)
