"""The promise: the same result on any number of workers, for one global batch and one accumulation."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fmfsd.comms import Comms
from fmfsd.loop import Loop
from fmfsd.rundir import RunDir
from tests.helpers.runs import assert_records_agree, make_loop, make_run, records, tiny_config
from tests.helpers.workers import run_workers

STEPS = 4
SMALL = ("data.shards=16", "train.batch=16", f"train.max_steps={STEPS}", "optim.milestones=[2 steps]")
"""One sample of each of 16 shards a step, and one evaluation at the end."""
FP64 = (*SMALL, "train.precision=fp64")


def train_and_tell(comms: Comms, folder: Path, frozen_bn: bool) -> dict[str, Any] | None:
    """Train a run that is written to the folder; from rank 0 its losses, evaluations and final weights."""
    loop = make_loop(RunDir(folder), comms)
    loop.resume()
    if frozen_bn:
        _freeze_batch_norm(loop)
    loop.run()
    if comms.rank > 0:
        return None
    state = loop.engine.state()
    weights = {name: tensor.detach().double().numpy() for name, tensor in state.model.items()}
    return {"records": records(RunDir(folder)), "weights": weights}


def _freeze_batch_norm(loop: Loop) -> None:
    for module in loop.engine.network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    loop._evaluate = lambda: setattr(loop, "position", type(loop.position)(loop.position.step))  # type: ignore[method-assign]


def outcome(
    tmp_path: Path, root: Path, world_size: int, changes: tuple[str, ...], *, frozen_bn: bool = False
) -> dict[str, Any]:
    run = make_run(tmp_path / f"w{world_size}", tiny_config(root, *changes))
    (found, *_) = run_workers(train_and_tell, world_size, run.path, frozen_bn)
    assert found is not None
    return dict(found)


def assert_same(one: dict[str, Any], other: dict[str, Any], *, tolerance: float) -> None:
    assert len(one["records"]) >= STEPS
    assert_records_agree(one["records"], other["records"], tolerance=tolerance)
    for name, weight in one["weights"].items():
        assert other["weights"][name] == pytest.approx(weight, rel=tolerance, abs=tolerance), name


@pytest.mark.parametrize("method", ["fmfsd", "byot", "plain"])
def test_workers_in_fp64_train_like_one(method: str, tiny_root: Path, tmp_path: Path) -> None:
    """Identity 11 with synchronised BN: losses, evaluations, weights and BN buffers."""
    changes = (f"method={method}", *FP64)
    alone = outcome(tmp_path, tiny_root, 1, changes)
    for world_size in (2, 4):
        assert_same(alone, outcome(tmp_path, tiny_root, world_size, changes), tolerance=1e-9)


def test_workers_with_frozen_bn_train_like_one(tiny_root: Path, tmp_path: Path) -> None:
    """Identity 11 without any synchronisation of BN."""
    changes = (*FP64, "model.sync_bn=false")
    alone = outcome(tmp_path, tiny_root, 1, changes, frozen_bn=True)
    for world_size in (2, 4):
        assert_same(alone, outcome(tmp_path, tiny_root, world_size, changes, frozen_bn=True), tolerance=1e-9)


def test_accumulated_micro_batches_are_global(tiny_root: Path, tmp_path: Path) -> None:
    """At one batch and one micro-batch, any number of workers; with another micro-batch, something else."""
    double = (*FP64, "train.batch=32")
    changes = (*double, "train.micro_batch=16")
    alone = outcome(tmp_path, tiny_root, 1, changes)
    assert_same(alone, outcome(tmp_path, tiny_root, 2, changes), tolerance=1e-9)
    whole = outcome(tmp_path / "whole", tiny_root, 1, double)
    assert whole["records"][0]["loss_feature"] != pytest.approx(alone["records"][0]["loss_feature"], rel=1e-3)


def test_workers_in_fp32_agree_for_five_steps(tiny_root: Path, tmp_path: Path) -> None:
    changes = (*SMALL, "train.max_steps=5", "optim.lr=0.01")
    alone = outcome(tmp_path, tiny_root, 1, changes)
    for world_size in (2, 4):
        other = outcome(tmp_path, tiny_root, world_size, changes)
        assert_records_agree(alone["records"][:5], other["records"][:5], tolerance=1e-5)


def test_without_synchronised_bn_results_depend_on_the_number_of_workers(tiny_root: Path, tmp_path: Path) -> None:
    """The check above can fail: this is what it would look like."""
    changes = (*FP64, "model.sync_bn=false")
    alone, other = (outcome(tmp_path, tiny_root, world_size, changes) for world_size in (1, 4))
    assert alone["records"][0]["loss"] != pytest.approx(other["records"][0]["loss"], rel=1e-4)


def _trunk_after_a_step(folder: Path) -> dict[str, torch.Tensor]:
    from fmfsd.comms import SoloComms

    loop = make_loop(RunDir(folder), SoloComms())
    loop.resume()
    loop._train_one_step()
    return {
        name: tensor for name, tensor in loop.engine.state().model.items() if name.startswith(("backbone", "deepest"))
    }


def test_silent_branches_leave_the_trunk_as_the_plain_backbone(tiny_root: Path, tmp_path: Path) -> None:
    """Identity 13, for branches without fusion."""
    silent = ("method=byot", "distill.alpha=0", "distill.beta=0", "distill.label_weight=0")
    trunks = []
    for name, changes in (("plain", ("method=plain",)), ("byot", silent)):
        run = make_run(tmp_path / name, tiny_config(tiny_root, *FP64, *changes))
        trunks.append(_trunk_after_a_step(run.path))
    plain, byot = trunks
    heads = {name for name in plain if name.startswith("deepest")}
    assert heads
    for name in plain.keys() - heads:
        torch.testing.assert_close(byot[name], plain[name], rtol=1e-12, atol=1e-14)


def gradient_of_a_step(comms: Comms, folder: Path, frozen_bn: bool) -> dict[str, Any]:
    loop = make_loop(RunDir(folder), comms)
    loop.resume()
    if frozen_bn:
        _freeze_batch_norm(loop)
    loop._train_one_step()
    return {name: tensor.double().numpy() for name, tensor in loop.engine.state().optimizer.items()}


@pytest.mark.parametrize("world_size", [1, 2])
def test_with_frozen_bn_and_no_norm_accumulation_is_the_whole_batch(
    world_size: int, tiny_root: Path, tmp_path: Path
) -> None:
    """Both are means over the samples then; BN and the feature norm are what makes a micro-batch more than a part."""
    base = (*FP64, "train.batch=64", "distill.beta=0", "model.sync_bn=false", "data.flip=false", "data.crop_padding=0")
    found = []
    for name, changes in (("whole", ()), ("parts", ("train.micro_batch=16",))):
        run = make_run(tmp_path / name, tiny_config(tiny_root, *base, *changes))
        found.append(run_workers(gradient_of_a_step, world_size, run.path, True)[0])
    whole, parts = found
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert parts[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
