"""DeepSpeed settings in a config, checked without DeepSpeed."""

from pathlib import Path

import pytest

from fmfsd.config import load_config
from fmfsd.config.deepspeed_config import build_deepspeed_config
from fmfsd.config.schema import EngineConfig
from fmfsd.errors import ConfigError

STAGE_2 = ("engine.name=deepspeed", "engine.zero_stage=2")


def test_deepspeed_settings_are_merged_with_those_from_the_config() -> None:
    more = "engine.deepspeed={zero_optimization: {overlap_comm: true}, wall_clock_breakdown: true}"
    config = load_config("smoke", [*STAGE_2, "train.batch=128", "train.micro_batch=64", "engine.offload=true", more])
    result = build_deepspeed_config(config, 2)
    assert result["zero_optimization"] == {"stage": 2, "offload_optimizer": {"device": "cpu"}, "overlap_comm": True}
    assert (result["train_micro_batch_size_per_gpu"], result["gradient_accumulation_steps"]) == (32, 2)
    assert result["wall_clock_breakdown"] is True


def test_an_engine_section_can_be_given_as_the_engines_name(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("engine: deepspeed\n")
    source = str(tmp_path / "my.yaml")
    assert load_config(source, ["engine.zero_stage=3"]).engine == EngineConfig(name="deepspeed", zero_stage=3)
    assert load_config(source, ["engine=torch"]).engine == EngineConfig()
    with pytest.raises(ConfigError, match=r"engine.name: expected 'torch' or 'deepspeed'; found 'deepsped'"):
        load_config(source, ["engine=deepsped"])


@pytest.mark.parametrize(
    ("changes", "expected"),
    {
        ("engine.deepspeed={train_batch_size: 64}",): "set by train.batch in a run's config",
        ("engine.deepspeed={optimizer: {type: Adam}}",): "set by optim in a run's config",
        (
            "engine.deepspeed={scheduler: {type: WarmupLR}}",
        ): "set by optim.milestones and optim.warmup in a run's config",
        ("engine.deepspeed={fp16: {enabled: true}}",): "set by train.precision in a run's config",
        ("engine.deepspeed={zero_optimization: {stage: 3}}",): "set by engine.zero_stage in a run's config",
        ("engine.deepspeed={zero_optimization: {overlap_com: true}}",): "did you mean zero_optimization.overlap_comm?",
        ("engine.deepspeed={zero_optimization: {zero_quantized_weights: true}}",): "not one of the DeepSpeed 0.19",
        ("engine.offload=true", "engine.zero_stage=1"): "needs engine.zero_stage 2 or 3, found 1",
        ("train.precision=fp64",): "ZeRO steps in fp32, found fp64",
    }.items(),
)
def test_settings_that_are_unknown_or_contradict_the_config_are_errors(changes: tuple[str, ...], expected: str) -> None:
    with pytest.raises(ConfigError, match="engine") as error:
        load_config("smoke", [*STAGE_2, *changes])
    assert expected in str(error.value)
