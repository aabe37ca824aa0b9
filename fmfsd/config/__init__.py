"""The training config: schema, strict YAML, presets, overrides. No torch."""

from fmfsd.config.changes import changes
from fmfsd.config.load import dump_config, dump_given, load_config, preset_names
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
    "changes",
    "dump_config",
    "dump_given",
    "load_config",
    "preset_names",
]
