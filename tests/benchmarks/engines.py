"""Engine benchmark: DDP and DeepSpeed at each ZeRO stage, on this machine's CPU, one thread per worker.

python -m tests.benchmarks.engines [--part speed] [--rounds N] [--steps N] [--backbone resnet50] [--batch N]
python -m tests.benchmarks.engines --part spread [--steps N]
"""

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch

from fmfsd.config import RunConfig, load_config
from fmfsd.data.prepare import prepare
from fmfsd.distributed.collectives import Comms
from fmfsd.engine.interface import Engine
from fmfsd.engine.torch_engine import TorchEngine
from fmfsd.run.run_dir import RunDir
from launcher.plan.launch_plan import MALLOC_SETTINGS
from tests.benchmarks.table import print_table, spread
from tests.distributed.test_deepspeed import ADAMW, SGD, SMALL, STAGES, TORCH, losses, train_runs
from tests.helpers.runs import make_loop, make_run
from tests.helpers.workers import run_workers

ENGINES = {"DDP": TORCH, **{f"DeepSpeed, ZeRO {stage}": engine for stage, engine in enumerate(STAGES)}}
WORKERS = (1, 2)
SIZES = ("data.shards=16", "train.batch=32")
"""Overrides of the runs whose losses are compared."""
WARM_UP_STEPS = 2
MiB = 2**20


def measure(comms: Comms, folder: Path, steps: int) -> tuple[float, float, float]:
    """Return seconds per step, peak RSS in MiB, and the size of the optimizer state in MiB."""
    warnings.simplefilter("ignore")  # from DeepSpeed
    with closing(make_loop(RunDir(folder), comms)) as loop:
        loop.resume()
        for _ in range(WARM_UP_STEPS):
            loop._train_one_step()
        start = time.perf_counter()
        for _ in range(steps):
            loop._train_one_step()
        return (time.perf_counter() - start) / steps, _peak_rss(), _optimizer_state(loop.engine)


def _peak_rss() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def _optimizer_state(engine: Engine) -> float:
    optimizer = engine.optimizer if isinstance(engine, TorchEngine) else engine._base  # type: ignore[attr-defined]
    values = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(value.numel() * value.element_size() for value in values) / MiB


def compare_speed(options: argparse.Namespace) -> None:
    cases = [(workers, name) for workers in WORKERS for name in ENGINES]
    measurements: dict[tuple[int, str], list[tuple[float, float, float]]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as root:
        prepare(_config(options, root).data, source=None, fetch=False, report=lambda what, done, total: None)
        for number in range(options.rounds):
            for workers, name in cases:
                run = make_run(Path(root) / f"{number}-{workers}-{name}", _config(options, root, *ENGINES[name]))
                results = run_workers(measure, workers, run.path, options.steps)
                measurements[workers, name].append(max(results))
    header = ["workers", "engine", "images/s", "s per step", "over DDP", "peak, MiB", "optimizer state, MiB"]
    print_table(header, [_row(options.batch, case, measurements) for case in cases])


def _config(options: argparse.Namespace, root: str, *changes: str) -> RunConfig:
    fixed = ("data.name=synthetic100", f"data.root={root}", f"model.backbone={options.backbone}", "data.shards=2")
    plain = (
        f"train.batch={options.batch}",
        "optim.base_batch=128",
        "train.precision=fp32",
        "train.channels_last=false",
    )
    return load_config("cifar100-resnet18", [*fixed, *plain, "train.log_every=1000 steps", *changes])


def _row(
    batch: int, case: tuple[int, str], measurements: dict[tuple[int, str], list[tuple[float, float, float]]]
) -> list[str]:
    workers, name = case
    seconds, peaks, states = zip(*measurements[case], strict=True)
    ratios = [one[0] / ddp[0] for one, ddp in zip(measurements[case], measurements[workers, "DDP"], strict=True)]
    rate = spread([batch / each for each in seconds], 2)
    over = spread([100 * (ratio - 1) for ratio in ratios], 1)
    return [
        str(workers),
        name,
        rate,
        spread(seconds, 2),
        f"{over} %",
        spread(peaks),
        f"{statistics.median(states):.1f}",
    ]


def compare_losses(options: argparse.Namespace) -> None:
    """Compare the losses of each stage with those of DDP; the yardstick is DDP from weights that differ in the last
    bit."""
    rows: list[Sequence[object]] = []
    with tempfile.TemporaryDirectory() as root:
        prepare(_spread_config(options, root).data, source=None, fetch=False, report=lambda what, done, total: None)
        for title, optim in (
            ("SGD", SGD),
            ("AdamW, average, accumulation, clipping", (*ADAMW, "train.micro_batch=16")),
        ):
            rows += _differences(options, Path(root), title, optim)
    print_table(["optimizer", "engine", "largest difference, first 5", f"of {options.steps}", "over the spread"], rows)


def _differences(options: argparse.Namespace, root: Path, title: str, optim: tuple[str, ...]) -> list[Sequence[object]]:
    names = ("DDP", "DDP, weights nudged", *list(ENGINES)[1:])
    runs = [root / title / name for name in names]
    for folder, engine in zip(runs, (TORCH, TORCH, *STAGES), strict=True):
        make_run(folder, _spread_config(options, str(root), *optim, *engine))
    for folder in runs:
        run_workers(train_runs, 2, [folder], [runs[1]])
    expected, *others = (losses(folder) for folder in runs)
    relative = [((other - expected) / expected).abs() for other in others]
    most = relative[0].max()
    return [
        (title, name, f"{each[:5].max():.1e}", f"{each.max():.1e}", f"{each.max() / most:.2f}")
        for name, each in zip(names[1:], relative, strict=True)
    ]


def _spread_config(options: argparse.Namespace, root: str, *changes: str) -> RunConfig:
    fixed = ("data.name=synthetic10", f"data.root={root}", *SMALL, *SIZES, f"train.max_steps={options.steps}")
    return load_config("smoke", [*fixed, f"model.backbone={options.backbone}", *changes])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=("speed", "spread"), default="speed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--backbone")
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    part, steps, backbone = (
        (compare_speed, 3, "resnet50") if options.part == "speed" else (compare_losses, 50, "resnet8")
    )
    options.steps, options.backbone = options.steps or steps, options.backbone or backbone
    os.environ.update(MALLOC_SETTINGS)  # as the launcher does; read at the start of the process that forks the workers
    part(options)


if __name__ == "__main__":
    main()
