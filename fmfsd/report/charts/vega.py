"""Rendering of charts to SVG in a child process: V8 aborts its process if it can't reserve enough address space.

`python -m fmfsd.report.charts.vega PARENT` reads a JSON list of Vega-Lite specs from stdin and writes a JSON list of
results to stdout. It ends when the process PARENT ends.
"""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from fmfsd.system.parent_death import die_with_parent

RENDER_TIMEOUT_S = 120.0

Spec = Mapping[str, Any]
RenderResult = Mapping[str, str]
"""Either `svg`, or `error`: the reason why there is none."""


def render_in_child(specs: Sequence[Spec]) -> Sequence[RenderResult]:
    """Return one result per spec; if the child process fails, each is the error."""
    argv = (sys.executable, "-P", "-m", "fmfsd.report.charts.vega", str(os.getpid()))
    try:
        child = subprocess.run(argv, input=json.dumps(specs).encode(), capture_output=True, timeout=RENDER_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return [{"error": f"the chart renderer did not finish within {RENDER_TIMEOUT_S:g} s"}] * len(specs)
    except OSError as error:
        return [{"error": f"the chart renderer could not start: {error}"}] * len(specs)
    if child.returncode == 0:
        return list(json.loads(child.stdout))
    return [{"error": _reason(child.returncode, child.stderr.decode(errors="replace"))}] * len(specs)


def _reason(code: int, errors: str) -> str:
    """Return how the child ended, with V8's message or its last line, and a remedy if the address space is limited."""
    lines = [line.strip("# ") for line in errors.splitlines() if line.strip("# ")]
    reason = next((line for line in lines if line.startswith("Fatal")), lines[-1] if lines else "no message")
    status = f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return f"the chart renderer {status}: {reason}"
    remedy = "run `fmfsd report` where it is unlimited (ulimit -v)"
    return f"the chart renderer {status}: {reason} The address space is limited to {limit >> 20} MiB: {remedy}"


def render_charts(specs: Sequence[Spec]) -> list[RenderResult]:
    """Render each spec in this process and return the results."""
    from vl_convert import vegalite_to_svg

    results: list[RenderResult] = []
    for spec in specs:
        try:
            results.append({"svg": vegalite_to_svg(json.dumps(spec))})
        except ValueError as error:
            results.append({"error": str(error)})
    return results


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]), has_starter=False)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # an abort leaves no file in the user's folder
    json.dump(render_charts(json.load(sys.stdin)), sys.stdout)
