"""Our three commands, from the first statement on: usable standard streams, and signals without tracebacks."""

import os
import signal
import sys
from importlib import import_module
from typing import NoReturn

from fmfsd.own_launcher import pin

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
"""Exit codes where a signal ends a command before it has anything to stop."""
_STREAMS = {0: ("stdin", "r"), 1: ("stdout", "w"), 2: ("stderr", "w")}


def main() -> None:
    """`fmfsd`."""
    _run("fmfsd.cli")


def launch() -> None:
    """`fmfsd-launch`."""
    signal.signal(signal.SIGTERM, _terminate)
    pin()
    _run("launcher.cli.launch")


def tune() -> None:
    """`fmfsd-tune`."""
    signal.signal(signal.SIGTERM, _terminate)
    pin()
    _run("launcher.cli.tune")


def _run(module: str) -> None:
    try:
        prepare_streams()
        import_module(module).main()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to end but the interpreter


def _terminate(*_: object) -> NoReturn:
    sys.exit(TERMINATED)


def prepare_streams() -> None:
    """Make closed standard streams the null device, and show what an encoding lacks as `?`."""
    for number, (name, mode) in _STREAMS.items():
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 (for as long as the process lives)
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")
    if os.environ.get("COLUMNS", "1").strip("0") == "":
        del os.environ["COLUMNS"]  # some terminals and CI systems set 0
