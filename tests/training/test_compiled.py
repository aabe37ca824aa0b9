"""Network and losses as one program: no cut, no recompilation, and the same training as step by step."""

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch.utils._python_dispatch import TorchDispatchMode

from fmfsd.config import load_config
from fmfsd.config.resume_rules import changes as changes_between
from fmfsd.distributed.collectives import Comms, SoloComms
from fmfsd.engine.torch_engine import TorchEngine
from fmfsd.errors import ConfigError
from fmfsd.training import step_all_reduce
from fmfsd.training.loop import Loop
from tests.helpers.runs import (
    assert_records_agree,
    make_loop,
    make_run,
    newest_weights,
    records,
    tiny_config,
    train_run,
)
from tests.helpers.workers import run_workers

SMALL = ("data.shards=16", "train.batch=32", "train.max_steps=3", "train.evaluate_every=3 steps")
PLACEMENT = ("model.branches=[stage2]", "distill.beta=0")


def train_in_turn(comms: Comms, stops: dict[Path, int | None]) -> None:
    """Each of the runs, up to so many steps or to its end."""
    for folder, stop_after in stops.items():
        train_run(comms, folder, stop_after)


def test_a_compiled_run_is_the_same_to_rounding_and_goes_on_bit_for_bit(tiny_root: Path, tmp_path: Path) -> None:
    """By inductor, in processes of their own, as it leaves threads and variables."""
    eager, whole, stopped = (
        make_run(tmp_path / name, tiny_config(tiny_root, *SMALL, *PLACEMENT, f"train.compile={compiles}"))
        for name, compiles in (("eager", "false"), ("whole", "true"), ("stopped", "true"))
    )
    run_workers(train_in_turn, 1, {eager.path: None, whole.path: None, stopped.path: 2})
    run_workers(train_run, 1, stopped.path)
    assert_records_agree(records(eager), records(whole), tolerance=1e-4)
    assert newest_weights(whole) == newest_weights(stopped)


def train_in_one_program(comms: Comms, folder: Path) -> tuple[int, int]:
    """How many programs there were, and where they were cut. As inductor is given them, which takes minutes."""
    torch.compile = partial(torch.compile, backend="aot_eager")
    train_run(comms, folder)
    counted = torch._dynamo.utils.counters
    return counted["stats"]["unique_graphs"], sum(counted["graph_break"].values())


def test_with_several_workers_it_is_one_program_too_in_which_they_talk(tiny_root: Path, tmp_path: Path) -> None:
    """Batch norm over them included."""
    eager, whole = (
        make_run(tmp_path / name, tiny_config(tiny_root, *SMALL, *PLACEMENT, f"train.compile={compiles}"))
        for name, compiles in (("eager", "false"), ("whole", "true"))
    )
    run_workers(train_run, 2, eager.path)
    assert run_workers(train_in_one_program, 2, whole.path, nodes=2) == [(1, 0)] * 2
    assert_records_agree(records(eager), records(whole), tolerance=1e-4)


@pytest.mark.parametrize(
    "changes", [(), ("method=dks",), ("method=byot_attention",), ("model.sem=cbam", "model.fusion=both")]
)
def test_every_form_of_the_method_is_one_program(changes: tuple[str, ...], tiny_root: Path, tmp_path: Path) -> None:
    """Nothing in it looks at a value: a cut would be an error, as it is compiled whole."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *SMALL, "train.recompute=none", *changes))
    with closing(make_loop(run, SoloComms())) as loop:
        engine = loop.engine
        assert isinstance(engine, TorchEngine)
        engine._module = torch.compile(engine._module, backend=counter, fullgraph=True, dynamic=False)  # type: ignore[assignment]
        loop.resume()
        for _ in range(3):
            loop._train_one_step()
    assert counter.frame_count == 1, "compiled once for all steps"


class _Looks(TorchDispatchMode):
    """Notes what would make a GPU's host wait: operations whose result is a number or has a size of its own."""

    WAITS = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        if function.__name__.split(".")[0] in self.WAITS:
            self.seen.append(function.__name__)
        return function(*arguments, **(named or {}))


def looks_of_steps(loop: Loop, steps: int) -> list[str]:
    with _Looks() as looks:
        for _ in range(steps):
            loop._train_one_step()
    return looks.seen


@pytest.mark.parametrize("recipe", [(), ("data.autoaugment=true", "data.cutout=8", "data.mixup=0.2")])
def test_the_host_waits_for_no_value_in_a_step(
    recipe: tuple[str, ...], tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With results read later, as on a GPU; where each is read at once, that is seen."""
    quiet = ("train.log_every=100 steps", *SMALL[:2], "train.epochs=4", *recipe)
    for delay in (10, 0):
        monkeypatch.setitem(step_all_reduce.READ_LATER_PASSES, "cpu", delay)
        with closing(make_loop(make_run(tmp_path / str(delay), tiny_config(tiny_root, *quiet)), SoloComms())) as loop:
            loop.resume()
            loop.batches.table(0)  # made on the host, once an epoch
            assert bool(looks_of_steps(loop, 3)) == (delay == 0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("train.compile=cuda_graphs", "train.micro_batch=64"), "can't accumulate gradients"),
        (("train.compile=true", "engine.name=deepspeed"), "is for engine.name torch"),
    ],
)
def test_what_can_not_be_compiled_is_refused(changes: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config("cifar100-resnet18", changes)


def test_a_run_may_not_become_a_compiled_one(tiny_root: Path) -> None:
    before, after = (tiny_config(tiny_root, f"train.compile={value}") for value in ("auto", "true"))
    assert [change.is_allowed for change in changes_between(before, after)] == [False]
