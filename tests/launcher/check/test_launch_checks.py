"""All problems are reported before anything starts, and existing files are not changed."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from fmfsd.config import DataConfig, dump_config, load_config
from fmfsd.data.prepare import prepare
from fmfsd.data.shards.index import CHECKED_AT_LAUNCH_BYTES
from fmfsd.errors import CheckError, ConfigError
from fmfsd.run.run_dir import RunDir
from launcher.agent.available_resources import Resources
from launcher.check import machine_checks, software_checks
from launcher.check.launch_checks import is_prepared, require_valid_launch
from launcher.config.launch_config import LaunchConfig
from launcher.resources.site import Site
from tests.conftest import quiet
from tests.helpers.checks import CPU_SITE, assert_no_problems, run_failing_checks
from tests.helpers.folders import write_folders
from tests.helpers.runs import make_run, tiny_config
from tests.helpers.users import call_as_other_user, common_folder, needs_second_user


def test_a_valid_launch_passes(data_root: Path) -> None:
    config = tiny_config(data_root)
    assert_no_problems(config)
    assert is_prepared(config)


@pytest.mark.parametrize(
    ("launch", "gpus", "expected"),
    [
        (LaunchConfig(gpus=3), (), "3 workers do not divide data.shards 64; nearest: 2 or 4"),
        (LaunchConfig(nodes=2, gpus=48), (), "96 workers do not divide data.shards 64; nearest: 64"),
        (LaunchConfig(gpus=4), ("0", "1"), "1 x 4 workers need a GPU each, 2 visible: set --gpus 2"),
        (LaunchConfig(nodes=2, gpus=2), ("0",), "2 x 2 workers need a GPU each, 1 visible: set --device cpu"),
        (LaunchConfig(device="cuda"), (), "1 x 1 workers need a GPU each, 0 visible: set --device cpu"),
    ],
)
def test_workers_must_fit_shards_and_gpus(
    launch: LaunchConfig, gpus: tuple[str, ...], expected: str, data_root: Path
) -> None:
    code, text = run_failing_checks(tiny_config(data_root), launch, Site(Resources(cores=2, gpus=gpus)))
    assert code == 2
    assert expected in text


@pytest.mark.parametrize(
    ("launch", "site", "expected"),
    [
        (
            LaunchConfig(gpus=2),
            Site(Resources(8, ("0", "1"))),
            "cuda_graphs support one worker, found 2: set true, or",
        ),
        (LaunchConfig(), Site(Resources(8, ("0", "1"))), "cuda_graphs support one worker, found 2"),
        (LaunchConfig(nodes=2, gpus=1), Site(Resources(8, ("0",)), "ssh", ("n1", "n2")), "one worker, found 2"),
        (LaunchConfig(nodes=2, gpus=1), Site(Resources(8, ("0",)), "sbatch", ("a", "b")), "one worker, found 2"),
        (LaunchConfig(device="cpu"), Site(Resources(8), "ssh", ("n1",)), "cuda_graphs need a GPU"),
        (LaunchConfig(), CPU_SITE, "cuda_graphs need a GPU, and workers use the CPU: set true or false"),
        (LaunchConfig(), Site(Resources(8, ("0",))), None),
        (LaunchConfig(gpus=1), Site(Resources(8, ("0", "1"))), None),
    ],
)
def test_cuda_graphs_are_for_one_gpu(launch: LaunchConfig, site: Site, expected: str | None, data_root: Path) -> None:
    config = tiny_config(data_root, "train.compile=cuda_graphs")
    if expected is None:
        require_valid_launch(config, launch, site, RunDir(Path("/tmp/nowhere/run")))
    else:
        code, text = run_failing_checks(config, launch, site)
        assert (code, expected in text) == (2, True), text


def test_a_run_directory_of_another_config_is_refused_with_the_difference(data_root: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.create()
    run.config.write_text(dump_config(tiny_config(data_root)))
    assert_no_problems(tiny_config(data_root), run=run)
    code, text = run_failing_checks(tiny_config(data_root, "optim.lr=0.2", "seed=3"), run=run)
    assert code == 2
    assert "belongs to another config (seed: 0 -> 3; optim.lr: 0.05 -> 0.2)" in text


def test_resume_never_refuses_what_exists(data_root: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    assert_no_problems(tiny_config(data_root), LaunchConfig(resume="never"), run)
    run.create()
    run.config.write_text(dump_config(tiny_config(data_root)))
    code, text = run_failing_checks(tiny_config(data_root), LaunchConfig(resume="never"), run=run)
    assert (code, "exists, and --resume never" in text) == (2, True)


def test_a_folder_that_is_no_run_directory_is_refused(data_root: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    assert_no_problems(tiny_config(data_root), run=RunDir(tmp_path / "thesis"))
    (tmp_path / "thesis" / "chapter1.tex").write_text("x")
    assert (
        "exists and is not a run directory"
        in run_failing_checks(tiny_config(data_root), run=RunDir(tmp_path / "thesis"))[1]
    )
    assert (
        "exists and is not a run directory"
        in run_failing_checks(tiny_config(data_root), run=RunDir(tmp_path / "thesis" / "chapter1.tex"))[1]
    )


def test_a_run_directory_with_a_damaged_config_is_named(data_root: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.create()
    run.config.write_text("seed: [")
    assert "config.yaml:2: invalid YAML" in run_failing_checks(tiny_config(data_root), run=run)[1]


def _flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _halve_shards(path: Path) -> None:
    path.write_text(path.read_text().replace('"shards": 64', '"shards": 32'))


DATA_DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "one flipped byte": ("train-0003.safetensors", _flip_byte, "train-0003.safetensors: damaged: SHA-256"),
    "truncated": ("test-0001.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes, expected"),
    "missing": ("train-0063.safetensors", Path.unlink, "train-0063.safetensors: missing"),
    "no index": ("index.json", Path.unlink, "index.json: missing"),
    "damaged index": ("index.json", lambda path: path.write_text("{"), "not an index of a prepared set"),
    "contradictory index": ("index.json", _halve_shards, "split train has 64 files, expected 32"),
}


@pytest.mark.fault("F17", "F35")
@pytest.mark.parametrize("case", DATA_DAMAGE)
def test_damaged_data_is_found_before_a_worker_starts(case: str, data_root: Path) -> None:
    name, damage, expected = DATA_DAMAGE[case]
    damage(data_root / "cifar10" / name)
    code, text = run_failing_checks(tiny_config(data_root))
    assert code == 3
    assert expected in text


def test_checksums_are_verified_up_to_the_given_set_size(data_root: Path) -> None:
    _flip_byte(data_root / "cifar10" / "train-0003.safetensors")
    assert_no_problems(tiny_config(data_root), checksums_bytes=1000)
    for size in (CHECKED_AT_LAUNCH_BYTES, math.inf):
        assert "damaged: SHA-256" in run_failing_checks(tiny_config(data_root), checksums_bytes=size)[1]


def test_every_damaged_shard_is_named_at_once(data_root: Path) -> None:
    for number in (3, 9, 27):
        _flip_byte(data_root / "cifar10" / f"train-{number:04d}.safetensors")
    assert run_failing_checks(tiny_config(data_root))[1].count("damaged: SHA-256") == 3


def test_another_set_with_the_same_name_is_refused(data_root: Path) -> None:
    path = data_root / "cifar10" / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "name": "synthetic10"}))
    assert (
        "contains synthetic10, 64 shards, 0 held out; the config requests"
        in run_failing_checks(tiny_config(data_root))[1]
    )


def test_a_batch_larger_than_the_prepared_set_is_refused(data_root: Path) -> None:
    assert (
        "train.batch: 512 is more than the 256 training samples"
        in run_failing_checks(tiny_config(data_root, "train.batch=512"))[1]
    )


def test_a_set_that_the_launch_can_prepare_may_be_missing(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "new")
    assert_no_problems(config)
    assert not is_prepared(config)
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("processes")
@needs_second_user
def test_folders_that_are_not_writable_are_named() -> None:
    with common_folder() as folder:
        code, text = call_as_other_user(
            run_failing_checks, tiny_config(folder / "new"), LaunchConfig(), CPU_SITE, RunDir(folder / "run")
        )
    assert code == 3
    assert f"{folder}: not writable, so the run can't be stored there: {folder} belongs to root" in text
    assert "data.root is not writable" in text


def test_a_full_disk_is_named(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_checks, "FREE_BYTES", 1 << 60)
    assert "MiB free, a run needs at least" in run_failing_checks(tiny_config(data_root))[1]


@pytest.mark.fault("F44")
@pytest.mark.parametrize(
    ("version", "fits"), [("2.10.1", False), ("2.11.0+cpu", True), ("2.15.9", True), ("2.16.0", False)]
)
def test_untested_torch_versions_are_refused(
    version: str, fits: bool, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(software_checks, "version", lambda _: version)
    if fits:
        assert_no_problems(tiny_config(data_root))
    else:
        assert f"version {version} is not between 2.11 and 2.16" in run_failing_checks(tiny_config(data_root))[1]


def test_a_missing_torch_is_named(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software_checks, "find_spec", lambda name: None)
    assert "torch: not installed in this environment" in run_failing_checks(tiny_config(data_root))[1]


def test_problems_of_the_config_and_of_the_machine_are_reported_together(data_root: Path, tmp_path: Path) -> None:
    _flip_byte(data_root / "cifar10" / "train-0000.safetensors")
    code, text = run_failing_checks(tiny_config(data_root), LaunchConfig(gpus=3))
    assert code == 2
    assert "3 workers do not divide" in text
    assert "train-0000.safetensors: damaged" in text


def test_the_check_changes_nothing(data_root: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError):
        require_valid_launch(tiny_config(data_root), LaunchConfig(gpus=3), CPU_SITE, RunDir(tmp_path / "run"))
    with pytest.raises(CheckError):
        require_valid_launch(
            tiny_config(data_root, "train.batch=512"), LaunchConfig(), CPU_SITE, RunDir(tmp_path / "run")
        )
    assert sorted(tmp_path.rglob("*")) == before


def test_every_preset_passes_the_check(tmp_path: Path) -> None:
    from fmfsd.config import preset_names

    for name in preset_names():
        assert_no_problems(load_config(name, data_root=str(tmp_path)))


def test_initial_weights_must_exist_unless_the_run_has_a_checkpoint(data_root: Path, tmp_path: Path) -> None:
    config = tiny_config(data_root, f"train.init_from={tmp_path}/none")
    code, text = run_failing_checks(config)
    assert (code, text.startswith(f"train.init_from: {tmp_path}/none does not exist")) == (3, True)
    run = make_run(tmp_path / "run", config)
    (run.checkpoints / "step-00000004").mkdir()
    assert_no_problems(config, run=run)


FOLDERS = (*("data.name=folder", "data.classes=4", "data.shards=4", "data.valid=0"), "train.batch=4")


def test_a_missing_folder_set_is_reported_with_the_command_that_prepares_it(tmp_path: Path) -> None:
    config = load_config("smoke", [*FOLDERS, "data.size=64"], data_root=str(tmp_path / "a b"))
    code, text = run_failing_checks(config)
    assert code == 3
    assert f"fmfsd data prepare folder --source ROOT --out '{tmp_path}/a b' --size 64 --shards 4 --valid 0`" in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ((), None),
        (("data.classes=5",), "data.classes: 5, but "),
        (("train.batch=16",), "train.batch: 16 is more than the 12 training samples in "),
        (
            ("optim.milestones=[1]", "train.epochs=1"),
            "optim.milestones: 1 epoch is not before the end, 1 epochs of 3 steps",
        ),
        (
            ("optim.warmup=9 steps", "train.epochs=2"),
            "optim.warmup: 9 steps is not before the end, 2 epochs of 3 steps",
        ),
    ],
)
def test_the_config_is_checked_against_the_prepared_folder(
    changes: tuple[str, ...], expected: str | None, tmp_path: Path
) -> None:
    data = DataConfig(name="folder", root=str(tmp_path), shards=4)
    prepare(data, source=write_folders(tmp_path / "images", train=3), fetch=False, report=quiet)
    config = load_config("smoke", [*FOLDERS, "optim.milestones=[]", *changes], data_root=str(tmp_path))
    if expected is None:
        assert_no_problems(config)
    else:
        code, text = run_failing_checks(config)
        assert (code, expected in text) == (3, True), text
