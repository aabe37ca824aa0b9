"""`train.init_from`: a run that starts from the weights of another run takes only these."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fmfsd.checkpoint.init_weights import find_mismatches
from fmfsd.checkpoint.store import load_checkpoint
from fmfsd.config import load_config
from fmfsd.distributed.collectives import SingleWorkerComms
from fmfsd.distributed.world import World
from fmfsd.errors import CheckError
from fmfsd.run.init_weights_source import find_weights
from fmfsd.run.run_dir import RunDir
from fmfsd.run.train_position import TrainPosition
from fmfsd.training.loop import Loop
from fmfsd.worker import write_crash_report
from tests.helpers.runs import make_loop, make_run, newest_weights, tiny_config, train_run


@pytest.fixture(scope="module")
def source(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Return a finished run with checkpoints of steps 2 and 4."""
    run = make_run(tmp_path_factory.mktemp("source") / "run", tiny_config(tiny_root))
    train_run(SingleWorkerComms(), run.path)
    return run


def start_from(folder: Path, root: Path, origin: Path, *changes: str) -> Loop:
    """Start a run with `train.init_from` and make no step."""
    loop = make_loop(make_run(folder, tiny_config(root, f"train.init_from={origin}", *changes)), SingleWorkerComms())
    assert not loop.resume()
    return loop


def start_error(folder: Path, root: Path, origin: Path, *changes: str) -> str:
    with pytest.raises(CheckError) as caught:
        start_from(folder, root, origin, *changes)
    return str(caught.value)


ORIGINS: dict[str, Callable[[RunDir], Path]] = {
    "run": lambda run: run.path,
    "checkpoint": lambda run: run.checkpoints / "step-00000004",
    "file": lambda run: run.checkpoints / "step-00000004" / "model.safetensors",
}


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("layout", ["false", "true"])
def test_weights_and_batch_statistics_are_loaded_and_the_rest_is_new(
    origin: str, layout: str, source: RunDir, tiny_root: Path, tmp_path: Path
) -> None:
    change = f"train.channels_last={layout}"
    loop = start_from(tmp_path / "run", tiny_root, ORIGINS[origin](source), change, "seed=9")
    source_weights, state = load_file(source.checkpoints / "step-00000004" / "model.safetensors"), loop.engine.state()
    assert source_weights.keys() == state.model.keys()
    assert all(torch.equal(source_weights[name], state.model[name]) for name in source_weights)
    assert (state.optimizer, loop.position, loop.metrics.records) == ({}, TrainPosition(), 0)


def test_a_run_resumes_from_its_own_checkpoint_even_if_the_source_run_was_deleted(
    tiny_root: Path, tmp_path: Path
) -> None:
    other = make_run(tmp_path / "other", tiny_config(tiny_root))
    train_run(SingleWorkerComms(), other.path)
    config = tiny_config(tiny_root, f"train.init_from={other.path}")
    whole, parted = (make_run(tmp_path / name, config) for name in ("whole", "parted"))
    train_run(SingleWorkerComms(), whole.path)
    train_run(SingleWorkerComms(), parted.path, 1)
    shutil.rmtree(other.path)
    assert train_run(SingleWorkerComms(), parted.path) == "finished"
    assert newest_weights(parted) == newest_weights(whole)


def test_the_newest_undamaged_checkpoint_of_a_run_is_loaded_and_the_run_is_not_changed(
    source: RunDir, tiny_root: Path, tmp_path: Path
) -> None:
    copy = RunDir(shutil.copytree(source.path, tmp_path / "copy"))
    (copy.checkpoints / "step-00000004" / "model.safetensors").write_bytes(b"no weights")
    (copy.checkpoints / ".tmp-step-00000005-7").mkdir()
    before = sorted(copy.path.rglob("*"))
    loop = start_from(tmp_path / "run", tiny_root, copy.path)
    source_weights = load_file(copy.checkpoints / "step-00000002" / "model.safetensors")
    assert all(torch.equal(source_weights[name], value) for name, value in loop.engine.state().model.items())
    assert sorted(copy.path.rglob("*")) == before


def test_if_all_checkpoints_are_damaged_each_damage_is_reported(
    source: RunDir, tiny_root: Path, tmp_path: Path
) -> None:
    copy = RunDir(shutil.copytree(source.path, tmp_path / "copy"))
    for folder in copy.checkpoints.iterdir():
        (folder / "state.json").write_text("{}")
    lines = start_error(tmp_path / "run", tiny_root, copy.path).splitlines()
    assert ["step-00000004 is damaged" in lines[0], "step-00000002 is damaged" in lines[1], len(lines)] == [
        True,
        True,
        2,
    ]


def test_all_mismatches_are_reported_at_once() -> None:
    expected = {name: torch.zeros(2, 3) for name in ("same", "gone", "lost", "wide", "whole", "nan")}
    weights = {name: torch.ones(2, 3) for name in ("same", "more")}
    weights |= {"wide": torch.ones(4, 3), "whole": torch.ones(2, 3).int(), "nan": torch.full((2, 3), torch.nan)}
    assert list(find_mismatches(weights, expected)) == [
        "missing keys: gone, lost",
        "unexpected keys: more",
        "other shapes: wide (4, 3), expected (2, 3)",
        "other dtypes: whole torch.int32",
        "NaN or infinite values: nan",
    ]


def test_weights_of_another_network_are_an_error_without_a_new_attempt(
    source: RunDir, tiny_root: Path, tmp_path: Path
) -> None:
    plain = make_run(tmp_path / "plain", tiny_config(tiny_root, "method=plain", f"train.init_from={source.path}"))
    loop = make_loop(plain, SingleWorkerComms())
    before = {name: value.clone() for name, value in loop.engine.state().model.items()}
    with pytest.raises(CheckError, match=r"step-00000004: unexpected keys: alignments\.0\.0\.0") as caught:
        loop.resume()
    assert "set method, model, distill.beta and .feature, and the data as in the source run" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in loop.engine.state().model.items())
    write_crash_report(plain, World(), 1, caught.value)
    assert '"worth_another_attempt": false' in plain.crash_report(1, 0).read_text()


def test_a_damaged_file_is_an_error(source: RunDir, tiny_root: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(load_file(source.checkpoints / "step-00000004" / "model.safetensors"), path)
    start_from(tmp_path / "run", tiny_root, path)
    path.write_bytes(path.read_bytes()[:-1])
    assert f"{path} can't be used" in start_error(tmp_path / "run", tiny_root, path)


def test_a_path_without_weights_is_detected_before_a_worker_starts(source: RunDir, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    for name, expected in {"none": "does not exist", "notes.txt": "is no", "empty": "has no checkpoint"}.items():
        with pytest.raises(
            CheckError, match=rf"^train\.init_from: {tmp_path}/{name} {expected}.*: expected a run's fol"
        ):
            find_weights(str(tmp_path / name))
    paths = find_weights(str(source.path))
    assert [path.name for path in paths] == ["step-00000004", "step-00000002"]
    assert find_weights(str(paths[0])) == paths[:1]


def test_the_path_is_made_absolute() -> None:
    assert load_config("smoke", ["train.init_from=runs/a"]).train.init_from == str(Path("runs/a").absolute())


@pytest.mark.usefixtures("processes")
def test_finding_initial_weights_needs_no_torch() -> None:
    code = "import fmfsd.run.init_weights_source, sys; assert not {'torch', 'numpy', 'safetensors'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_ema_weights_of_a_run_are_loaded(tiny_root: Path, tmp_path: Path) -> None:
    """The run was evaluated with the EMA weights."""
    run = make_run(tmp_path / "averaged", tiny_config(tiny_root, "train.ema=0.5"))
    train_run(SingleWorkerComms(), run.path)
    saved = load_checkpoint(run.checkpoints / "step-00000004").engine
    weights = start_from(tmp_path / "run", tiny_root, run.path).engine.state().model
    assert all(torch.equal(value, saved.ema_weights[name]) for name, value in weights.items())
    assert any(not torch.equal(value, saved.model[name]) for name, value in weights.items())
