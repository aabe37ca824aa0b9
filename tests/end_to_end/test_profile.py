"""`fmfsd-launch profile` as a user runs it: a real run of two workers, and the profile of their steps."""

import gzip
import json
from pathlib import Path

import pytest

from fmfsd.run.profile_record import PARTS, count_profile_steps
from tests.helpers.launches import tiny_arguments
from tests.helpers.processes import run_command


@pytest.fixture
def arguments(tiny_root: Path) -> tuple[str, ...]:
    return tiny_arguments(tiny_root, "data.shards=4", "train.batch=4")


def test_the_profile_of_two_workers_splits_a_step_into_parts(arguments: tuple[str, ...], tmp_path: Path) -> None:
    options = ("--gpus", "2", "--steps", "2", "--run-dir", "run", "--json")
    done = run_command("fmfsd-launch", "profile", *arguments, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert (content["run_dir"], content["workers"], content["steps"]) == (str(tmp_path / "run"), 2, 2)
    assert set(content["parts"]) == set(PARTS)
    assert all(spread["least"] > 0 for spread in content["parts"].values())
    assert content["parts"]["communication"]["median"] <= content["communication_s"]["median"]
    assert 0 < content["compute"]["share"] < 1
    for trace in content["traces"]:
        names = {event["name"] for event in json.loads(gzip.decompress(Path(trace).read_bytes()))["traceEvents"]}
        assert {"forward/trunk", "backward", "communication"} <= names
    assert "min ms" in done.stderr
    assert json.loads((tmp_path / "run" / "outcome.json").read_text())["step"] == count_profile_steps(2)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (("--hosts", "a,a", "--set", "foo=1"), ("a is listed twice", "--set foo=1")),
        (("--run-dir", "taken", "--set", "train.log_every=no"), ("taken: exists, and a profile", "train.log_every")),
    ],
)
def test_wrong_options_of_a_profile_are_rejected_before_the_start(
    wrong: tuple[str, ...], expected: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.yaml").touch()
    answer = run_command("fmfsd-launch", "profile", "smoke", *wrong, cwd=tmp_path)
    assert (answer.returncode, answer.stdout) == (2, "")
    for part in expected:
        assert part in answer.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_dry_run_shows_the_plan(tmp_path: Path) -> None:
    options = ("profile", "smoke", "--steps", "7", "--run-dir", "run", "--dry-run", "--json")
    (node,) = json.loads(run_command("fmfsd-launch", *options, cwd=tmp_path).stdout)["nodes"]
    assert node["env"]["FMFSD_PROFILE"] == "7"
    assert list(tmp_path.iterdir()) == []
