"""Checkpoints are written in the background, the best one is kept, and only the current attempt writes and is read."""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from fmfsd.checkpoint import CheckpointManager, CheckpointStore
from fmfsd.distributed.collectives import SingleWorkerComms
from fmfsd.errors import CheckpointError, FencedError
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_json
from fmfsd.training.attempt_fence import AttemptFence
from tests.helpers.checkpoints import (
    list_names,
    make_checkpoint,
    make_manager,
    newest_step,
    raise_no_space,
    save_and_wait,
)
from tests.helpers.processes import wait_until


def test_the_best_checkpoint_on_the_validation_split_is_kept_in_addition_to_the_newest(tmp_path: Path) -> None:
    checkpoints = make_manager(tmp_path / "c", keep=1)
    for step, score in ((1, 0.2), (2, 0.6), (3, 0.6), (4, None), (5, 0.5)):
        save_and_wait(checkpoints, make_checkpoint(step, score=score))
    assert list_names(tmp_path / "c") == ["step-00000002", "step-00000005"]
    assert newest_step(checkpoints) == 5


def test_training_continues_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The saved state is that at the call, even if the tensors change before they are written."""
    checkpoints, before, may_write = make_manager(tmp_path / "c"), make_checkpoint(1), threading.Event()
    write = CheckpointStore.write
    monkeypatch.setattr(CheckpointStore, "write", lambda self, what: (may_write.wait(60), write(self, what)))
    expected = before.engine.model["conv.weight"].clone()
    checkpoints.save(before)
    checkpoints.poll()
    before.engine.model["conv.weight"].zero_()
    assert list_names(tmp_path / "c") == []
    may_write.set()
    checkpoints.finish()
    after = checkpoints.load_newest()
    assert after is not None
    assert torch.equal(after.engine.model["conv.weight"], expected)


@pytest.mark.fault("F11")
def test_one_failed_save_is_a_warning_and_the_next_failure_in_a_row_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    checkpoints = CheckpointManager(
        CheckpointStore(tmp_path, keep=2, check_fence=lambda: None), SingleWorkerComms(), warn=warnings.append
    )
    full = [False, True, False, True, True]

    def sometimes_full(*_: Any, **__: Any) -> None:
        if full.pop(0):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fmfsd.checkpoint.store.sync_folder", sometimes_full)
    for step in range(1, 6):
        checkpoints.save(make_checkpoint(step))
        wait_until(lambda: not checkpoints._writer.busy, "the write")
        if step < 5:
            checkpoints.poll()
    with pytest.raises(CheckpointError, match=r"step 5 not saved.*it needs 0\.0 MiB, .* MiB and \d+ files are free"):
        checkpoints.poll()
    assert [text.partition(" not saved")[0].rpartition(" ")[2] for text in warnings] == ["2", "4"]


def test_a_run_fails_without_its_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = make_manager(tmp_path / "c")
    monkeypatch.setattr("fmfsd.checkpoint.store.write_atomic", raise_no_space)
    checkpoints.save(make_checkpoint(1))
    with pytest.raises(CheckpointError, match="step 1 not saved"):
        checkpoints.finish()


def test_a_worker_of_an_ended_attempt_saves_nothing(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.create()
    fence = AttemptFence(run, 1)
    write_json(run.attempt(1), {})
    save_and_wait(make_manager(run.checkpoints, require_ours=fence.require_current), make_checkpoint(1))
    write_json(run.attempt(2), {})
    with pytest.raises(FencedError, match="attempt 2 of this run has started"):
        save_and_wait(make_manager(run.checkpoints, require_ours=fence.require_current), make_checkpoint(2))
    assert list_names(run.checkpoints) == ["step-00000001"]


@pytest.mark.fault("F25")
def test_a_worker_whose_attempt_ends_during_a_save_saves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has passed the fence and sleeps until its successor has started, which removes the temporary folder."""
    old, new = make_manager(tmp_path / "c"), make_manager(tmp_path / "c")
    save_and_wait(old, make_checkpoint(1))
    write = write_json

    def write_after_successor(*arguments: Any) -> None:
        monkeypatch.setattr("fmfsd.checkpoint.store.write_json", write)
        write(*arguments)
        assert newest_step(new) == 1

    monkeypatch.setattr("fmfsd.checkpoint.store.write_json", write_after_successor)
    with pytest.raises(CheckpointError, match="step 2 not saved"):
        save_and_wait(old, make_checkpoint(2))
    assert list_names(tmp_path / "c") == ["step-00000001"]


def test_a_pipe_instead_of_a_file_does_not_block(tmp_path: Path) -> None:
    checkpoints = make_manager(tmp_path / "c")
    for step in (1, 2):
        save_and_wait(checkpoints, make_checkpoint(step))
    model = tmp_path / "c" / "step-00000002" / "model.safetensors"
    model.unlink()
    os.mkfifo(model)
    assert newest_step(checkpoints) == 1


def test_a_checkpoint_whose_score_cannot_be_read_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The read error does not make the save fail."""
    checkpoints = make_manager(tmp_path / "c", keep=1)
    save_and_wait(checkpoints, make_checkpoint(1, score=0.9))
    with monkeypatch.context() as patch:
        patch.setattr("fmfsd.checkpoint.retention.read_json", raise_no_space)
        save_and_wait(checkpoints, make_checkpoint(2, score=0.1))
    assert list_names(tmp_path / "c") == ["step-00000001", "step-00000002"]
    save_and_wait(checkpoints, make_checkpoint(3, score=0.2))
    assert list_names(tmp_path / "c") == ["step-00000001", "step-00000003"]


@pytest.mark.fault("F15")
@pytest.mark.parametrize("link", ["step-00000002", "step-00000002/model.safetensors", "step-00000002/manifest.json"])
def test_links_are_not_followed(link: str, tmp_path: Path) -> None:
    """They may lead to files that another user can write."""
    checkpoints = make_manager(tmp_path / "c")
    for step in (1, 2):
        save_and_wait(checkpoints, make_checkpoint(step))
    (tmp_path / "c" / link).rename(tmp_path / "elsewhere")
    (tmp_path / "c" / link).symlink_to(tmp_path / "elsewhere")
    assert newest_step(checkpoints) == 1
