"""Where Python finds packages, in this process and in a worker with other variables. The standard library only."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec

ANSWER_S = 60.0
PACKAGES = ("fmfsd", "torch", "torchvision", "numpy")
DECIDING = ("HOME", "PYTHONHOME", "PYTHONNOUSERSITE", "PYTHONPATH", "PYTHONUSERBASE")
"""Variables by which Python finds modules."""
_PRINT_ORIGINS = """
import json, sys
from importlib.util import find_spec
found = {name: find_spec(name) for name in sys.argv[1:]}
print(json.dumps({name: spec.origin if spec else None for name, spec in found.items()}))
"""


def differing_imports(
    variables: Mapping[str, str], environment: Mapping[str, str]
) -> dict[str, tuple[str | None, str | None]]:
    """By package: the file that this process imports, and the one that a worker with `variables` does.

    Only of packages for which these differ; nothing is imported. A worker's Python is asked only if something that
    decides it is not as in the `environment` of this process. OSError if that Python does not start.
    """
    if _is_alike(variables, environment):
        return {}
    here = {name: spec.origin if (spec := find_spec(name)) else None for name in PACKAGES}
    there = _origins(variables)
    pairs = {name: (_real(here[name]), _real(there[name])) for name in PACKAGES}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _is_alike(variables: Mapping[str, str], environment: Mapping[str, str]) -> bool:
    """Whether a worker finds modules by the same settings as this process."""
    changed = any(variables.get(name) != environment.get(name) for name in DECIDING)
    return not (changed or sys.flags.ignore_environment or sys.flags.no_user_site)


def _origins(variables: Mapping[str, str]) -> dict[str, str | None]:
    try:
        done = subprocess.run(
            (sys.executable, "-P", "-c", _PRINT_ORIGINS, *PACKAGES),
            env=dict(variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWER_S,
        )
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired as error:
        raise OSError(f"a worker's Python did not start in {ANSWER_S:g} s") from error
    except (ValueError, IndexError) as error:
        raise OSError(f"a worker's Python did not start: {done.stderr.strip()[-500:]}") from error


def _real(path: str | None) -> str | None:
    return os.path.realpath(path) if path is not None else None
