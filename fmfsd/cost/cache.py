"""Cache of cost estimates, keyed by everything that they depend on. No torch, so that a launcher can read it."""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from fmfsd.config import RunConfig
from fmfsd.config.names import TIMM
from fmfsd.cost.cost_report import CostEstimate, Device
from fmfsd.system.atomic_files import parse_json_object, read_private, write_json
from fmfsd.system.cache_dir import cache_home
from fmfsd.system.kernel_cache import can_compile_kernels

_KEYED_SETTINGS = {
    "data": ("name", "classes", "size", "shards", "valid", "mean", "std"),
    "model": ("backbone", "branches", "fusion", "masks", "sem", "branch", "pretrained", "sem_groups", "sync_bn"),
    "distill": ("alpha", "beta", "temperature", "label_weight", "teacher", "t_squared", "feature"),
    "optim": ("name", "momentum"),
    "train": ("batch", "micro_batch", "precision", "channels_last", "recompute", "compile", "label_smoothing", "ema"),
    "engine": ("name", "zero_stage", "offload"),
}
"""The config keys that may change the costs."""
_FORMAT = TypeAdapter(CostEstimate)


def estimate_cache_dir(environment: Mapping[str, str]) -> Path:
    """Return the folder of this user's cached estimates."""
    return cache_home(environment) / "fmfsd" / "probe"


def read_cached(config: RunConfig, workers: int, device: Device, folder: Path) -> dict[str, Any] | None:
    """Return the cached output of `fmfsd probe --json` for `config`, `workers` and `device`, or None.

    An entry counts only for the same code and the same torch. A damaged entry, and one that other users may have
    written, counts as absent.
    """
    if config.model.pretrained:  # `fmfsd probe` also downloads the weights
        return None
    try:
        key = _key(config, workers, device)
        path = folder / f"{key}.json"
        content = parse_json_object(read_private(path), path)
        return _to_dict(parse_estimate(content["probe"])) if content["key"] == key else None
    except (OSError, ValueError, KeyError, PackageNotFoundError):
        return None


def read_or_estimate(
    estimate: Callable[[RunConfig, int, Device], CostEstimate],
    config: RunConfig,
    workers: int,
    device: Device,
    folder: Path,
) -> dict[str, Any]:
    """Return the cached estimate, else cache and return what `estimate` returns. An unwritable folder is no error."""
    content = read_cached(config, workers, device, folder)
    if content is None:
        content, key = _to_dict(estimate(config, workers, device)), _key(config, workers, device)
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_json(folder / f"{key}.json", {"key": key, "probe": content}, durable=False)
    return content


def parse_estimate(content: Mapping[str, Any]) -> CostEstimate:
    """Parse `content`, which `fmfsd probe --json` printed or the cache holds."""
    return _FORMAT.validate_json(json.dumps(content), strict=True)


def _to_dict(estimate: CostEstimate) -> dict[str, Any]:
    return dict(json.loads(json.dumps(asdict(estimate))))


def _key(config: RunConfig, workers: int, device: Device) -> str:
    """Hash all that the estimate depends on; on a CPU also whether our kernels are built: they save less memory."""
    values = config.model_dump(mode="json")
    keys = {section: {name: values[section][name] for name in names} for section, names in _KEYED_SETTINGS.items()}
    packages = ["torch", "torchvision", *(["timm"] if config.model.backbone.startswith(TIMM) else [])]
    kernels = device == "cpu" and can_compile_kernels()
    inputs = [keys, config.method, workers, device, kernels, *map(version, packages), _sources()]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _sources() -> str:
    """Hash this package's source files and the Python version."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted(each for each in package.rglob("*") if each.suffix in (".py", ".cpp", ".h")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()
