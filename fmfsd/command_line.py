"""What all our commands have in common: help in panels, -h, --version, shell completion."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from fmfsd.errors import Problem

WHAT, WHERE, HOW, BEFORE, SLURM, OUTPUT = "What", "Where", "How", "Before starting", "Slurm", "Output"
"""Panels of the help."""
_OF_TYPER = ("help", "install_completion", "show_completion")
_WRONG = "fmfsd.wrong_values"
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


class GatheringCommand(Command):
    """Goes on with the defaults of options that have wrong values; `wrong_values` has them, so that the command can
    report them with everything else that is wrong."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for parameter in self.get_params(ctx):
            parameter.handle_parse_result = partial(_handled, parameter, parameter.handle_parse_result)
        return super().parse_args(ctx, args)


def _handled(parameter: Any, handle: Callable[..., Any], ctx: Any, opts: Any, args: list[str]) -> Any:
    try:
        return handle(ctx, opts, args)
    except typer.BadParameter as error:
        ctx.meta.setdefault(_WRONG, []).append(
            Problem(parameter.opts[0], _plain(error.message, opts.get(parameter.name)))
        )
        value = ctx.params[parameter.name] = parameter.get_default(ctx)
        return value, args


def _plain(message: str, found: object) -> str:
    """What is expected, without the words of the library that checks it."""
    message = message.removeprefix("Value error, ").rstrip(".")
    expected = message.removeprefix("Input should be ")
    return f"expected {expected}; found {found}" if expected != message else message


def wrong_values(ctx: typer.Context) -> list[Problem]:
    """Options of a GatheringCommand whose values are wrong, and why."""
    return list(ctx.meta.get(_WRONG, ()))


class App(typer.Typer):
    """Commands of one program; errors are shown by us, not as tracebacks."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(pretty_exceptions_enable=False, context_settings=HELP, **settings)

    def command(  # type: ignore[override]
        self, name: str | None = None, *, cls: type[Command] = Command, **settings: Any
    ) -> Callable[[Any], Any]:
        return super().command(name, cls=cls, context_settings=HELP, **settings)


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
