"""Search spaces: every mistake is reported with its line before the sweep starts."""

import random
import re
from pathlib import Path
from typing import Any

import pytest

from fmfsd.config import load_config
from fmfsd.errors import ConfigError
from launcher.config.packaged_files import find_space, packaged_folder
from launcher.tune.space.draw import draw_random
from launcher.tune.space.load import read_space
from launcher.tune.space.parameters import format_overrides

SHIPPED = sorted(path.stem for path in packaged_folder("tune_spaces").glob("*.yaml"))


def space(folder: Path, parameters: str, head: str = "config: smoke\n") -> Path:
    path = folder / "space.yaml"
    path.write_text(f"{head}parameters:\n  {parameters}\n")
    return path


def test_every_kind_of_parameter_is_parsed(tmp_path: Path) -> None:
    lines = (
        "distill.alpha: {uniform: [0.0, 0.9]}",
        "distill.beta: {loguniform: [1.0e-3, 0.3]}",
        "optim.momentum: {quniform: [0.5, 0.9, 0.1]}",
        "seed: {int: [0, 5]}",
        "distill.temperature: {choice: [1, 3]}",
        "method: {grid: [fmfsd, byot]}",
        "model.branches: {subset: {of: [stage1, stage2], min: 1}}",
        "optim.lr: {const: 0.05}",
        "optim.weight_decay: {uniform: [0.0, 1.0e-3], when: {method: fmfsd}}",
    )
    parsed = read_space(space(tmp_path, "\n  ".join(lines), head="config: smoke\ntrials: 9\n"))
    assert (parsed.config, parsed.trials) == ("smoke", 9)
    kinds = [parameter.kind for parameter in parsed.parameters]
    assert kinds == ["uniform", "loguniform", "quniform", "int", "choice", "grid", "subset", "const", "uniform"]
    assert parsed.parameters[-1].when == (("method", ("fmfsd",)),)
    assert parsed.parameters[6].values_to_check() == [["stage1"], ["stage2"], ["stage1", "stage2"]]


def test_values_are_checked_where_their_condition_holds(tmp_path: Path) -> None:
    """ResNet-8, the backbone of the base config, has no stage 3."""
    lines = (
        "model.branches: {subset: {of: [stage1, stage3]}, when: {model.backbone: [resnet18, resnet34]}}",
        "model.backbone: {choice: [resnet8, resnet18, resnet34]}",
    )
    parsed = read_space(space(tmp_path, "\n  ".join(lines)))
    assert parsed.parameters[0].when == (("model.backbone", ("resnet18", "resnet34")),)


def test_values_are_checked_together_with_constants_and_other_parameters(tmp_path: Path) -> None:
    branches = "model.branches: {subset: {of: [stage1, stage3]}}"
    for backbone in ("{const: resnet18}", "{choice: [resnet18, resnet34]}"):
        read_space(space(tmp_path, f"model.backbone: {backbone}\n  {branches}"))


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("distill.alfa: {uniform: [0, 1]}", "space.yaml:3: distill.alfa: unknown key; did you mean distill.alpha?"),
        ("distill.alpha: {uniform: [0.9, 0.1]}", "low 0.9 is not below high 0.1"),
        ("distill.alpha: {uniform: [0.5, 0.5]}", "low 0.5 is not below high 0.5"),
        ("distill.alpha: {uniform: [0.0, 1.5]}", "distill.alpha: expected less than or equal to 1; found 1.5"),
        ("distill.alpha: {uniform: [0.0]}", "uniform: expected [low, high], found [0.0]"),
        ("distill.alpha: {uniform: [a, b]}", "uniform: expected [low, high]"),
        ("distill.beta: {loguniform: [0, 1]}", "low 0 is not above 0"),
        ("optim.momentum: {quniform: [0.5, 0.9, 0.5]}", "step 0.5 does not fit between 0.5 and 0.9"),
        ("seed: {int: [0, 1.5]}", "int: expected [low, high]"),
        ("distill.temperature: {choice: []}", "expected a list of values, found []"),
        ("distill.temperature: {choice: [1, 1]}", "1 is listed more than once"),
        ("distill.temperature: {choice: [1, 0]}", "expected greater than 0; found 0"),
        ("distill.temperature: {chioce: [1]}", "expected one of uniform, loguniform"),
        ("distill.temperature: {choice: [1], grid: [1]}", "found choice, grid"),
        ("distill.temperature: 3", "expected {kind: values}"),
        ("distill.temperature: {choice: [1], when: x}", "when: expected config keys and values"),
        ("distill.temperature: {choice: [1], when: {method: kd}}", "method: expected 'fmfsd', "),
        ("model.branches: {subset: {of: [stage1, stage3]}}", "resnet8 has no tap 'stage3'"),
        ("model.branches: {subset: {of: [stage1], min: 2}}", "min 2 and max 1 do not fit 1 elements"),
        ("model.branches: {subset: [stage1]}", "subset: expected {of: [...]"),
        ("model.branches: {subset: {of: [stage1, stage2], min: 0}}", "method fmfsd needs at least one"),
        ("model: {choice: [{}]}", "model: is a section: name one of its keys, such as model.backbone"),
        ("data.valid: {choice: [0, 1280]}", "data.valid: can not be searched: all trials train and are evaluated"),
        ("checkpoint.keep: {int: [1, 3]}", "checkpoint.keep: can not be searched: it has no effect"),
        ("optim.lr: {uniform: [.nan, 1]}", "uniform: expected [low, high], found [nan, 1]"),
        ("train.epochs: {uniform: [2, 5]}", "train.epochs: expected a valid integer; found 2.0"),
        ("seed: {int: [0, 3], when: {metod: fmfsd}}", "seed: when: metod: unknown key; did you mean method?"),
        ("seed: {int: [0, 3], when: {seed: 1}}", "seed <- seed: the conditions form a cycle"),
        ("seed: {int: [3, 0], when: 1}", "seed: int: low 3 is not below high 0"),
        ("distill.temperature: {const: 3}", "nothing to vary over smoke"),
        ("distill.temperature: {choice: [3]}", "nothing to vary over smoke"),
    ],
)
def test_a_mistake_is_named_with_its_line(parameters: str, expected: str, tmp_path: Path) -> None:
    path = space(tmp_path, parameters)
    with pytest.raises(ConfigError) as raised:
        read_space(path)
    assert expected in str(raised.value)
    assert str(raised.value).startswith((f"{path}:3", f"{path}:2: nothing to vary"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "parameters: expected config keys and their ranges or choices, found none"),
        ("parameters: {}", "parameters: expected config keys and their ranges or choices, found none"),
        ("parameters: {seed: {int: [0, 2]}}\ntrails: 3", "unknown key trails"),
        ("parameters: {seed: {int: [0, 2]}}\ntrials: 0", "trials: expected a positive number, found 0"),
        ("parameters: {seed: {int: [0, 2]}}\nconfig: 3", "config: expected the name of a preset or a file"),
        ("parameters: {seed: {int: [0, 2]}}\nconfig: smoky", "unknown preset 'smoky'"),
    ],
)
def test_a_mistake_around_the_parameters_is_named(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected):
        read_space(path)


def problems(path: Path, **options: Any) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        read_space(path, **options)
    return [str(problem) for problem in raised.value.problems]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("distill.teacher: ensembel", 'distill.teacher is never "ensembel"; it is distill.teacher: choice'),
        ("distill.teacher: [deepest, fused]", 'distill.teacher is never "fused"'),
        ("distill.alpha: 0.5", "distill.alpha is never 0.5; it is distill.alpha: uniform"),
        ("model.branches: [[stage2, stage1]]", 'model.branches is never ["stage2", "stage1"]'),
        ("train.epochs: .nan", "train.epochs is never NaN; it is train.epochs: int [2, 3]"),
        ("train.epochs: []", "when: train.epochs: expected a value or a list of values, found []"),
        ("optim.nesterov: 1", "when: optim.nesterov: expected a valid boolean; found 1"),
        ("{distill.teacher: deepest, optim.lr: 0.1}", "when: these conditions never hold together"),
    ],
)
def test_a_condition_that_never_holds_is_named(condition: str, expected: str, tmp_path: Path) -> None:
    lines = (
        "distill.teacher: {choice: [deepest, ensemble]}",
        "distill.alpha: {uniform: [0, 1]}",
        "optim.lr: {choice: [0.1, 0.2], when: {distill.teacher: ensemble}}",
        "model.branches: {subset: {of: [stage1, stage2]}}",
        "train.epochs: {int: [2, 3]}",
        f"seed: {{int: [0, 5], when: {{{condition.strip('{}')}}}}}",
    )
    (message,) = problems(space(tmp_path, "\n  ".join(lines)))
    assert expected in message
    assert message.startswith(f"{tmp_path}/space.yaml:8: seed: ")


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    lines = (
        "distill.alfa: {uniform: [0, 1]}",
        "distill.beta: {uniform: [1, 0], when: [x]}",
        "optim.lr: {choice: [0.1, 0], when: {distill.beta: 0.1}}",
        "data.root: {choice: [a, b]}",
    )
    messages = problems(space(tmp_path, "\n  ".join(lines), head="config: smoke\ntrials: none\n"))
    assert [text.split(":")[1] for text in messages] == ["2", "5", "5", "7", "4", "6"]


def test_invalid_combinations_are_refused_with_the_conflicting_values(tmp_path: Path) -> None:
    lines = (
        "distill.alpha: {uniform: [0.0, 0.9]}",
        "model.sem: {choice: [sge, softmax]}",
        "model.masks: {choice: [averaged, own]}",
        "model.branches: {const: [stage1, stage2]}",
    )
    (message,) = problems(space(tmp_path, "\n  ".join(lines)))
    assert message.startswith(f"{tmp_path}/space.yaml:4: model.sem: the average of softmax masks is constant")
    assert message.endswith('; found with model.sem "softmax": exclude this combination with a `when`')


def test_the_config_path_is_relative_to_the_space_and_can_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("method: byot\ndata: {name: synthetic10}\nmodel: {backbone: resnet20}\n")
    path = space(tmp_path, "seed: {int: [0, 5], when: {method: byot}}", head="config: ./mine.yaml\n")
    assert read_space(path).config == str(tmp_path / "mine.yaml")
    assert read_space(path).size() == 6
    assert problems(path, config="smoke") == [f"{path}:2: nothing to vary over smoke: the space has only one draw"]


def test_a_searched_key_can_not_be_set_too(tmp_path: Path) -> None:
    path = space(tmp_path, "optim.lr: {uniform: [0.1, 0.2]}\n  seed: {int: [0, 5], when: {optim.nesterov: true}}")
    assert read_space(path, overrides=["optim.nesterov=true"]).base["optim.nesterov"] is True
    (message,) = problems(path, overrides=["optim.lr=0.3"])
    assert message == f"{path}:3: optim.lr: both the space and --set optim.lr=0.3 set it: remove one of them"


def test_spaces_are_found_by_name_or_path(tmp_path: Path) -> None:
    assert find_space("loss") == packaged_folder("tune_spaces") / "loss.yaml"
    assert find_space("here/mine.yaml") == Path("here/mine.yaml")
    with pytest.raises(ConfigError, match=r"unknown search space 'los'; did you mean loss\?"):
        find_space("los")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_draw_of_a_shipped_space_is_a_valid_config(name: str) -> None:
    """The draws differ from the sample that the check of a space uses."""
    space, rng = read_space(find_space(name)), random.Random(1)
    for _ in range(50):
        load_config(space.config, format_overrides(draw_random(space, rng)))


def test_shipped_spaces_cover_the_switches_of_the_method() -> None:
    keys = {parameter.key for name in SHIPPED for parameter in read_space(find_space(name)).parameters}
    switches = ("branches", "fusion", "masks", "sem", "branch")
    expected = {f"model.{name}" for name in switches} | {
        f"distill.{name}" for name in ("teacher", "t_squared", "feature")
    }
    assert expected | {"method"} <= keys


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_space_opens_with_its_command(name: str) -> None:
    first = find_space(name).read_text().splitlines()[0]
    assert first.startswith(f"# fmfsd-tune --space {name} ")
    assert re.search(r" · (not searched yet|finding: )", first)
