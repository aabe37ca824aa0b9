"""`fmfsd-launch --profile`, as a user starts it: a real run by two workers, and what it says of their steps."""

import gzip
import json
from pathlib import Path

import pytest

from fmfsd.run.profile_record import PARTS, steps_to_profile
from tests.helpers.launches import tiny_arguments
from tests.helpers.processes import run_command


@pytest.fixture
def arguments(tiny_root: Path) -> tuple[str, ...]:
    return tiny_arguments(tiny_root, "data.shards=4", "train.batch=4")


def test_two_workers_say_where_their_steps_go(arguments: tuple[str, ...], tmp_path: Path) -> None:
    words = ("--gpus", "2", "--profile", "--profile-steps", "2", "--run-dir", "run", "--json")
    done = run_command("fmfsd-launch", *arguments, *words, cwd=tmp_path)
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
    assert "least ms" in done.stderr
    assert json.loads((tmp_path / "run" / "outcome.json").read_text())["step"] == steps_to_profile(2)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (("--drill", "hang", "--set", "foo=1"), ("--profile, --drill: each starts its own runs", "--set foo=1")),
        (("--verify-invariance", "1,2"), ("--verify-invariance, --profile: it selects the runs",)),
        (("--on", "slurm", "--dry-run"), ("--profile: shows what it finds, and this is a job to come",)),
        (("--run-dir", "taken", "--set", "train.log_every=no"), ("taken: exists, and --profile", "train.log_every")),
    ],
)
def test_what_can_not_be_profiled_is_refused_before_anything_starts(
    wrong: tuple[str, ...], expected: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.yaml").touch()
    answer = run_command("fmfsd-launch", "smoke", "--profile", *wrong, cwd=tmp_path)
    assert (answer.returncode, answer.stdout) == (2, "")
    for part in expected:
        assert part in answer.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_dry_run_shows_the_plan(tmp_path: Path) -> None:
    words = ("smoke", "--profile", "--profile-steps", "7", "--run-dir", "run", "--dry-run", "--json")
    (node,) = json.loads(run_command("fmfsd-launch", *words, cwd=tmp_path).stdout)["nodes"]
    assert node["env"]["FMFSD_PROFILE"] == "7"
    assert list(tmp_path.iterdir()) == []
