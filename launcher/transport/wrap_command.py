"""`--wrap`: a command in front of every node's agent, such as a container, inside which the agent runs."""

import shlex

from fmfsd.errors import ConfigError, Problem

WRAPPER_VARIABLES = ("LD_LIBRARY_PATH", "LD_PRELOAD", "PATH", "PYTHONPATH", "VIRTUAL_ENV")
"""Variables that workers get from inside the wrapper, where programs and libraries are at other paths."""
_PYTHON_FALLBACK = 'command -v "$0" >/dev/null && exec "$0" "$@"; exec python3 "$@"'


def parse_wrap(text: str | None) -> tuple[str, ...]:
    """Split the value of `--wrap` as a shell does. ConfigError if an agent could not run behind this command."""
    if text is None:
        return ()
    try:
        command = tuple(shlex.split(text))
    except ValueError as error:
        raise ConfigError([Problem(f"--wrap {text!a}", f"is not a valid command: {error}")]) from error
    if not command:
        raise ConfigError([Problem("--wrap", "is empty: expected a command, as in 'apptainer exec image.sif'")])
    if command[:2] == ("conda", "run") and not {"--no-capture-output", "--live-stream"} & set(command):
        raise ConfigError([Problem("--wrap", "conda run buffers the output of agents: add --no-capture-output")])
    return command


def with_python_fallback(command: tuple[str, ...]) -> tuple[str, ...]:
    """Return `command`, which starts with this machine's Python, with python3 as the fallback inside a wrapper."""
    return ("sh", "-c", _PYTHON_FALLBACK, *command)
