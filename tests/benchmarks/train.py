"""Training speed of one process: FMFSD and the plain backbone in this trainer, and FMFSD in a script's plain loop.

python -m tests.benchmarks.train [--rounds N] [--steps N] [--backbone resnet18] [--batch N] [--compiled]
    [--device auto|cpu|cuda] [--out FILE] [--budget-s S]

With --out, measurements are stored and not repeated; after --budget-s no further measurement starts. So the same
command can be repeated until the table is complete.
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
from fmfsd.data.shards.index import prepared_set_folder, read_index
from fmfsd.distributed.collectives import SingleWorkerComms
from fmfsd.engine.precision import configure_arithmetic
from fmfsd.engine.torch_engine import TorchEngine
from launcher.plan.launch_plan import MALLOC_SETTINGS
from tests.benchmarks.peer import PlainLoop
from tests.benchmarks.table import print_table, spread
from tests.helpers.runs import make_loop, make_run

WARM_UP_STEPS = 2
MiB = 2**20
FP32 = ("train.precision=fp32", "train.channels_last=false", "train.compile=false")
PRESET = ("train.compile=false",)
SCRIPT = "FMFSD by a script: fp32, NCHW, DataLoader of 2"


@dataclass(frozen=True)
class Variant:
    """A variant to measure; `like` names the plain backbone's variant with the same settings."""

    kind: str
    changes: tuple[str, ...]
    like: str = ""


VARIANTS = {
    SCRIPT: Variant("script", (*FP32, "train.recompute=none")),
    "FMFSD: fp32, NCHW": Variant("ours", FP32, "plain: fp32, NCHW"),
    "plain: fp32, NCHW": Variant("ours", ("method=plain", *FP32)),
    "FMFSD, the preset: bf16, channels_last": Variant("ours", PRESET, "plain, the preset"),
    "plain, the preset": Variant("ours", ("method=plain", *PRESET)),
    "FMFSD, the preset, nothing recomputed": Variant("ours", ("train.recompute=none", *PRESET), "plain, the preset"),
    "FMFSD, the preset, all recomputed": Variant("ours", ("train.recompute=all", *PRESET), "plain, the preset"),
}
COMPILED = {
    "FMFSD, the preset, compiled": Variant("ours", ("train.compile=true",), "plain, the preset, compiled"),
    "plain, the preset, compiled": Variant("ours", ("method=plain", "train.compile=true")),
}
CUDA_GRAPHS = {
    "FMFSD, the preset, CUDA graphs": Variant("ours", ("train.compile=cuda_graphs",), "plain, the preset, CUDA graphs"),
    "plain, the preset, CUDA graphs": Variant("ours", ("method=plain", "train.compile=cuda_graphs")),
}


@dataclass(frozen=True)
class TrainMeasurement:
    """One measurement; `ready_s` is the time of the two warm-up steps, `memory` the peak of all tensors in a step, in
    MiB."""

    images_per_s: float
    data_wait: float
    ready_s: float
    memory: float


def config(root: str, backbone: str, changes: tuple[str, ...], batch: int = 128) -> RunConfig:
    fixed = ("data.name=synthetic100", f"data.root={root}", f"model.backbone={backbone}", "checkpoint.every_epochs=200")
    return load_config("cifar100-resnet18", [*fixed, f"train.batch={batch}", "train.log_every=1000 steps", *changes])


def print_measurement(kind: str, root: str, backbone: str, batch: int, device: str, steps: int, *changes: str) -> None:
    """Measure and print one variant; runs in its own process, because the allocator settings are read at its start."""
    settings, place = config(root, backbone, changes, batch), torch.device(device)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    configure_arithmetic(deterministic=False)
    step, waits, held_bytes = _build_step(kind, settings, place)
    start = time.perf_counter()
    for _ in range(WARM_UP_STEPS):
        step()
    _synchronize(place)
    ready_s = time.perf_counter() - start
    waited_before, start = waits(), time.perf_counter()
    for _ in range(steps):
        step()
    _synchronize(place)
    took = time.perf_counter() - start
    waited, memory = (waits() - waited_before) / took, _peak_memory(step, held_bytes(), place) / MiB
    print(json.dumps(asdict(TrainMeasurement(steps * batch / took, waited, ready_s, memory))))


def _build_step(
    kind: str, settings: RunConfig, device: torch.device
) -> tuple[Callable[[], object], Callable[[], float], Callable[[], int]]:
    """Return functions for one training step, the seconds waited for data so far, and the bytes held between steps."""
    if kind == "script":
        peer = PlainLoop(settings, read_index(prepared_set_folder(settings.data)), processes=2)
        return peer.step, lambda: peer.waited_s, lambda: _held_bytes(peer.network, peer.optimizer)
    run = make_run(Path(tempfile.mkdtemp(dir=settings.data.root)), settings)
    loop = make_loop(run, SingleWorkerComms(), device=device)
    loop.metrics.truncate(0)
    engine = loop.engine
    assert isinstance(engine, TorchEngine)
    held_bytes = partial(_held_bytes, engine.network, engine.optimizer)
    return loop._train_one_step, lambda: loop.step_timer.waited_s, held_bytes


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _held_bytes(network: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.nbytes for tensor in (*network.state_dict().values(), *states))


def _peak_memory(step: Callable[[], object], held_bytes: int, device: torch.device) -> int:
    """Return the peak bytes of tensors in a step; on a CPU from torch's profiler, as RSS includes fragmentation."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return held_bytes + max(accumulate(changes))


def measure(variant: Variant, root: str, options: argparse.Namespace) -> TrainMeasurement:
    arguments = (variant.kind, root, options.backbone, options.batch, options.device, options.steps, *variant.changes)
    code = f"from tests.benchmarks.train import print_measurement as p; p{arguments!r}"
    env = {**os.environ, **(MALLOC_SETTINGS if options.device == "cpu" and variant.kind == "ours" else {})}
    done = subprocess.run([sys.executable, "-c", code], env=env, check=True, stdout=subprocess.PIPE, text=True)
    return TrainMeasurement(**json.loads(done.stdout.splitlines()[-1]))


def chosen_variants(options: argparse.Namespace) -> dict[str, Variant]:
    """Return the variants for this device; the script runs on the CPU only."""
    if options.device == "cuda":
        return {
            name: variant for name, variant in (VARIANTS | COMPILED | CUDA_GRAPHS).items() if variant.kind == "ours"
        }
    return VARIANTS | (COMPILED if options.compiled else {})


def measure_all(options: argparse.Namespace, root: str) -> dict[str, list[TrainMeasurement]]:
    """Measure all variants round-robin, `rounds` times; skip what is already stored in --out."""
    variants, start_s = chosen_variants(options), time.monotonic()
    stored = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    measurements = {name: [TrainMeasurement(**each) for each in stored.get(name, [])] for name in variants}
    for number in range(options.rounds):
        for name, variant in variants.items():
            if len(measurements[name]) > number or time.monotonic() - start_s > options.budget_s:
                continue
            measurements[name].append(measure(variant, root, options))
            if options.out:
                options.out.write_text(json.dumps({name: [*map(asdict, each)] for name, each in measurements.items()}))
    return measurements


def rows(measurements: dict[str, list[TrainMeasurement]], variants: dict[str, Variant]) -> Iterator[list[str]]:
    base = measurements.get(SCRIPT, [])
    for name, each_round in measurements.items():
        if not each_round:
            yield [name, "not measured", *5 * [""]]
            continue
        rates, like = [each.images_per_s for each in each_round], measurements.get(variants[name].like, [])
        yield [
            name,
            spread(rates, 1),
            _ratio(rates, [each.images_per_s for each in base]),
            _ratio([each.images_per_s for each in like], rates),
            _ratio([each.memory for each in each_round], [each.memory for each in like]),
            f"{statistics.median(each.memory for each in each_round):,.0f}",
            f"{100 * statistics.median(each.data_wait for each in each_round):.2f}",
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
    parser.add_argument(
        "--compiled", action="store_true", help="compiled variants on a CPU too, where compilation takes minutes"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--budget-s", type=float, default=float("inf"))
    options = parser.parse_args()
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as root:
        data = config(root, options.backbone, ()).data
        prepare(data, source=None, fetch=False, report=lambda what, done, total: None)
        measurements = measure_all(options, root)
    header = ["images/s", "ratio to the script", "step time / plain", "memory / plain", "memory, MiB", "data wait, %"]
    print_table(
        [f"{options.backbone}, batch {options.batch}", *header], list(rows(measurements, chosen_variants(options)))
    )


if __name__ == "__main__":
    main()
