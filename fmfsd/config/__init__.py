"""The training config: schema, strict YAML, presets, overrides, consistency checks. Needs no torch."""

from fmfsd.config.load import dump_config, dump_explicit, load_config, preset_names
from fmfsd.config.resume_rules import find_changes
from fmfsd.config.schedule import TrainSchedule
from fmfsd.config.schema import DataConfig, DistillConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig

__all__ = [
    "DataConfig",
    "DistillConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "TrainConfig",
    "TrainSchedule",
    "dump_config",
    "dump_explicit",
    "find_changes",
    "load_config",
    "preset_names",
]
