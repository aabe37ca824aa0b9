"""Checkpoints are complete or absent, and damaged checkpoints are not loaded."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fmfsd.errors import CheckpointError, NonFiniteLossError
from fmfsd.run.train_position import TrainPosition
from tests.helpers.checkpoints import (
    list_names,
    make_checkpoint,
    make_manager,
    newest_step,
    raise_no_space,
    save_and_wait,
)


def test_a_checkpoint_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    checkpoints, before = make_manager(tmp_path / "c"), make_checkpoint(7)
    assert checkpoints.load_newest() is None
    save_and_wait(checkpoints, before)
    after = checkpoints.load_newest()
    assert after is not None
    assert (after.position, after.progress) == (before.position, before.progress)
    for one, other in ((after.engine.model, before.engine.model), (after.engine.optimizer, before.engine.optimizer)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    checkpoints = make_manager(tmp_path / "c", keep=2)
    for step in (1, 5, 10_000_000, 123_456_789):
        save_and_wait(checkpoints, make_checkpoint(step))
    assert list_names(tmp_path / "c") == ["step-10000000", "step-123456789"]
    assert newest_step(checkpoints) == 123_456_789


def test_an_unevaluated_position_is_older_than_the_evaluated_one_of_the_same_step(tmp_path: Path) -> None:
    checkpoints = make_manager(tmp_path / "c", keep=5)
    save_and_wait(checkpoints, make_checkpoint(5))
    save_and_wait(checkpoints, make_checkpoint(5, evaluated=False))
    newest = checkpoints.load_newest()
    assert newest is not None
    assert newest.position == TrainPosition(5, evaluated=True)
    assert list_names(tmp_path / "c") == ["step-00000005", "step-00000005-unevaluated"]


def test_saving_the_same_position_again_changes_nothing(tmp_path: Path) -> None:
    checkpoints = make_manager(tmp_path / "c")
    save_and_wait(checkpoints, make_checkpoint(1))
    before = (tmp_path / "c" / "step-00000001" / "manifest.json").stat().st_mtime_ns
    save_and_wait(checkpoints, make_checkpoint(1, value=9.0))
    assert (tmp_path / "c" / "step-00000001" / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.fault("F14")
@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "empty", "missing"])
def test_a_damaged_newest_checkpoint_is_logged_and_the_previous_one_is_loaded(
    file: str, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = make_manager(tmp_path / "c")
    save_and_wait(checkpoints, make_checkpoint(1))
    save_and_wait(checkpoints, make_checkpoint(2))
    path = tmp_path / "c" / "step-00000002" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    damaged = {"flipped bit": bytes(content), "truncated": bytes(content[:-1]), "empty": b""}
    path.unlink() if damage == "missing" else path.write_bytes(damaged[damage])
    if (file, damage) == ("manifest.json", "truncated"):
        path.write_bytes(content[: len(content) // 2])  # without its last newline it would still be valid
    assert newest_step(checkpoints) == 1
    assert "step-00000002 is damaged" in caplog.text


@pytest.mark.fault("F14")
@given(data=st.data())
def test_every_changed_byte_is_detected(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "flips"
    checkpoints = make_manager(folder)
    save_and_wait(checkpoints, make_checkpoint(1))
    file = data.draw(st.sampled_from(["model.safetensors", "optimizer.safetensors", "state.json"]))
    path = folder / "step-00000001" / file
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="all checkpoints are damaged"):
        checkpoints.load_newest()
    path.write_bytes(whole)
    assert newest_step(checkpoints) == 1


def test_without_a_usable_checkpoint_a_run_does_not_start_from_scratch(tmp_path: Path) -> None:
    checkpoints = make_manager(tmp_path / "c")
    save_and_wait(checkpoints, make_checkpoint(1))
    (tmp_path / "c" / "step-00000001" / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match="all checkpoints are damaged"):
        checkpoints.load_newest()


def test_a_checkpoint_of_another_format_is_not_loaded(tmp_path: Path) -> None:
    checkpoints = make_manager(tmp_path / "c")
    save_and_wait(checkpoints, make_checkpoint(1))
    path = tmp_path / "c" / "step-00000001" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(CheckpointError, match="all checkpoints are damaged"):
        checkpoints.load_newest()


@pytest.mark.fault("F16")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_a_state_with_nan_is_not_saved(part: str, value: float, tmp_path: Path) -> None:
    checkpoints, corrupted = make_manager(tmp_path / "c"), make_checkpoint(3)
    next(iter(getattr(corrupted.engine, part).values()))[0, 0] = value
    with pytest.raises(NonFiniteLossError, match="has NaN or infinite values after step 3"):
        save_and_wait(checkpoints, corrupted)
    assert list_names(tmp_path / "c") == []


def test_a_failed_save_leaves_the_older_checkpoints_and_the_next_start_removes_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = make_manager(tmp_path / "c")
    save_and_wait(checkpoints, make_checkpoint(1))

    monkeypatch.setattr("fmfsd.checkpoint.store.write_json", raise_no_space)
    with pytest.raises(CheckpointError, match="step 2 not saved.*No space left"):
        save_and_wait(checkpoints, make_checkpoint(2))
    assert newest_step(checkpoints) == 1
    assert list_names(tmp_path / "c") == ["step-00000001"]


def test_folders_with_other_names_are_not_touched(tmp_path: Path) -> None:
    checkpoints = make_manager(tmp_path / "c", keep=1)
    for name in ("step-1", "step-00000001-old", "notes"):
        (tmp_path / "c" / name).mkdir()
    save_and_wait(checkpoints, make_checkpoint(1))
    save_and_wait(checkpoints, make_checkpoint(2))
    assert list_names(tmp_path / "c") == ["notes", "step-00000001-old", "step-00000002", "step-1"]


def test_a_damaged_newest_checkpoint_is_renamed_so_that_its_step_can_be_saved_again(tmp_path: Path) -> None:
    """It does not count as one of the kept checkpoints, and it is not deleted."""
    checkpoints = make_manager(tmp_path / "c", keep=2)
    for step in (1, 2):
        save_and_wait(checkpoints, make_checkpoint(step))
    damaged = tmp_path / "c" / "step-00000002" / "model.safetensors"
    damaged.write_bytes(b"no weights")
    assert newest_step(checkpoints) == 1
    save_and_wait(checkpoints, make_checkpoint(2))
    assert newest_step(checkpoints) == 2
    renamed, *complete = list_names(tmp_path / "c")
    assert complete == ["step-00000001", "step-00000002"]
    assert renamed.startswith("damaged-step-00000002-")
    assert (tmp_path / "c" / renamed / "model.safetensors").read_bytes() == b"no weights"


def test_without_a_usable_checkpoint_every_start_fails(tmp_path: Path) -> None:
    checkpoints = make_manager(tmp_path / "c")
    save_and_wait(checkpoints, make_checkpoint(1))
    (tmp_path / "c" / "step-00000001" / "state.json").write_text("{}")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="all checkpoints are damaged"):
            checkpoints.load_newest()
    assert list_names(tmp_path / "c") == ["step-00000001"]
