"""torch.compile of network and losses: one graph without graph breaks or recompilation, and the same training."""

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch.utils._python_dispatch import TorchDispatchMode

from fmfsd.config import load_config
from fmfsd.config.resume_rules import find_changes as changes_between
from fmfsd.distributed.collectives import Comms, SingleWorkerComms
from fmfsd.engine.torch_engine import TorchEngine
from fmfsd.errors import ConfigError
from fmfsd.training import step_all_reduce
from fmfsd.training.loop import Loop
from tests.helpers.runs import (
    assert_records_agree,
    make_loop,
    make_run,
    newest_weights,
    read_records,
    tiny_config,
    train_run,
)
from tests.helpers.workers import run_workers

SMALL = ("data.shards=16", "train.batch=32", "train.max_steps=3", "train.evaluate_every=3 steps")
PLACEMENT = ("model.branches=[stage2]", "distill.beta=0")


def train_each(comms: Comms, stops: dict[Path, int | None]) -> None:
    """Train each run up to its number of steps, or to its end."""
    for folder, stop_after in stops.items():
        train_run(comms, folder, stop_after)


def test_a_compiled_run_equals_the_eager_one_to_rounding_and_resumes_bit_for_bit(
    tiny_root: Path, tmp_path: Path
) -> None:
    """Compiled by inductor, in separate processes, because it leaves threads and variables behind."""
    eager, uninterrupted, stopped = (
        make_run(tmp_path / name, tiny_config(tiny_root, *SMALL, *PLACEMENT, f"train.compile={compiles}"))
        for name, compiles in (("eager", "false"), ("uninterrupted", "true"), ("stopped", "true"))
    )
    run_workers(train_each, 1, {eager.path: None, uninterrupted.path: None, stopped.path: 2})
    run_workers(train_run, 1, stopped.path)
    assert_records_agree(read_records(eager), read_records(uninterrupted), tolerance=1e-4)
    assert newest_weights(uninterrupted) == newest_weights(stopped)


def train_and_count_graphs(comms: Comms, folder: Path) -> tuple[int, int]:
    """Train and return the numbers of graphs and of graph breaks. Without inductor, which would take minutes."""
    torch.compile = partial(torch.compile, backend="aot_eager")
    train_run(comms, folder)
    counters = torch._dynamo.utils.counters
    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


def test_with_several_workers_the_step_is_one_graph_including_the_collectives(tiny_root: Path, tmp_path: Path) -> None:
    """Including synchronised batch norm."""
    eager, uninterrupted = (
        make_run(tmp_path / name, tiny_config(tiny_root, *SMALL, *PLACEMENT, f"train.compile={compiles}"))
        for name, compiles in (("eager", "false"), ("uninterrupted", "true"))
    )
    run_workers(train_run, 2, eager.path)
    assert run_workers(train_and_count_graphs, 2, uninterrupted.path, nodes=2) == [(1, 0)] * 2
    assert_records_agree(read_records(eager), read_records(uninterrupted), tolerance=1e-4)


@pytest.mark.parametrize(
    "changes", [(), ("method=dks",), ("method=byot_attention",), ("model.sem=cbam", "model.fusion=both")]
)
def test_every_method_compiles_to_one_graph(changes: tuple[str, ...], tiny_root: Path, tmp_path: Path) -> None:
    """No operation needs a value on the host: with `fullgraph=True` a graph break is an error."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *SMALL, "train.recompute=none", *changes))
    with closing(make_loop(run, SingleWorkerComms())) as loop:
        engine = loop.engine
        assert isinstance(engine, TorchEngine)
        engine._module = torch.compile(engine._module, backend=counter, fullgraph=True, dynamic=False)  # type: ignore[assignment]
        loop.resume()
        for _ in range(3):
            loop._train_one_step()
    assert counter.frame_count == 1, "compiled once for all steps"


class _SyncRecorder(TorchDispatchMode):
    """Records operations that synchronise with a GPU: their result is a number or has a data-dependent size."""

    SYNCHRONISING = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorded: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        if function.__name__.split(".")[0] in self.SYNCHRONISING:
            self.recorded.append(function.__name__)
        return function(*arguments, **(keywords or {}))


def synchronisations_in_steps(loop: Loop, steps: int) -> list[str]:
    with _SyncRecorder() as recorder:
        for _ in range(steps):
            loop._train_one_step()
    return recorder.recorded


@pytest.mark.parametrize("recipe", [(), ("data.autoaugment=true", "data.cutout=8", "data.mixup=0.2")])
def test_a_step_does_not_synchronise_with_the_device(
    recipe: tuple[str, ...], tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results are read with a delay, as on a GPU; without the delay the synchronisation is detected."""
    quiet = ("train.log_every=100 steps", *SMALL[:2], "train.epochs=4", *recipe)
    for delay in (10, 0):
        monkeypatch.setitem(step_all_reduce.READ_DELAY_PASSES, "cpu", delay)
        with closing(
            make_loop(make_run(tmp_path / str(delay), tiny_config(tiny_root, *quiet)), SingleWorkerComms())
        ) as loop:
            loop.resume()
            loop.batches.epoch_table(0)  # computed on the host, once per epoch
            assert bool(synchronisations_in_steps(loop, 3)) == (delay == 0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (("train.compile=cuda_graphs", "train.micro_batch=64"), "can't accumulate gradients"),
        (("train.compile=true", "engine.name=deepspeed"), "is for engine.name torch"),
    ],
)
def test_options_that_cannot_be_compiled_are_errors(changes: tuple[str, ...], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_config("cifar100-resnet18", changes)


def test_compilation_may_not_change_on_resume(tiny_root: Path) -> None:
    before, after = (tiny_config(tiny_root, f"train.compile={value}") for value in ("auto", "true"))
    assert [change.is_allowed for change in changes_between(before, after)] == [False]
