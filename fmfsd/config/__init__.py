"""The training config: schema, strict YAML, presets, overrides. No torch."""

from fmfsd.config.load import differences, dump_config, load_config, preset_names
from fmfsd.config.schema import DataConfig, DistillConfig, LoopConfig, ModelConfig, OptimConfig, TrainConfig
from fmfsd.config.timeline import Timeline

__all__ = [
    "DataConfig",
    "DistillConfig",
    "LoopConfig",
    "ModelConfig",
    "OptimConfig",
    "Timeline",
    "TrainConfig",
    "differences",
    "dump_config",
    "load_config",
    "preset_names",
]
