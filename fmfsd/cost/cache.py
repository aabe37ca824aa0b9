"""Keeps what probes have found, by everything that it depends on. No torch, so that it can be asked before a launch."""

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
from fmfsd.cost.estimate import Device, Probe
from fmfsd.system.atomic_files import json_object, read_private, write_json
from fmfsd.system.cache_dir import cache_home
from fmfsd.system.kernel_cache import have_kernels

_COUNTS = {
    "data": ("name", "classes", "size", "shards", "valid", "mean", "std"),
    "model": ("backbone", "branches", "fusion", "masks", "sem", "branch", "pretrained", "sem_groups", "sync_bn"),
    "distill": ("alpha", "beta", "temperature", "label_weight", "teacher", "t_squared", "feature"),
    "optim": ("name", "momentum"),
    "train": ("batch", "micro_batch", "precision", "channels_last", "recompute", "compile", "label_smoothing", "ema"),
    "engine": ("name", "zero_stage", "offload"),
}
"""The keys of a config that what it costs depends on, or may."""
_FORMAT = TypeAdapter(Probe)


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Where this user's probes are kept."""
    return cache_home(environment) / "fmfsd" / "probe"


def cached(config: RunConfig, workers: int, device: Device, folder: Path) -> dict[str, Any] | None:
    """What `fmfsd probe --json` has said of `config` by so many workers on such devices, with this code and this torch.

    None if it was not asked yet. What is damaged, or what others may have written, counts as not there.
    """
    if config.model.pretrained:  # a probe is also what fetches them
        return None
    try:
        key = _key(config, workers, device)
        path = folder / f"{key}.json"
        content = json_object(read_private(path), path)
        return _as_json(probe_of(content["probe"])) if content["key"] == key else None
    except (OSError, ValueError, KeyError, PackageNotFoundError):
        return None


def cached_or(
    make: Callable[[RunConfig, int, Device], Probe], config: RunConfig, workers: int, device: Device, folder: Path
) -> dict[str, Any]:
    """What is cached, else what `make` makes, which is kept; a folder that can't be written is no reason to fail."""
    found = cached(config, workers, device, folder)
    if found is None:
        found, key = _as_json(make(config, workers, device)), _key(config, workers, device)
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_json(folder / f"{key}.json", {"key": key, "probe": found}, durable=False)
    return found


def probe_of(content: Mapping[str, Any]) -> Probe:
    """The value that `content` was made from."""
    return _FORMAT.validate_json(json.dumps(content), strict=True)


def _as_json(found: Probe) -> dict[str, Any]:
    return dict(json.loads(json.dumps(asdict(found))))


def _key(config: RunConfig, workers: int, device: Device) -> str:
    """Everything that the answer depends on; on a CPU also whether our kernels are there, which keep less memory."""
    values = config.model_dump(mode="json")
    counts = {section: {name: values[section][name] for name in names} for section, names in _COUNTS.items()}
    packages = ["torch", "torchvision", *(["timm"] if config.model.backbone.startswith(TIMM) else [])]
    kernels = device == "cpu" and have_kernels()
    what = [counts, config.method, workers, device, kernels, *map(version, packages), _sources()]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _sources() -> str:
    """The sum of this package's code, and of the Python that runs it."""
    package = Path(__file__).parents[1]
    sums = hashlib.sha256(sys.version.encode())
    for path in sorted(each for each in package.rglob("*") if each.suffix in (".py", ".cpp", ".h")):
        sums.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes() + b"\0")
    return sums.hexdigest()
