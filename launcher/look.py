"""What a node's machine offers, told by its agent."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from launcher.resources import Resources


def look(_order: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Python's version, the time in seconds since 1970, cores, and GPUs as CUDA_VISIBLE_DEVICES would name them."""
    found = Resources.detect(environment)
    return {"python": sys.version.split()[0], "time": time.time(), "cores": found.cores, "gpus": list(found.gpus)}
