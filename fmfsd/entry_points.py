"""Entry points of the three commands: usable standard streams, and signals without tracebacks."""

import os
import signal
import sys
from importlib import import_module
from typing import NoReturn

from fmfsd.own_launcher import pin_launcher

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
"""Exit codes of a command that a signal ends before it has started anything."""
_STREAMS = {0: ("stdin", "r"), 1: ("stdout", "w"), 2: ("stderr", "w")}


def main() -> None:
    """Run `fmfsd`."""
    _run("fmfsd.cli")


def launch() -> None:
    """Run `fmfsd-launch`."""
    signal.signal(signal.SIGTERM, _terminate)
    pin_launcher()
    _run("launcher.cli.launch_command")


def tune() -> None:
    """Run `fmfsd-tune`."""
    signal.signal(signal.SIGTERM, _terminate)
    pin_launcher()
    _run("launcher.cli.tune_command")


def _run(module: str) -> None:
    try:
        prepare_streams()
        import_module(module).main()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the interpreter is left to end


def _terminate(*_: object) -> NoReturn:
    sys.exit(TERMINATED)


def prepare_streams() -> None:
    """Open closed standard streams on the null device, and print characters that the encoding lacks as `?`."""
    for number, (name, mode) in _STREAMS.items():
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor, which is `number`
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 (open until the process ends)
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")
    if os.environ.get("COLUMNS", "1").strip("0") == "":
        del os.environ["COLUMNS"]  # some terminals and CI systems set 0
