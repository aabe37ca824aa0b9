"""Feature map fusion self-distillation: training in a worker process, and tools for the results of a run.

Names are loaded lazily (PEP 562), so that `import fmfsd` needs no torch.
"""

import warnings
from importlib import import_module
from typing import Any

_MODULES = {
    "FusionNetwork": "fmfsd.model.network",
    "SelfDistillation": "fmfsd.self_distillation",
    "SelfDistillLoss": "fmfsd.losses",
    "SpatialEnhancement": "fmfsd.model.spatial_enhancement",
    "RunConfig": "fmfsd.config",
    "fuse": "fmfsd.model.fusion",
    "load": "fmfsd.export.load",
    "load_config": "fmfsd.config",
}
__all__ = [*_MODULES, "__version__"]


_RENAMED = {"TrainConfig": "RunConfig"}
"""Old names from version 0.1.0, accepted for one more release."""


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        warnings.warn(f"fmfsd.{name} is now fmfsd.{_RENAMED[name]}", DeprecationWarning, stacklevel=2)
        name = _RENAMED[name]
    if name == "__version__":
        return import_module("importlib.metadata").version("fmfsd")
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'fmfsd' has no attribute {name!r}")
