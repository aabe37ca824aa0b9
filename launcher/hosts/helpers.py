"""Short helpers that run here, in the foreground of a launch."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from launcher.ties import die_with_me

END_S = 10.0
LOOK_S = 0.1


def run_here(argv: Sequence[str], *, stop: Callable[[], bool]) -> int:
    """Run a helper in the foreground, its words on our stderr; its exit code. It is ended once `stop` comes true."""
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=sys.stderr, preexec_fn=die_with_me())
    while process.poll() is None and not stop():
        with suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_S)
    process.terminate()
    try:
        return process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
