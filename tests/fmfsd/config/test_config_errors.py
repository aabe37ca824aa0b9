"""Config errors: one message with file and line per error, and all errors at once."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fmfsd.config import RunConfig, load_config
from fmfsd.config.strict_yaml import MAX_BYTES, parse_yaml
from fmfsd.errors import ConfigError


def write(folder: Path, text: str) -> str:
    path = folder / "config.yaml"
    path.write_text(text)
    return str(path)


def error_messages(folder: Path, text: str, *overrides: str) -> list[str]:
    """Return the error messages for a config file of `text`, without the folder's name."""
    with pytest.raises(ConfigError) as caught:
        load_config(write(folder, text), overrides)
    return [str(problem).removeprefix(f"{folder}/") for problem in caught.value.problems]


BAD_FILES = {
    "empty": ("", ["config.yaml: expected keys and values, found nothing"]),
    "a list": ("- 1", ["expected keys and values, found list"]),
    "duplicate": ("seed: 1\nseed: 2", ["config.yaml:2: duplicate key seed, also on line 1: remove one of the two"]),
    "duplicate inside": (
        "train:\n  epochs: 1\n  batch: 64\n  epochs: 2",
        ["config.yaml:4: duplicate key train.epochs, also on line 2: remove one of the two"],
    ),
    "tag": (
        "seed: !!python/object/apply:os.system [x]",
        ["tag tag:yaml.org,2002:python/object/apply:os.system is not"],
    ),
    "standard tag": ("seed: !!int '3'", ["tag tag:yaml.org,2002:int is not allowed"]),
    "alias": ("data: &a {}\nmodel: *a", ["config.yaml:2: alias *a is not allowed"]),
    "two documents": ("seed: 1\n---\nseed: 2", ["config.yaml:2: a second document starts here"]),
    "deep": ("a: " + "[" * 40 + "]" * 40, ["nested deeper than 32 levels"]),
    "many": ("a: [" + "1," * 10_001 + "]", ["more than 10000 values"]),
    "malformed": ("seed: [1\nx", ["invalid YAML"]),
    "tab": ("train:\n\tepochs: 1", ["config.yaml:2: invalid YAML"]),
    "key that is a list": ("[1]: 2", ["a key must be a scalar"]),
    "unknown key": ("sead: 3", ["config.yaml:1: sead: unknown key; did you mean seed?"]),
    "unknown key inside": (
        "train:\n  epoch: 3",
        ["config.yaml:2: train.epoch: unknown key; did you mean train.epochs?"],
    ),
    "key of another section": ("alpha: 0.1", ["alpha: unknown key; did you mean distill.alpha?"]),
    "far-off key": (
        "optim: {xyzzy: 1}",
        ["optim.xyzzy: unknown key; optim has name, lr, base_batch, warmup, momentum"],
    ),
    "section is a number": ("optim: 3", ["config.yaml:1: optim: expected an object; found 3"]),
    "bool for int": ("seed: true", ["seed: expected a valid integer; found True"]),
    "bool for float": ("optim: {lr: true}", ["optim.lr: expected a valid number; found True"]),
    "text for number": ("optim: {lr: fast}", ["optim.lr: expected a valid number; found 'fast'"]),
    "leading zero": ("train: {epochs: 010}", ["train.epochs: expected a valid integer; found '010'"]),
    "fraction for int": ("train: {batch: 64.5}", ["train.batch: expected a valid integer"]),
    "word for bool": ("data: {flip: yes}", ["data.flip: expected a valid boolean; found 'yes'"]),
    "nan": ("optim: {lr: .nan}", ["optim.lr: expected a finite number; found nan"]),
    "infinite": ("optim: {lr: .inf}", ["optim.lr: expected a finite number; found inf"]),
    "lr 0": ("optim: {lr: 0}", ["optim.lr: expected greater than 0; found 0"]),
    "negative lr": ("optim: {lr: -1}", ["optim.lr: expected greater than 0; found -1"]),
    "temperature 0": ("distill: {temperature: 0}", ["distill.temperature: expected greater than 0; found 0"]),
    "negative temperature": (
        "distill: {temperature: -3.0}",
        ["distill.temperature: expected greater than 0; found -3.0"],
    ),
    "alpha above 1": ("distill: {alpha: 1.5}", ["distill.alpha: expected less than or equal to 1; found 1.5"]),
    "negative alpha": ("distill: {alpha: -0.1}", ["distill.alpha: expected greater than or equal to 0; found -0.1"]),
    "negative beta": ("distill: {beta: -1}", ["distill.beta: expected greater than or equal to 0; found -1"]),
    "negative label weight": (
        "distill: {label_weight: -1}",
        ["distill.label_weight: expected greater than or equal to 0"],
    ),
    "momentum 1": ("optim: {momentum: 1.0}", ["optim.momentum: expected less than 1; found 1.0"]),
    "momentum of adamw": (
        "optim: {name: adamw, momentum: 0.8}",
        ["optim.momentum: is for optim.name sgd, found adamw: leave it out, or set optim.name sgd"],
    ),
    "betas of sgd": ("optim: {betas: [0.8, 0.99]}", ["optim.betas: is for optim.name adamw, found sgd"]),
    "ZeRO of torch": (
        "engine: {zero_stage: 3, offload: true, deepspeed: {steps_per_print: 1}}",
        [
            (
                "engine.zero_stage: is for engine.name deepspeed, found 3 with engine.name torch: set 1, or "
                "engine.name deepspeed"
            ),
            "engine.offload: is for engine.name deepspeed, found True",
            "engine.deepspeed: is for engine.name deepspeed, found {'steps_per_print': 1}",
        ],
    ),
    "negative weight decay": ("optim: {weight_decay: -1}", ["optim.weight_decay: expected greater than or equal to 0"]),
    "gamma 0": ("optim: {gamma: 0}", ["optim.gamma: expected greater than 0"]),
    "clip norm 0": ("optim: {clip_norm: 0}", ["optim.clip_norm: expected greater than 0"]),
    "label smoothing 1": ("train: {label_smoothing: 1.0}", ["train.label_smoothing: expected less than 1"]),
    "epochs 0": ("train: {epochs: 0}", ["train.epochs: expected greater than 0; found 0"]),
    "steps 0": ("train: {max_steps: 0}", ["train.max_steps: expected greater than 0"]),
    "precision": (
        "train: {precision: fp8}",
        ["train.precision: expected 'fp32', 'bf16', 'fp16' or 'fp64'; found 'fp8'"],
    ),
    "backbone": ("model: {backbone: resnet19}", ["did you mean resnet18?; found 'resnet19'"]),
    "method": ("method: kd", ["'plain' or 'label_smoothing'; found 'kd'"]),
    "data set": (
        "data: {name: mnist}",
        ["data.name: expected 'cifar10', 'cifar100', 'synthetic10', 'synthetic100' or 'folder'"],
    ),
    "tracker": ("tracker: [tensorbord]", ["tracker.0: expected 'tensorboard' or 'wandb'; found 'tensorbord'"]),
    "tracker twice": ("tracker: [wandb, wandb]", ["tracker: wandb is listed 2 times: list it once"]),
    "negative seed": ("seed: -1", ["seed: expected greater than or equal to 0"]),
    "large seed": ("seed: 9223372036854775808", ["seed: expected less than 9223372036854775808"]),
    "shards 0": ("data: {shards: 0}", ["data.shards: expected greater than 0"]),
    "crop padding": ("data: {crop_padding: 33}", ["data.crop_padding: expected less than or equal to 32"]),
    "fill": ("data: {crop_fill: 256}", ["data.crop_fill: expected less than or equal to 255"]),
    "std 0": ("data: {std: [0.2, 0, 0.2]}", ["data.std.1: expected greater than 0; found 0"]),
    "two means": ("data: {mean: [0.5, 0.5]}", ["data.mean: too few values; found [0.5, 0.5]"]),
    "path with a newline": ('data: {root: "a\\nb"}', ["data.root: expected"]),
    "duration": (
        "optim: {milestones: [5 parsecs]}",
        ["optim.milestones.0: expected a positive number of epochs or steps"],
    ),
    "duration 0": (
        "train: {evaluate_every: 0}",
        ["train.evaluate_every: expected a positive number of epochs or steps"],
    ),
    "half a step": (
        "train: {log_every: 0.5 steps}",
        ["train.log_every: expected a whole number of steps; found '0.5 steps'"],
    ),
    "tap": (
        "model: {branches: [stage4]}",
        ["model.branches: resnet18 has no tap 'stage4'; it has stage1.block1, stage1, stage2.block1, stage2, "],
    ),
    "tap of another backbone": (
        "model: {backbone: resnet8, branches: [stage1, stage3]}",
        ["model.branches: resnet8 has no tap 'stage3'; it has stage1, stage2"],
    ),
    "tap twice": ("model: {branches: [stage1, stage1]}", ["model.branches: stage1 is listed 2 times"]),
    "no branches": ("model: {branches: []}", ["model.branches: method fmfsd needs at least one"]),
    "branches of plain": (
        "method: plain\nmodel: {branches: [stage1]}",
        ["config.yaml:2: model.branches: method plain requires [], found ['stage1']: change one of the two"],
    ),
    "fusion of byot": (
        "method: byot\nmodel: {fusion: trunk}",
        ["model.fusion: method byot requires none, found trunk"],
    ),
    "groups": ("model: {sem_groups: 48}", ["model.sem_groups: 48 groups do not divide a map's 64 channels"]),
    "batch and shards": (
        "train: {batch: 100}",
        ["train.batch: 100 is not divisible by data.shards 64; nearest: 64 or 128"],
    ),
    "small batch": ("train: {batch: 32}", ["train.batch: 32 is not divisible by data.shards 64; nearest: 64"]),
    "micro batch": (
        "train: {batch: 256, micro_batch: 100}",
        ["train.micro_batch: 100 must divide train.batch 256 and be divisible by data.shards 64; nearest: 64 or 128"],
    ),
    "micro batch and shards": (
        "train: {batch: 128, micro_batch: 32}",
        ["train.micro_batch: 32 must divide train.batch 128 and be divisible by data.shards 64; nearest: 64 or 128"],
    ),
    "batch above the set": (
        "data: {valid: 49900}",
        ["train.batch: 128 is too large for 100 training samples: set a smaller batch"],
    ),
    "unequal classes": (
        "data: {valid: 5050}",
        ["data.valid: 5050 is not divisible by the number of classes, 100; nearest: 5000 or 5100"],
    ),
    "milestones shrink": (
        "optim: {milestones: [60, 30]}",
        ["optim.milestones: must be increasing, found 60 epochs, 30 epochs"],
    ),
    "milestone at the end": (
        "train: {epochs: 10}\noptim: {milestones: [10]}",
        ["config.yaml:2: optim.milestones: 10 epochs is not before the end, 10 epochs of 390 steps"],
    ),
    "milestone in steps": (
        "train: {epochs: 1}\noptim: {milestones: [400 steps]}",
        ["optim.milestones: 400 steps is not before the end, 1 epochs of 390 steps"],
    ),
    "warm-up and milestone": (
        "optim: {warmup: 67}",
        ["optim.warmup: 67 epochs ends after the first of optim.milestones, 66 epochs: shorten it"],
    ),
    "warm-up to the end": (
        "train: {epochs: 2}\noptim: {milestones: [], warmup: 780 steps}",
        ["config.yaml:2: optim.warmup: 780 steps is not before the end, 2 epochs of 390 steps"],
    ),
    "warm-up 0": ("optim: {warmup: 0}", ["optim.warmup: expected a positive number of epochs or steps"]),
    "base batch 0": ("optim: {base_batch: 0}", ["optim.base_batch: expected greater than 0; found 0"]),
    "nesterov of adamw": (
        "optim: {nesterov: true, name: adamw}",
        ["optim.nesterov: is for optim.name sgd, found adamw"],
    ),
    "nesterov": ("optim: {nesterov: true, momentum: 0}", ["optim.nesterov: needs a momentum above 0"]),
    "keep 0": ("checkpoint: {keep: 0}", ["checkpoint.keep: expected greater than 0"]),
    "bf16 typo": ("train: {presision: bf16}", ["train.presision: unknown key; did you mean train.precision?"]),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_an_invalid_file_is_an_error_with_line_and_reason(case: str, tmp_path: Path) -> None:
    text, expected = BAD_FILES[case]
    messages = error_messages(tmp_path, text)
    assert len(messages) == len(expected), messages
    for message, part in zip(messages, expected, strict=True):
        assert part in message
        assert message.startswith("config.yaml")


BAD_OVERRIDES = {
    "no value": ("optim.lr", "--set optim.lr: expected a.b=c"),
    "no key": ("=3", "--set =3: expected a.b=c"),
    "empty part": ("optim.=3", "--set optim.=3: expected a.b=c"),
    "unknown": ("optim.lrr=3", "--set optim.lrr=3: optim.lrr: unknown key; did you mean optim.lr?"),
    "type": ("train.epochs=many", "--set train.epochs=many: train.epochs: expected a valid integer; found 'many'"),
    "into a value": ("seed.x=1", "--set seed.x=1: seed is a value, not a section"),
    "malformed": ("optim.lr=[", "--set optim.lr=[: invalid YAML"),
    "tag": ("optim.lr=!!float 1", "--set optim.lr=!!float 1: tag tag:yaml.org,2002:float is not allowed"),
}


@pytest.mark.parametrize("case", BAD_OVERRIDES)
def test_an_invalid_override_is_named(case: str, tmp_path: Path) -> None:
    override, expected = BAD_OVERRIDES[case]
    (messages,) = error_messages(tmp_path, "seed: 1", override)
    assert messages.startswith(expected)


def test_all_errors_are_reported_at_once(tmp_path: Path) -> None:
    text = "seed: x\ntrain:\n  epoch: 1\n  batch: 0\noptim: {lr: -1}"
    messages = error_messages(tmp_path, text, "distill.temperature=0", "nonsense")
    places = [message.split(": ")[0] for message in messages]
    assert sorted(places) == [
        "--set distill.temperature=0",
        "--set nonsense",
        "config.yaml:1",
        "config.yaml:3",
        "config.yaml:4",
        "config.yaml:5",
    ]


def test_malformed_yaml_is_shown_with_a_caret(tmp_path: Path) -> None:
    (message,) = error_messages(tmp_path, "seed: 1\ntrain: {epochs: 1")
    assert message.startswith("config.yaml:")
    with pytest.raises(ConfigError, match=r"x:1: invalid YAML: .*\n    a: b: c\n        \^"):
        parse_yaml("a: b: c", "x")


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"\xff\xfe", "not UTF-8: byte 0 is 0xff"), (b"a" * (MAX_BYTES + 1), f"larger than {MAX_BYTES} bytes")],
)
def test_files_that_are_not_text_are_errors(content: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=expected):
        load_config(str(path))


def test_missing_files_folders_and_presets_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: can't be read: No such file"):
        load_config(str(tmp_path / "nowhere.yaml"))
    with pytest.raises(ConfigError, match="can't be read: Is a directory"):
        load_config(f"{tmp_path}/")
    with pytest.raises(ConfigError, match=r"unknown preset 'smoky'; did you mean smoke\? presets: .*smoke"):
        load_config("smoky")


@given(
    st.dictionaries(
        st.sampled_from([*RunConfig.model_fields, "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inside: (
                st.lists(inside, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["lr", "epochs", "batch", "name", "branches", "root", "alpha"]), inside, max_size=3
                )
            ),
            max_leaves=6,
        ),
        max_size=4,
    )
)
def test_any_mapping_is_a_config_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(content))
    try:
        assert isinstance(load_config(str(path)), RunConfig)
    except ConfigError as error:
        assert error.problems
        assert all(problem.message for problem in error.problems)


def test_schema_errors_and_inconsistent_values_are_reported_together(tmp_path: Path) -> None:
    text = "distill:\n  temperature: 0\nmodel:\n  branches: [stage9]\ntrain:\n  batch: 100\n"
    expected = (
        "config.yaml:2: distill.temperature: expected greater than 0",
        "config.yaml:4: model.branches: resnet18 has no tap 'stage9'",
        "config.yaml:6: train.batch: 100 is not divisible by data.shards 64",
        "--set data.valid=7: data.valid: 7 is not divisible by the number of classes, 100",
    )
    messages = error_messages(tmp_path, text, "data.valid=7")
    assert [message.startswith(start) for message, start in zip(messages, expected, strict=True)] == [True] * 4


def test_values_that_depend_on_an_invalid_value_are_not_checked(tmp_path: Path) -> None:
    """A batch of 100 is valid with 50 shards, for example, and the intended number of shards is unknown."""
    (only,) = error_messages(tmp_path, "data:\n  shards: many\ntrain:\n  batch: 100\n")
    assert "data.shards" in only
    (only,) = error_messages(tmp_path, "model: 7\ntrain:\n  epochs: 300\n")
    assert only.startswith("config.yaml:1: model:")
