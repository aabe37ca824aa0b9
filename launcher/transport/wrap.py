"""A command in front of every node's agent, such as a container, which then runs inside."""

import shlex

from fmfsd.errors import ConfigError, Problem

INSIDE = ("LD_LIBRARY_PATH", "LD_PRELOAD", "PATH", "PYTHONPATH", "VIRTUAL_ENV")
"""Variables that workers have from inside the wrapper, where programs and libraries have other places."""
_WITH_PYTHON = 'command -v "$0" >/dev/null && exec "$0" "$@"; exec python3 "$@"'


def parse_wrap(text: str | None) -> tuple[str, ...]:
    """Split the value of `--wrap` as a shell does. ConfigError if an agent could not run behind it."""
    if text is None:
        return ()
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise ConfigError([Problem(f"--wrap {text!a}", f"is no command: {error}")]) from error
    if not words:
        raise ConfigError([Problem("--wrap", "is empty: expected a command, as in 'apptainer exec image.sif'")])
    if words[:2] == ("conda", "run") and not {"--no-capture-output", "--live-stream"} & set(words):
        raise ConfigError([Problem("--wrap", "conda run keeps what agents print: add --no-capture-output")])
    return words


def python_inside(command: tuple[str, ...]) -> tuple[str, ...]:
    """Return `command`, which begins with this machine's Python; where there is none at its place, with python3."""
    return ("sh", "-c", _WITH_PYTHON, *command)
