"""Problems of a sweep are reported together before Ray starts, and a dry run starts nothing."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launcher.agent.available_resources import Resources
from launcher.cli.tune_command import app
from launcher.resources.config_cost import Costs
from tests.helpers.processes import run_command
from tests.helpers.searches import sweep_arguments


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def expect_refusal(*argv: str) -> tuple[int, list[str]]:
    result = CliRunner().invoke(app, argv)
    assert not result.stdout, result.stdout
    return result.exit_code, result.stderr.splitlines()


@pytest.mark.usefixtures("processes")
def test_a_dry_run_shows_the_sweep_and_its_commands_and_writes_nothing(tiny_root: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, sweep_arguments(tiny_root, tmp_path, "--dry-run"))
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(
        "3 trials over cifar100-resnet18: max valid/deepest_top1\nsearch random, scheduler none\n"
    )
    assert "launcher.tune.driver.driver" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["space.yaml"]


@pytest.mark.parametrize("options", [("--help",), ("--space", "loss", "--dry-run")])
@pytest.mark.usefixtures("processes")
def test_help_and_dry_runs_import_neither_ray_nor_optuna_nor_torch(options: tuple[str, ...], tmp_path: Path) -> None:
    code = (
        "import sys; from launcher.cli.tune_command import app\n"
        f"try:\n    app({list(options)})\n"
        "finally:\n    assert not {'ray', 'optuna', 'torch', 'numpy'} & set(sys.modules)"
    )
    result = run_command("python", "-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.usefixtures("processes")
def test_json_of_a_dry_run_is_json(tiny_root: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, sweep_arguments(tiny_root, tmp_path, "--dry-run", "--json"))
    plan = json.loads(result.stdout)
    assert (plan["options"]["trials"], plan["held_out"], plan["launch"]["gpus"]) == (3, 0, 1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ("--metric", "test/deepest_top1"),
            "the test set is evaluated only for the winners, at the end: search on a valid/ metric",
        ),
        (("--metric", "deepest"), "--metric 'deepest': expected a name such as valid/deepest_top1 or cost/train_macs"),
        (("--mode", "max", "--mode", "min"), "--mode: 2 for 1 metrics"),
        (("--search", "tpee"), "did you mean tpe?"),
        (
            ("--scheduler", "asha", "--metric", "valid/loss", "--metric", "cost/params"),
            "--scheduler: asha needs exactly one metric: set --scheduler none",
        ),
        (("--disk-budget", "10X"), "--disk-budget"),
        (("--set", "optim.lr=-1"), "optim.lr"),
        (("--set", "distill.alpha=0.2"), "distill.alpha: both the space and --set distill.alpha=0.2 set it"),
        (("--resume", "nowhere"), "nowhere: is not a sweep folder: it has no ledger"),
    ],
)
def test_invalid_options_are_refused(options: tuple[str, ...], expected: str, tiny_root: Path, tmp_path: Path) -> None:
    argv = options if "--resume" in options else (*sweep_arguments(tiny_root, tmp_path), *options)
    code, errors = expect_refusal(*argv)
    assert code == (3 if "--resume" in options else 2)
    assert any(expected in line for line in errors), errors


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    ("options", "code", "expected"),
    [
        (
            ("--metric", "valid/foo"),
            2,
            "--metric valid/foo: not every trial writes it, because model.branches varies; written",
        ),
        (("--disk-budget", "1M", "--concurrent", "1"), 3, "--disk-budget 1M: 1 at a time with up to "),
        (("--concurrent", "999"), 3, "--concurrent: 999 at a time, but only"),
        (("--nodes", "3"), 2, "3 workers"),
    ],
)
def test_a_dry_run_reports_the_same_problems_as_a_start(
    options: tuple[str, ...], code: int, expected: str, tiny_root: Path, tmp_path: Path
) -> None:
    start = expect_refusal(*sweep_arguments(tiny_root, tmp_path, *options))
    assert expect_refusal(*sweep_arguments(tiny_root, tmp_path, *options, "--dry-run")) == start
    assert start[0] == code
    assert any(expected in line for line in start[1]), start


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(("gpus", "device"), [(("0", "1"), "cuda"), ((), "cpu")])
def test_a_config_is_checked_for_the_devices_of_the_sweep(
    gpus: tuple[str, ...], device: str, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = list[str]()

    def probe_costs(*_: object, device: str, **_more: object) -> Costs:
        devices.append(device)
        return Costs()

    monkeypatch.setattr("launcher.launch_request.probe_costs", probe_costs)
    monkeypatch.setattr(Resources, "detect", lambda _environment: Resources(4, gpus))
    argv = sweep_arguments(tiny_root, tmp_path, "--set", "train.compile=cuda_graphs", "--dry-run")
    result = CliRunner().invoke(app, argv)
    assert devices == [device]
    assert result.exit_code == (0 if gpus else 2), result.stderr
    assert ("train.compile: cuda_graphs need a GPU" in result.stderr) == (not gpus)


def test_a_space_with_nothing_to_vary_is_refused(tiny_root: Path, tmp_path: Path) -> None:
    space = "config: smoke\nparameters:\n  distill.alpha: {const: 0.3}\n"
    code, errors = expect_refusal(*sweep_arguments(tiny_root, tmp_path, space=space))
    assert code == 2
    assert "nothing to vary" in "".join(errors)


@pytest.mark.usefixtures("processes")
def test_without_ray_the_extra_is_named(tiny_root: Path, tmp_path: Path) -> None:
    code = (
        "import importlib.util as util, sys\n"
        "find_spec = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name in ('ray', 'optuna') else find_spec(name, *more)\n"
        "from launcher.cli.tune_command import app\n"
        f"app({sweep_arguments(tiny_root, tmp_path)!r})"
    )
    result = run_command("python", "-c", code, cwd=tmp_path)
    assert result.returncode == 3, result.stderr
    assert "ray: is not installed: `pip install 'fmfsd[tune]'`" in result.stderr
    assert not (tmp_path / "sweep").exists()


@pytest.mark.usefixtures("processes")
def test_a_config_without_held_out_samples_gets_some() -> None:
    result = CliRunner().invoke(app, ["--space", "loss", "--dry-run", "--json"])
    assert json.loads(result.stdout)["held_out"] == 5200
