"""Where Python finds packages, in this process and in a worker with other variables. Standard library only."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec

ANSWER_TIMEOUT_S = 60.0
PACKAGES = ("fmfsd", "torch", "torchvision", "numpy")
IMPORT_SETTINGS = ("HOME", "PYTHONHOME", "PYTHONNOUSERSITE", "PYTHONPATH", "PYTHONUSERBASE")
"""Variables that decide where Python finds modules."""
_PRINT_ORIGINS = """
import json, sys
from importlib.util import find_spec
found = {name: find_spec(name) for name in sys.argv[1:]}
print(json.dumps({name: spec.origin if spec else None for name, spec in found.items()}))
"""


def find_import_differences(
    variables: Mapping[str, str], environment: Mapping[str, str]
) -> dict[str, tuple[str | None, str | None]]:
    """Return the packages that a worker with `variables` would import from another file than this process.

    By package: the file that this process imports, and the file that the worker imports. Nothing is imported. A Python
    process with `variables` is started only if a setting that decides it differs from the `environment` of this
    process. OSError if that Python does not start.
    """
    if _has_same_settings(variables, environment):
        return {}
    here = {name: spec.origin if (spec := find_spec(name)) else None for name in PACKAGES}
    there = _query_origins(variables)
    pairs = {name: (_real_path(here[name]), _real_path(there[name])) for name in PACKAGES}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _has_same_settings(variables: Mapping[str, str], environment: Mapping[str, str]) -> bool:
    """Return whether a worker finds modules by the same settings as this process."""
    changed = any(variables.get(name) != environment.get(name) for name in IMPORT_SETTINGS)
    return not (changed or sys.flags.ignore_environment or sys.flags.no_user_site)


def _query_origins(variables: Mapping[str, str]) -> dict[str, str | None]:
    try:
        completed = subprocess.run(
            (sys.executable, "-P", "-c", _PRINT_ORIGINS, *PACKAGES),
            env=dict(variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWER_TIMEOUT_S,
        )
        return dict(json.loads(completed.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired as error:
        raise OSError(f"a worker's Python did not start in {ANSWER_TIMEOUT_S:g} s") from error
    except (ValueError, IndexError) as error:
        raise OSError(f"a worker's Python did not start: {completed.stderr.strip()[-500:]}") from error


def _real_path(path: str | None) -> str | None:
    return os.path.realpath(path) if path is not None else None
