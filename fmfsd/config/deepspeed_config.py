"""DeepSpeed's config, built from a run's config, and checks of it that run before a launch and without DeepSpeed.

Names and meanings: DeepSpeed 0.19, docs/_pages/config-json.md.
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from fmfsd.config.schema import RunConfig

_NEVER = 2**31 - 1
_ZERO = "zero_optimization"
_CONTROLLED_BY_CONFIG = {
    "train_batch_size": "train.batch",
    "train_micro_batch_size_per_gpu": "train.micro_batch and the number of workers",
    "gradient_accumulation_steps": "train.batch and train.micro_batch",
    "gradient_clipping": "optim.clip_norm",
    "optimizer": "optim",
    "scheduler": "optim.milestones and optim.warmup",
    **dict.fromkeys(("fp16", "bf16", "torch_autocast", "amp", "data_types"), "train.precision"),
    f"{_ZERO}.stage": "engine.zero_stage",
    f"{_ZERO}.offload_optimizer": "engine.offload",
}
"""DeepSpeed settings that other keys of the run's config control."""
_ACCEPTED = (
    *("communication_data_type", "prescale_gradients", "gradient_predivide_factor", "disable_allgather"),
    *("steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "comms_logger", "flops_profiler"),
    *("tensorboard", "wandb", "csv_monitor"),
    *(
        f"{_ZERO}.{name}"
        for name in (
            *("contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "use_multi_rank_bucket_allreduce"),
            *("allgather_partitions", "allgather_bucket_size", "overlap_comm", "round_robin_gradients"),
            *("sub_group_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"),
            *("stage3_model_persistence_threshold", "stage3_max_live_parameters", "stage3_max_reuse_distance"),
            *("stage3_module_granularity_threshold", "stage3_use_all_reduce_for_fetch_params", "allgather_sequential"),
            *("ignore_unused_parameters", "log_trace_cache_warnings", "memory_efficient_linear"),
        )
    ),
)
"""Settings that `engine.deepspeed` accepts; DeepSpeed's other settings belong to features that are not used here."""


def find_deepspeed_problems(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yield key and message for each setting of `engine.deepspeed` that another key controls or that is unsupported."""
    for name, value in _flatten_settings(config.engine.deepspeed):
        key = f"engine.deepspeed.{name}"
        if name in _CONTROLLED_BY_CONFIG:
            yield key, f"set by {_CONTROLLED_BY_CONFIG[name]} in a run's config, found {value!r}: remove it here"
        elif name not in _ACCEPTED:
            close = difflib.get_close_matches(name, _ACCEPTED, n=1)
            advice = f"did you mean {close[0]}?" if close else f"accepted settings: {', '.join(_ACCEPTED)}"
            yield key, f"not one of the DeepSpeed 0.19 settings that are accepted here; {advice}"


def _flatten_settings(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if name == _ZERO and isinstance(value, Mapping):
            yield from ((f"{_ZERO}.{inner}", setting) for inner, setting in value.items())
        else:
            yield name, value


def build_deepspeed_config(config: RunConfig, num_workers: int) -> dict[str, Any]:
    """Return the config for `deepspeed.initialize`: settings derived from the run's config, and `engine.deepspeed`."""
    return _merge(_derive_settings(config, num_workers), config.engine.deepspeed)


def _derive_settings(config: RunConfig, num_workers: int) -> dict[str, Any]:
    offload = {"offload_optimizer": {"device": "cpu"}} if config.engine.offload else {}
    return {
        "train_micro_batch_size_per_gpu": config.micro_batch // num_workers,
        "gradient_accumulation_steps": config.train.batch // config.micro_batch,
        "gradient_clipping": config.optim.clip_norm or 0.0,
        _ZERO: {"stage": config.engine.zero_stage, **offload},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": _NEVER,
    }


def _merge(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return `settings` with `overrides`; nested mappings in both are merged."""
    nested = {
        key: _merge(settings[key], overrides[key])
        for key in settings.keys() & overrides.keys()
        if isinstance(settings[key], dict)
    }
    return {**settings, **overrides, **nested}
