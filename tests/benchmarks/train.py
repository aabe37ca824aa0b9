"""Training steps of one process: FMFSD and the plain backbone by this trainer, and FMFSD by a script's plain loop.

python -m tests.benchmarks.train [--rounds N] [--steps N] [--backbone resnet18] [--batch N] [--compiled]
    [--device auto|cpu|cuda] [--out FILE] [--budget-s S]

With --out what is measured is kept, and measured no more; after --budget-s no further measurement is begun. So a table
can be made in pieces, each by the same command.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from fmfsd.config import RunConfig, load_config
from fmfsd.data.prepare import prepare
from fmfsd.data.shards.index import read_index, set_folder
from fmfsd.distributed.collectives import SoloComms
from fmfsd.engine.precision import exact_arithmetic
from fmfsd.engine.torch_engine import TorchEngine
from launcher.plan.plan import KEEP_FREED_MEMORY
from tests.benchmarks.peer import PlainLoop
from tests.benchmarks.table import print_table, spread
from tests.helpers.runs import make_loop, make_run

WARM_UP_STEPS = 2
MiB = 2**20
FP32 = ("train.precision=fp32", "train.channels_last=false", "train.compile=false")
PRESET = ("train.compile=false",)
SCRIPT = "FMFSD by a script: fp32, NCHW, DataLoader of 2"


@dataclass(frozen=True)
class Way:
    """`like` is the way of the plain backbone at the same settings."""

    kind: str
    changes: tuple[str, ...]
    like: str = ""


WAYS = {
    SCRIPT: Way("script", (*FP32, "train.recompute=none")),
    "FMFSD: fp32, NCHW": Way("ours", FP32, "plain: fp32, NCHW"),
    "plain: fp32, NCHW": Way("ours", ("method=plain", *FP32)),
    "FMFSD, the preset: bf16, channels_last": Way("ours", PRESET, "plain, the preset"),
    "plain, the preset": Way("ours", ("method=plain", *PRESET)),
    "FMFSD, the preset, nothing recomputed": Way("ours", ("train.recompute=none", *PRESET), "plain, the preset"),
    "FMFSD, the preset, all recomputed": Way("ours", ("train.recompute=all", *PRESET), "plain, the preset"),
}
COMPILED = {
    "FMFSD, the preset, compiled": Way("ours", ("train.compile=true",), "plain, the preset, compiled"),
    "plain, the preset, compiled": Way("ours", ("method=plain", "train.compile=true")),
}
CUDA_GRAPHS = {
    "FMFSD, the preset, CUDA graphs": Way("ours", ("train.compile=cuda_graphs",), "plain, the preset, CUDA graphs"),
    "plain, the preset, CUDA graphs": Way("ours", ("method=plain", "train.compile=cuda_graphs")),
}


@dataclass(frozen=True)
class Measured:
    """`ready_s` is until two steps are done; `memory` all that tensors take at most in a step, in MiB."""

    images_per_s: float
    data_wait: float
    ready_s: float
    memory: float


def config(root: str, backbone: str, changes: tuple[str, ...], batch: int = 128) -> RunConfig:
    fixed = ("data.name=synthetic100", f"data.root={root}", f"model.backbone={backbone}", "checkpoint.every_epochs=200")
    return load_config("cifar100-resnet18", [*fixed, f"train.batch={batch}", "train.log_every=1000 steps", *changes])


def tell(kind: str, root: str, backbone: str, batch: int, device: str, steps: int, *changes: str) -> None:
    """What is measured, printed; in a process of its own, as the memory settings are read at its start."""
    settings, place = config(root, backbone, changes, batch), torch.device(device)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    exact_arithmetic(deterministic=False)
    step, waits, held = _step_of(kind, settings, place)
    start = time.perf_counter()
    for _ in range(WARM_UP_STEPS):
        step()
    _finish(place)
    ready_s = time.perf_counter() - start
    waited_before, start = waits(), time.perf_counter()
    for _ in range(steps):
        step()
    _finish(place)
    took = time.perf_counter() - start
    waited, memory = (waits() - waited_before) / took, _most_memory(step, held(), place) / MiB
    print(json.dumps(asdict(Measured(steps * batch / took, waited, ready_s, memory))))


def _step_of(
    kind: str, settings: RunConfig, device: torch.device
) -> tuple[Callable[[], object], Callable[[], float], Callable[[], int]]:
    """A step, the seconds that were waited for data so far, and the bytes that are held between steps."""
    if kind == "script":
        peer = PlainLoop(settings, read_index(set_folder(settings.data)), processes=2)
        return peer.step, lambda: peer.waited_s, lambda: _held(peer.network, peer.optimizer)
    run = make_run(Path(tempfile.mkdtemp(dir=settings.data.root)), settings)
    loop = make_loop(run, SoloComms(), device=device)
    loop.metrics.keep(0)
    engine = loop.engine
    assert isinstance(engine, TorchEngine)
    held = partial(_held, engine.network, engine.optimizer)
    return loop._train_one_step, lambda: loop.stopwatch.waited, held


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _held(network: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.nbytes for tensor in (*network.state_dict().values(), *kept))


def _most_memory(step: Callable[[], object], held: int, device: torch.device) -> int:
    """On a CPU by what torch's profiler sees allocated in one more step: a process's size also tells what it wastes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    found = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(found, key=lambda event: event.start_ns())]
    return held + max(accumulate(changes))


def measured(way: Way, root: str, asked: argparse.Namespace) -> Measured:
    words = (way.kind, root, asked.backbone, asked.batch, asked.device, asked.steps, *way.changes)
    code = f"from tests.benchmarks.train import tell; tell{words!r}"
    whole = {**os.environ, **(KEEP_FREED_MEMORY if asked.device == "cpu" and way.kind == "ours" else {})}
    answer = subprocess.run([sys.executable, "-c", code], env=whole, check=True, stdout=subprocess.PIPE, text=True)
    return Measured(**json.loads(answer.stdout.splitlines()[-1]))


def ways_of(asked: argparse.Namespace) -> dict[str, Way]:
    """The script computes on the CPU only."""
    if asked.device == "cuda":
        return {name: way for name, way in (WAYS | COMPILED | CUDA_GRAPHS).items() if way.kind == "ours"}
    return WAYS | (COMPILED if asked.compiled else {})


def all_measured(asked: argparse.Namespace, root: str) -> dict[str, list[Measured]]:
    """By way, a measurement a round, the ways in turn; what --out has already is not measured again."""
    ways, began = ways_of(asked), time.monotonic()
    kept = json.loads(asked.out.read_text()) if asked.out and asked.out.exists() else {}
    found = {name: [Measured(**each) for each in kept.get(name, [])] for name in ways}
    for number in range(asked.rounds):
        for name, way in ways.items():
            if len(found[name]) > number or time.monotonic() - began > asked.budget_s:
                continue
            found[name].append(measured(way, root, asked))
            if asked.out:
                asked.out.write_text(json.dumps({name: [*map(asdict, each)] for name, each in found.items()}))
    return found


def rows(found: dict[str, list[Measured]], ways: dict[str, Way]) -> Iterator[list[str]]:
    base = found.get(SCRIPT, [])
    for name, all_of_it in found.items():
        if not all_of_it:
            yield [name, "not measured", *5 * [""]]
            continue
        rates, like = [each.images_per_s for each in all_of_it], found.get(ways[name].like, [])
        yield [
            name,
            spread(rates, 1),
            _ratio(rates, [each.images_per_s for each in base]),
            _ratio([each.images_per_s for each in like], rates),
            _ratio([each.memory for each in all_of_it], [each.memory for each in like]),
            f"{statistics.median(each.memory for each in all_of_it):,.0f}",
            f"{100 * statistics.median(each.data_wait for each in all_of_it):.2f}",
        ]


def _ratio(values: list[float], others: list[float]) -> str:
    pairs = list(zip(values, others, strict=False))
    return f"{statistics.median(value / other for value, other in pairs):.2f}x" if pairs else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--compiled", action="store_true", help="on a CPU too, where that takes minutes")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--budget-s", type=float, default=float("inf"))
    asked = parser.parse_args()
    if asked.device == "auto":
        asked.device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as root:
        data = config(root, asked.backbone, ()).data
        prepare(data, source=None, fetch=False, report=lambda what, done, total: None)
        found = all_measured(asked, root)
    header = ["images/s", "to the script", "a step, of plain's", "memory, of plain's", "memory, MiB", "input, %"]
    print_table([f"{asked.backbone}, batch {asked.batch}", *header], list(rows(found, ways_of(asked))))


if __name__ == "__main__":
    main()
