"""Feature map fusion self-distillation: what happens inside a worker and to what a run leaves behind.

Names are loaded when first asked for, so that `import fmfsd` needs no torch.
"""

import warnings
from importlib import import_module
from typing import Any

_HOMES = {
    "FusionNetwork": "fmfsd.model.network",
    "SelfDistillation": "fmfsd.self_distillation",
    "SelfDistillLoss": "fmfsd.losses",
    "SpatialEnhancement": "fmfsd.model.spatial_enhancement",
    "RunConfig": "fmfsd.config",
    "fuse": "fmfsd.model.fusion",
    "load": "fmfsd.export.load",
    "load_config": "fmfsd.config",
}
__all__ = [*_HOMES, "__version__"]


_RENAMED = {"TrainConfig": "RunConfig"}
"""Names of version 0.1.0, accepted for one more release."""


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        warnings.warn(f"fmfsd.{name} is now fmfsd.{_RENAMED[name]}", DeprecationWarning, stacklevel=2)
        name = _RENAMED[name]
    if name == "__version__":
        return import_module("importlib.metadata").version("fmfsd")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fmfsd' has no attribute {name!r}")
