"""The commands as a user types them: exit codes, output, and modules that must not be imported."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fmfsd.config.load import preset_names
from launcher.cli.launch_command import suggest_command
from launcher.cli.option_types import COMMANDS
from tests.helpers.deepspeed import needs_deepspeed
from tests.helpers.official import write_official
from tests.helpers.processes import command, run_command, wait_until

pytestmark = pytest.mark.usefixtures("processes")

HEAVY_MODULES = ("torch", "ray", "deepspeed", "numpy")


def imported_modules(cwd: Path, *arguments: str) -> set[str]:
    """Return the top-level modules that `fmfsd-launch` with these arguments imports."""
    argv = [sys.executable, "-X", "importtime", command("fmfsd-launch"), *arguments]
    answer = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=True)
    return {line.rpartition("|")[2].strip().split(".")[0] for line in answer.stderr.splitlines()}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("smoke", "--dry-run"),
        ("smoke", "--check"),
        pytest.param(("smoke", "--check", "--set", "engine.name=deepspeed"), marks=needs_deepspeed),
        ("--schema",),
        ("doctor",),
        ("drill", "smoke", "--dry-run"),
        ("verify", "smoke", "--dry-run"),
        ("profile", "smoke", "--dry-run"),
    ],
)
def test_commands_that_start_nothing_import_no_torch_and_write_nothing(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    modules = imported_modules(tmp_path, *arguments)
    assert "launcher" in modules
    assert not modules & set(HEAVY_MODULES)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_prints_every_command_and_variable(tmp_path: Path) -> None:
    answer = run_command(
        "fmfsd-launch", "smoke", "--nodes", "2", "--gpus", "1", "--run-dir", "r", "--dry-run", cwd=tmp_path
    )
    assert answer.returncode == 0
    for part in (
        f"{tmp_path}/r",
        "# node 0",
        "# node 1",
        "torch.distributed.run",
        "FMFSD_ATTEMPT",
        "data prepare synthetic10",
    ):
        assert part in answer.stdout


def test_a_dry_run_in_json_is_the_plan(tmp_path: Path) -> None:
    answer = run_command("fmfsd-launch", "smoke", "--run-dir", "r", "--dry-run", "--json", cwd=tmp_path)
    content = json.loads(answer.stdout)
    assert (content["workers"], content["run_dir"]) == (1, f"{tmp_path}/r")


def test_the_schema_names_every_section(tmp_path: Path) -> None:
    schema = json.loads(run_command("fmfsd-launch", "--schema", cwd=tmp_path).stdout)
    assert {"data", "model", "distill", "optim", "train", "checkpoint", "engine", "method", "seed", "tracker"} == set(
        schema["properties"]
    )


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (("nonsense",), 2, "unknown preset 'nonsense'"),
        (("stpo", "run"), 2, "stpo: neither a config nor a command: did you mean `fmfsd-launch stop`?"),
        (("cancle",), 2, "did you mean `fmfsd-launch cancel`?"),
        (("smoke", "--set", "train.epoch=3"), 2, "did you mean train.epochs?"),
        (("smoke", "--set", "distill.temperature=0"), 2, "distill.temperature: expected greater than 0"),
        (("smoke", "--set", "model.branches=[stage9]"), 2, "resnet8 has no tap 'stage9'"),
        (("smoke", "--set", "train.batch=100"), 2, "nearest: 64 or 128"),
        (("smoke", "--gpus", "3"), 2, "nearest: 2 or 4"),
        (("smoke", "--device", "cuda"), 2, "0 visible: set --device cpu"),
        (("smoke", "--nodes", "0"), 2, "--nodes"),
        (("smoke", "--nonsense"), 2, "--nonsense"),
        (("smoke", "--grace", "inf"), 2, "--grace"),
        (("smoke", "--run-dir", "x" * 300), 2, "expected a path whose names have at most 255 bytes each"),
        (("smoke", "--run-dir", "a\nb"), 2, "expected a path of 1 to 4096 bytes without control characters"),
        (("smoke", "--set", "data.root=" + "x" * 300), 2, "data.root: expected a path whose names have at most 255"),
        (("smoke", "--set", "data.root=~nosuchuser/x"), 2, "no such user"),
        (("smoke", "--set", "data.root=a\udcff"), 2, "not UTF-8"),
        (("smoke", "--set", f"train.log_every={'9' * 400} epochs"), 2, "a positive number of epochs or steps"),
        (("smoke", "--set", "train.batch=1000000000000000000"), 2, "train.batch: expected less than or equal to"),
        (("smoke", "--env", "A B"), 2, "is not a valid variable name"),
        (("missing.yaml",), 2, "missing.yaml: can't be read"),
        (("smoke", "--run-dir", "/proc/nowhere"), 3, "choose another --run-dir"),
    ],
)
def test_bad_input_is_one_clear_message_and_starts_nothing(
    arguments: tuple[str, ...], code: int, expected: str, tmp_path: Path
) -> None:
    answer = run_command("fmfsd-launch", *arguments, cwd=tmp_path, env={"CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"})
    assert answer.returncode == code, answer.stderr
    assert expected in answer.stderr
    assert "Traceback" not in answer.stderr
    assert answer.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_root_from_the_environment_is_checked_like_any_other(tmp_path: Path) -> None:
    answer = run_command("fmfsd-launch", "--check", cwd=tmp_path, env={"FMFSD_DATA": "a\tb"})
    assert (answer.returncode, "FMFSD_DATA: data.root: expected a path" in answer.stderr) == (2, True)


@pytest.mark.parametrize("arguments", [("--schema",), ("smoke", "--dry-run", "--json")])
def test_a_closed_stdout_is_no_error(arguments: tuple[str, ...], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    answer = subprocess.run(
        [command("fmfsd-launch"), *arguments], cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (answer.returncode, answer.stderr) == (0, "")


def test_a_set_that_the_launch_prepares_is_checked_before_a_worker_starts(tmp_path: Path) -> None:
    write_official(tmp_path / "data", "cifar10", train=70, test=64)
    answer = run_command("fmfsd-launch", "cifar10-resnet18", "--run-dir", "run", cwd=tmp_path)
    assert answer.returncode == 3
    assert "train.batch: 128 is more than the 70 training samples" in answer.stderr
    assert not (tmp_path / "run").exists()


def test_the_check_prints_network_costs_and_workers(tmp_path: Path) -> None:
    answer = run_command("fmfsd-launch", "smoke", "--nodes", "2", "--check", cwd=tmp_path)
    sound, *network, costs = answer.stdout.splitlines()
    assert any(line.startswith("branch1  stage1 16x32x32 > sepconv 32 /2 | sepconv 64 /2 > head") for line in network)
    assert max(map(len, network)) <= 120
    assert "branches can't be dropped at no cost" in answer.stdout
    assert sound.startswith("all checks passed: 2 workers on cpu, 2 node agents; synthetic10 is prepared first")
    assert re.fullmatch(
        r"0\.\d\d M parameters, \d+ M multiply-adds an image, at least \d+ MiB of memory a worker", costs
    )


def test_a_check_in_json_has_all_numbers_of_the_probe(tmp_path: Path) -> None:
    answer = run_command("fmfsd-launch", "smoke", "--check", "--json", cwd=tmp_path)
    probed = run_command("fmfsd", "probe", "smoke", "--json", cwd=tmp_path)
    content = json.loads(answer.stdout)
    assert content["workers"] == 1
    assert content["costs"] == json.loads(probed.stdout)


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    """Problems of single config values, of their combination, and of this machine."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    changes = ("distill.temperature=0", "train.batch=100", "model.branchs=x")
    settings = (part for change in changes for part in ("--set", change))
    answer = run_command("fmfsd-launch", "smoke", *settings, "--device", "cuda", "--run-dir", "thesis", cwd=tmp_path)
    assert answer.returncode == 2
    for part in (
        "distill.temperature: expected greater than 0",
        "did you mean model.branches?",
        "100 is not divisible by data.shards 64",
        "0 visible",
        "exists and is not a run directory",
    ):
        assert part in answer.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]


def test_without_network_the_default_exits_3_and_names_smoke(tmp_path: Path) -> None:
    """A proxy that does not exist simulates a machine without network."""
    proxy = {"https_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
    answer = run_command("fmfsd-launch", cwd=tmp_path, env=proxy)
    assert answer.returncode == 3
    for part in ("download failed", f"put cifar-100-python.tar.gz or cifar-100-python/ into {tmp_path}/data", "smoke"):
        assert part in answer.stderr
    assert not (tmp_path / "runs").exists()


def test_tracebacks_are_printed_only_with_debug(tmp_path: Path) -> None:
    quiet, loud = (run_command("fmfsd-launch", "nonsense", *extra, cwd=tmp_path) for extra in ((), ("--debug",)))
    assert "Traceback" not in quiet.stderr
    assert "Traceback" in loud.stderr


def test_preparing_and_verifying_data(tmp_path: Path) -> None:
    prepared = run_command("fmfsd", "data", "prepare", "synthetic10", "--out", "sets", "--valid", "100", cwd=tmp_path)
    assert prepared.returncode == 0
    assert prepared.stdout.strip() == (
        f"{tmp_path}/sets/synthetic10-valid100: 9500 train, 100 valid, 1280 test samples of 10 classes in 64 shards"
    )
    whole = run_command("fmfsd", "data", "verify", "sets", cwd=tmp_path)
    assert (whole.returncode, "intact" in whole.stdout) == (0, True)
    shard = tmp_path / "sets" / "synthetic10-valid100" / "valid-0001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    damaged = run_command("fmfsd", "data", "verify", "sets", cwd=tmp_path)
    assert (damaged.returncode, "valid-0001.safetensors" in damaged.stderr) == (3, True)


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (("cifar99", "--out", "x"), 2, "data.name: expected 'cifar10'"),
        (("cifar100", "--out", "x", "--shards", "0"), 2, "data.shards: expected greater than 0"),
        (("cifar100", "--out", "x"), 3, "has neither cifar-100-python/"),
        (
            ("synthetic10", "--out", "x", "--valid", "7"),
            2,
            "data.valid: 7 is not divisible by the number of classes, 10",
        ),
    ],
)
def test_bad_input_to_prepare_is_one_clear_message(
    arguments: tuple[str, ...], code: int, expected: str, tmp_path: Path
) -> None:
    answer = run_command("fmfsd", "data", "prepare", *arguments, cwd=tmp_path)
    assert (answer.returncode, "Traceback" in answer.stderr) == (code, False)
    assert expected in answer.stderr


@pytest.mark.parametrize("space", ["loss", "branches", "smoke"])
def test_shipped_spaces_are_valid(space: str, tmp_path: Path) -> None:
    answer = run_command("fmfsd-tune", "--space", space, "--dry-run", cwd=tmp_path)
    assert answer.returncode == 0
    assert " trials over " in answer.stdout


def test_a_worker_without_a_run_directory_or_with_a_wrong_world_exits_with_a_message(tmp_path: Path) -> None:
    nowhere = run_command("fmfsd", "train", "nowhere", cwd=tmp_path)
    assert (nowhere.returncode, "nowhere/config.yaml: missing" in nowhere.stderr) == (2, True)
    wrong = run_command("fmfsd", "train", "nowhere", cwd=tmp_path, env={"RANK": "x", "WORLD_SIZE": "1"})
    assert (wrong.returncode, "environment variable RANK" in wrong.stderr) == (2, True)
    assert "Traceback" not in nowhere.stderr + wrong.stderr


def has_pending_sigterm(pid: int) -> bool:
    (pending,) = re.findall(r"^ShdPnd:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(pending, 16) >> (signal.SIGTERM - 1) & 1)


def test_a_launch_that_is_stopped_while_data_is_prepared_leaves_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [command("fmfsd-launch"), "smoke", "--run-dir", "run"], cwd=tmp_path, stdout=subprocess.PIPE
    )
    wait_until(lambda: list((tmp_path / "data").glob(".synthetic10.*/synthetic10")), "the preparation")
    (preparing,) = psutil.Process(process.pid).children()
    preparing.suspend()
    process.terminate()
    wait_until(lambda: has_pending_sigterm(preparing.pid), "the launcher's SIGTERM")
    preparing.resume()
    output, _ = process.communicate(timeout=20)
    assert (process.returncode, b"stopped before anything was started" in output) == (130, True)
    assert not (tmp_path / "run").exists()
    assert [path.name for path in (tmp_path / "data").iterdir() if not path.name.endswith(".lock")] == []


def test_json_output_is_one_document(tmp_path: Path) -> None:
    """This holds even if the launch prepares the data first, and if the run fails."""
    arguments = ("smoke", "--set", "train.max_steps=1", "--set", "optim.milestones=[]", "--json")
    answer = run_command("fmfsd-launch", *arguments, "--run-dir", "one", cwd=tmp_path)
    content = json.loads(answer.stdout)
    assert (content["exit_code"], content["state"], content["run_dir"]) == (0, "finished", f"{tmp_path}/one")
    failing = ("--set", "optim.lr=1e30", "--set", "train.max_steps=9")
    answer = run_command("fmfsd-launch", *arguments, *failing, "--run-dir", "two", cwd=tmp_path)
    content = json.loads(answer.stdout)
    assert (answer.returncode, content["state"]) == (1, "failed")
    assert "the loss is not finite" in content["cause"]


def test_no_preset_is_taken_for_a_mistyped_command() -> None:
    assert not any(suggest_command(name) for name in preset_names())


def test_help_names_every_subcommand(tmp_path: Path) -> None:
    text = run_command("fmfsd-launch", "--help", cwd=tmp_path).stdout
    assert "stop|status|logs|cancel|resume" in text
    assert "doctor|drill|verify|profile" in text
    for word in COMMANDS:
        assert f"fmfsd-launch {word} " in run_command("fmfsd-launch", word, "--help", cwd=tmp_path).stdout


def test_all_problems_of_a_command_line_are_reported_together(tmp_path: Path) -> None:
    wrong = (
        "--env",
        "1x",
        "--env",
        "NOT_SET",
        "--elastic",
        "3:1",
        "--hosts",
        "a,a",
        "--set",
        "foo=1",
    )
    answer = run_command("fmfsd-launch", "smoke", *wrong, cwd=tmp_path)
    assert (answer.returncode, answer.stdout) == (2, "")
    for part in ("1x", "NOT_SET", "--elastic '3:1'", "a is listed twice", "--set foo=1"):
        assert part in answer.stderr


@pytest.mark.fault("F55")
def test_wrong_options_are_reported_together_with_all_problems_of_the_config(tmp_path: Path) -> None:
    options = ("--gpus", "0", "--nodes", "-1", "--on", "mars", "--grace", "soon")
    config = ("optim.lr=-1", "train.init_from=/nowhere", f"data.root={tmp_path}/file")
    (tmp_path / "file").touch()
    settings = (argument for change in config for argument in ("--set", change))
    result = run_command("fmfsd-launch", "smoke", *options, *settings, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    for problem in (
        "--gpus: expected greater than or equal to 1; found 0",
        "--nodes: expected greater than or equal to 1; found -1",
        "--on: 'mars' is not one of 'auto', 'local', 'ssh', 'slurm'",
        "--grace: expected a valid number",
        "--set optim.lr=-1: optim.lr: expected greater than 0; found -1",
        "train.init_from: /nowhere does not exist",
        f"{tmp_path}/file",
    ):
        assert problem in result.stderr


def test_a_wrong_value_of_the_config_hides_no_other_problem(tmp_path: Path) -> None:
    """Workers that do not divide the shards and missing initial weights are still reported; checks that need the wrong
    value are left out."""
    wrong = ("--set", "optim.lr=-1", "--set", "train.init_from=/nowhere")
    result = run_command("fmfsd-launch", "smoke", "--gpus", "3", *wrong, "--check", cwd=tmp_path)
    assert result.returncode == 2
    for problem in ("optim.lr: expected", "3 workers do not divide data.shards 64", "/nowhere does not exist"):
        assert problem in result.stderr
    result = run_command("fmfsd-launch", "smoke", "--gpus", "3", "--set", "data.shards=-1", "--check", cwd=tmp_path)
    assert result.returncode == 2
    assert "data.shards: expected greater than 0" in result.stderr
    assert "do not divide" not in result.stderr
