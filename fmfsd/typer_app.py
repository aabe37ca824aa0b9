"""Common parts of all commands: help panels, -h, --version, shell completion, invalid option values."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from fmfsd.errors import Problem

PANEL_WHAT, PANEL_WHERE, PANEL_HOW, PANEL_BEFORE, PANEL_SLURM, PANEL_OUTPUT = (
    "What",
    "Where",
    "How",
    "Before starting",
    "Slurm",
    "Output",
)
"""Titles of the panels in the help."""
_TYPER_OPTIONS = ("help", "install_completion", "show_completion")
_INVALID_OPTIONS = "fmfsd.invalid_options"
HELP_SETTINGS = {"help_option_names": ["-h", "--help"]}


class PanelCommand(TyperCommand):
    """A command whose help shows no type for flags, and --help in the last panel."""

    def get_params(self, ctx: Any) -> Any:
        parameters: list[Any] = super().get_params(ctx)
        for parameter in parameters:
            if getattr(parameter, "is_flag", False) and parameter.metavar is None:
                parameter.metavar = ""
            if parameter.name in _TYPER_OPTIONS:
                parameter.rich_help_panel = PANEL_OUTPUT
        return parameters


class ErrorCollectingCommand(PanelCommand):
    """A command that collects options with invalid values and continues with their defaults.

    The command reports them, as returned by `invalid_options`, together with all other problems.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for parameter in self.get_params(ctx):
            parameter.handle_parse_result = partial(_parse_or_default, parameter, parameter.handle_parse_result)
        return super().parse_args(ctx, args)


def _parse_or_default(parameter: Any, handle: Callable[..., Any], ctx: Any, opts: Any, args: list[str]) -> Any:
    try:
        return handle(ctx, opts, args)
    except typer.BadParameter as error:
        ctx.meta.setdefault(_INVALID_OPTIONS, []).append(
            Problem(parameter.opts[0], _format_message(error.message, opts.get(parameter.name)))
        )
        value = ctx.params[parameter.name] = parameter.get_default(ctx)
        return value, args


def _format_message(message: str, value: object) -> str:
    """Return the message without pydantic's prefixes."""
    message = message.removeprefix("Value error, ").rstrip(".")
    expected = message.removeprefix("Input should be ")
    return f"expected {expected}; found {value}" if expected != message else message


def invalid_options(ctx: typer.Context) -> list[Problem]:
    """Return a problem for each invalid option of an ErrorCollectingCommand."""
    return list(ctx.meta.get(_INVALID_OPTIONS, ()))


class App(typer.Typer):
    """The commands of one program, with our own error output in place of typer's tracebacks."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(pretty_exceptions_enable=False, context_settings=HELP_SETTINGS, **settings)

    def command(  # type: ignore[override]
        self, name: str | None = None, *, cls: type[PanelCommand] = PanelCommand, **settings: Any
    ) -> Callable[[Any], Any]:
        return super().command(name, cls=cls, context_settings=HELP_SETTINGS, **settings)


def _show_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        print(f"fmfsd {version('fmfsd')}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option(
        "--version", callback=_show_version, is_eager=True, help="Show the version.", rich_help_panel=PANEL_OUTPUT
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.", rich_help_panel=PANEL_OUTPUT)]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.", rich_help_panel=PANEL_OUTPUT)]
