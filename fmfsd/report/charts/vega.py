"""Draws charts as SVG in a child process, as V8 aborts a process in which it can't reserve its address space.

`python -m fmfsd.report.charts.vega PARENT` reads a JSON list of Vega-Lite specs from stdin and writes one of results to
stdout. It ends with the process PARENT.
"""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from fmfsd.system.parent_death import tie_to_parent

ANSWER_S = 120.0

Spec = Mapping[str, Any]
Drawn = Mapping[str, str]
"""`svg`, or the `error` why there is none."""


def draw_in_child(specs: Sequence[Spec]) -> Sequence[Drawn]:
    """Return a result for each spec; if the child process fails, each has its reason."""
    argv = (sys.executable, "-P", "-m", "fmfsd.report.charts.vega", str(os.getpid()))
    try:
        child = subprocess.run(argv, input=json.dumps(specs).encode(), capture_output=True, timeout=ANSWER_S)
    except subprocess.TimeoutExpired:
        return [{"error": f"the process that draws gave no answer in {ANSWER_S:g} s"}] * len(specs)
    except OSError as error:
        return [{"error": f"the process that draws could not start: {error}"}] * len(specs)
    if child.returncode == 0:
        return list(json.loads(child.stdout))
    return [{"error": _reason(child.returncode, child.stderr.decode(errors="replace"))}] * len(specs)


def _reason(code: int, errors: str) -> str:
    """Return how the child ended, with V8's reason or its last line, and what helps where memory is limited."""
    lines = [line.strip("# ") for line in errors.splitlines() if line.strip("# ")]
    reason = next((line for line in lines if line.startswith("Fatal")), lines[-1] if lines else "no message")
    how = f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return f"the process that draws {how}: {reason}"
    remedy = "run `fmfsd report` where it is unlimited"
    return f"the process that draws {how}: {reason} The address space is limited to {limit >> 20} MiB: {remedy}"


def draw(specs: Sequence[Spec]) -> list[Drawn]:
    """Return a result for each spec, drawn in this process."""
    from vl_convert import vegalite_to_svg

    drawn: list[Drawn] = []
    for spec in specs:
        try:
            drawn.append({"svg": vegalite_to_svg(json.dumps(spec))})
        except ValueError as error:
            drawn.append({"error": str(error)})
    return drawn


if __name__ == "__main__":
    tie_to_parent(int(sys.argv[1]), has_starter=False)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # an abort leaves no file in the user's folder
    json.dump(draw(json.load(sys.stdin)), sys.stdout)
