"""`fmfsd-tune`: parse, call one function, exit code."""

import os
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def main() -> None:
    os.umask(0o077)
    app()


@app.command()
def tune(
    space: Annotated[str, typer.Option(help="A space's file, or a shipped one's name.")],
    config: Annotated[
        str | None, typer.Argument(help="A preset's name or a YAML file; default: the space's own.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and show the space, start nothing.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Check and show a search space. Running the search is not built yet: only --dry-run does something."""
    from fmfsd.errors import ConfigError
    from fmfsd.terminal import errors_shown
    from launcher.shipped import find_space
    from launcher.tune.space import read_space

    with errors_shown(debug=debug):
        found = read_space(find_space(space), config=config)
        if not dry_run:
            raise ConfigError("the space is right, but searching it is not built yet: --dry-run shows it")
        print(f"{found.trials} trials over {found.config}")
        for parameter in found.parameters:
            print(f"  {parameter.describe()}")
