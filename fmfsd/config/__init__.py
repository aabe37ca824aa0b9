"""The training config: schema, strict YAML, presets, overrides, consistency checks. Needs no torch."""

from fmfsd.config.load import dump_config, dump_given, load_config, preset_names
from fmfsd.config.resume_rules import changes
from fmfsd.config.schedule import Timeline
from fmfsd.config.schema import DataConfig, DistillConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig

__all__ = [
    "DataConfig",
    "DistillConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "Timeline",
    "TrainConfig",
    "changes",
    "dump_config",
    "dump_given",
    "load_config",
    "preset_names",
]
