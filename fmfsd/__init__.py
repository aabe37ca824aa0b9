"""Feature map fusion self-distillation: what happens inside a worker and to what a run leaves behind.

Names are loaded when first asked for, so that `import fmfsd` needs no torch.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "FusionNetwork": "fmfsd.model.network",
    "SelfDistillation": "fmfsd.self_distillation",
    "SelfDistillLoss": "fmfsd.distill",
    "SpatialEnhancement": "fmfsd.model.enhance",
    "TrainConfig": "fmfsd.config",
    "fuse": "fmfsd.model.fusion",
    "load": "fmfsd.serving",
    "load_config": "fmfsd.config",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("fmfsd")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fmfsd' has no attribute {name!r}")
