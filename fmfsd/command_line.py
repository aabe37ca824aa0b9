"""What all our commands have in common: help in panels, -h, --version, shell completion."""

from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

WHAT, WHERE, HOW, BEFORE, SLURM, OUTPUT = "What", "Where", "How", "Before starting", "Slurm", "Output"
"""Panels of the help."""
_OF_TYPER = ("help", "install_completion", "show_completion")
HELP = {"help_option_names": ["-h", "--help"]}


class Command(TyperCommand):
    """Its help has no type beside options that take no value, and --help in the last panel."""

    def get_params(self, ctx: Any) -> Any:
        found: list[Any] = super().get_params(ctx)
        for parameter in found:
            if getattr(parameter, "is_flag", False) and parameter.metavar is None:
                parameter.metavar = ""
            if parameter.name in _OF_TYPER:
                parameter.rich_help_panel = OUTPUT
        return found


class App(typer.Typer):
    """Commands of one program; errors are shown by us, not as tracebacks."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(pretty_exceptions_enable=False, context_settings=HELP, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        return super().command(name, cls=Command, context_settings=HELP, **settings)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"fmfsd {version('fmfsd')}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.", rich_help_panel=OUTPUT),
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.", rich_help_panel=OUTPUT)]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.", rich_help_panel=OUTPUT)]
