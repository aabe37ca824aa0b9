"""Configs: values and defaults, schedules, and parsing of YAML."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fmfsd.config import TrainSchedule, dump_config, find_changes, load_config, preset_names
from fmfsd.config.durations import Duration, parse_duration
from fmfsd.config.load import PRESETS, config_name
from fmfsd.config.resume_rules import CHANGEABLE_KEYS, flatten_keys
from fmfsd.config.strict_yaml import parse_scalar, parse_yaml

RESERVED = {"stop", "status", "logs", "cancel", "resume"}


def write(folder: Path, text: str) -> str:
    path = folder / "config.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", preset_names())
def test_presets_load_and_survive_a_yaml_round_trip(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    assert load_config(write(tmp_path, dump_config(config))) == config
    assert name not in RESERVED


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_preset_file_starts_with_its_command(path: Path) -> None:
    assert path.read_text().startswith(f"# fmfsd-launch {path.stem}")


def test_the_defaults_are_the_published_training_recipe() -> None:
    config = load_config("cifar100-resnet18")
    assert (config.optim.lr, config.optim.momentum, config.optim.weight_decay, config.optim.nesterov) == (
        0.1,
        0.9,
        5e-4,
        False,
    )
    assert (config.train.batch, config.train.epochs) == (128, 200)
    assert [point.amount for point in config.optim.milestones] == [66, 133, 190]
    assert (config.distill.alpha, config.distill.beta, config.distill.temperature) == (0.3, 0.03, 3.0)
    assert config.branches == ("stage1", "stage2", "stage3")


def test_the_large_batch_preset_scales_the_learning_rate_and_warms_up() -> None:
    """The factor is 16 (Goyal et al. 2017), after 5 epochs of 24 steps: 32 samples of each of 64 shards a step."""
    small, large = load_config("cifar100-resnet18"), load_config("cifar100-resnet18-b2048")
    assert [change.key for change in find_changes(small, large)] == ["optim.base_batch", "optim.warmup", "train.batch"]
    assert (small.peak_lr, large.peak_lr) == (0.1, 16 * 0.1)
    assert TrainSchedule.from_config(large, 50_000).warmup_steps == 5 * 24


def test_overrides_are_yaml_and_the_last_one_wins() -> None:
    config = load_config("smoke", ["optim.lr=1e-3", "model.branches=[stage2]", "optim.clip_norm=1", "optim.lr=2e-3"])
    assert (config.optim.lr, config.branches, config.optim.clip_norm) == (2e-3, ("stage2",), 1.0)


def test_a_method_sets_its_defining_values() -> None:
    assert load_config("smoke", ["method=byot"]).model.fusion == "none"
    assert load_config("smoke", ["method=plain"]).branches == ()


def test_the_data_root_is_made_absolute_and_defaults_to_the_given_one() -> None:
    assert load_config("smoke", data_root="/somewhere").data.root == "/somewhere"
    assert load_config("smoke", ["data.root=here"], data_root="/somewhere").data.root == str(Path("here").absolute())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-2.", -2.0),
        ("12", 12),
        ("on", "on"),
        ("yes", "yes"),
        ("No", "No"),
        ("010", "010"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("0x10", "0x10"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("2001-01-01", "2001-01-01"),
        ("9" * 40, float("9" * 40)),
    ],
)
def test_scalars_are_resolved_as_in_yaml_1_2(text: str, value: Any) -> None:
    result = parse_scalar(text)
    assert result == value
    assert type(result) is type(value)


def test_quoted_scalars_are_strings() -> None:
    assert parse_yaml("a: '1'\nb: \"true\"\nc: plain text", "x").content == {"a": "1", "b": "true", "c": "plain text"}


def test_changes_list_each_changed_key() -> None:
    one, other = load_config("smoke"), load_config("smoke", ["optim.lr=0.2", "model.branches=[stage1]"])
    assert list(map(str, find_changes(one, other))) == [
        "model.branches: ['stage1', 'stage2'] -> ['stage1']",
        "optim.lr: 0.1 -> 0.2",
    ]
    assert find_changes(one, one) == []


def test_durations_without_a_unit_are_epochs() -> None:
    assert parse_duration(30) == parse_duration("30 epochs") == Duration(30, "epoch")
    assert parse_duration("500 steps").to_steps(100) == 500
    assert parse_duration(0.5).to_steps(100) == 50
    assert parse_duration("0.001 epochs").to_steps(100) == 1
    assert str(parse_duration("1234567 steps")) == "1234567 steps"
    assert parse_duration(str(Duration(1, "epoch"))) == Duration(1, "epoch")


def test_the_timeline_is_in_steps() -> None:
    config = load_config("cifar100-resnet18", ["train.evaluate_every=100 steps", "checkpoint.every_epochs=2"])
    timeline = TrainSchedule.from_config(config, 50_000)
    assert (timeline.steps_per_epoch, timeline.total_steps) == (390, 78_000)
    assert timeline.milestones == (66 * 390, 133 * 390, 190 * 390)
    assert [step for step in range(500) if timeline.evaluation_due(step)] == [100, 200, 300, 400]
    assert [step for step in range(2000) if timeline.checkpoint_due(step)] == [780, 1560]
    assert timeline.evaluation_due(78_000)
    assert timeline.checkpoint_due(78_000)
    assert not timeline.evaluation_due(0)


def test_the_search_split_gives_350_steps_of_128() -> None:
    assert (
        TrainSchedule.from_config(load_config("cifar100-resnet18", ["data.valid=5200"]), 44_800).steps_per_epoch == 350
    )


def test_max_steps_ends_a_run_early() -> None:
    timeline = TrainSchedule.from_config(load_config("cifar100-resnet18", ["train.max_steps=7"]), 50_000)
    assert timeline.total_steps == 7
    assert timeline.evaluation_due(7)


def test_run_names_have_no_special_characters() -> None:
    assert config_name("/some where/my config$(x).yaml") == "my-config--x-"
    assert config_name("smoke") == "smoke"


@pytest.mark.usefixtures("processes")
def test_configs_need_no_torch() -> None:
    code = "import fmfsd, sys; fmfsd.load_config('smoke'); assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_key_is_fixed_or_may_change_on_resume() -> None:
    """Keys that may change are listed; a new key is fixed by default."""
    keys = {key for key, _ in flatten_keys(load_config("smoke").model_dump(mode="json"))}
    assert keys >= CHANGEABLE_KEYS
    allowed = {
        change.key
        for change in find_changes(*(load_config("smoke", ["data.valid=10", *text]) for text in ([], CHANGED)))
        if change.is_allowed
    }
    assert {key for key in allowed if not key.startswith("engine.")} == CHANGEABLE_KEYS
    assert {key for key in keys if key.startswith("engine.")} < allowed


CHANGED = [
    "data.root=elsewhere",
    "data.images_in=files",
    "train.epochs=9",
    "train.max_steps=7",
    "train.evaluate_every=2",
    "train.evaluate_test=false",
    "train.log_every=2 steps",
    "train.recompute=branches",
    "checkpoint.every_epochs=2",
    "checkpoint.every_steps=5",
    "checkpoint.every_minutes=0.5",
    "checkpoint.keep=9",
    "tracker=[tensorboard]",
    "engine.name=deepspeed",
    "engine.zero_stage=2",
    "engine.offload=true",
    "engine.deepspeed={prescale_gradients: true}",
    "optim.lr=0.2",
    "seed=3",
]


def test_checkpoints_are_due_by_epochs_by_steps_and_at_the_end() -> None:
    def due(*overrides: str) -> list[int]:
        config = load_config("smoke", ["train.max_steps=12", *overrides])
        timeline = TrainSchedule.from_config(config, 64 * 12)
        return [step for step in range(13) if timeline.checkpoint_due(step)]

    assert due() == [6, 12]
    assert due("checkpoint.every_steps=4") == [4, 6, 8, 12]
    assert due("checkpoint.every_epochs=null", "checkpoint.every_steps=5") == [5, 10, 12]
    assert due("checkpoint.every_epochs=null") == [12]
