"""Report benchmark: time to write the pages of 100 runs and of a sweep of 1,000 trials, and their sizes.

python -m tests.benchmarks.report [--runs 100] [--trials 1000]
"""

import argparse
import json
import logging
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from fmfsd.config import DataConfig
from fmfsd.data.prepare import prepare
from fmfsd.distributed.collectives import SingleWorkerComms
from fmfsd.report.sweep_page import render_sweep_page
from fmfsd.report.write import write_report
from fmfsd.run.run_dir import RunDir
from tests.benchmarks.table import print_table
from tests.helpers.official import write_official
from tests.helpers.runs import make_run, tiny_config, train_run

EPOCHS = 200


def main() -> None:
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--trials", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folders = make_runs(Path(scratch), options.runs)
        rows = [time_report("one run", folders[:1], Path(scratch) / "one.html")]
        rows.append(time_report(f"{options.runs} runs of {EPOCHS} epochs", folders, Path(scratch) / "all.html"))
        rows.append(time_sweep_page(options.trials))
    print_table(("page", "seconds", "MiB"), rows)


def time_report(what: str, folders: list[Path], out: Path) -> tuple[str, str, str]:
    start = time.perf_counter()
    write_report(folders, out)
    return what, f"{time.perf_counter() - start:.2f}", f"{out.stat().st_size / 2**20:.2f}"


def make_runs(root: Path, count: int) -> list[Path]:
    """Train one run and return copies of it with EPOCHS epochs of records each; five seeds per config."""
    source = write_official(root / "source", "cifar10", train=256, test=64)
    prepare(DataConfig(name="cifar10", root=str(root)), source=source, fetch=False, report=lambda *_: None)
    first = make_run(root / "first", tiny_config(root, "train.max_steps=4", "optim.milestones=[]"))
    train_run(SingleWorkerComms(), first.path)
    return [write_run_copy(first, root / f"run{number:03d}", number) for number in range(count)]


def write_run_copy(first: RunDir, folder: Path, number: int) -> Path:
    copy = RunDir(shutil.copytree(first.path, folder))
    config = yaml.safe_load(copy.config.read_text())
    config["seed"], config["distill"]["alpha"] = number % 5, round(0.1 + number // 5 / 100, 2)
    copy.config.write_text(yaml.safe_dump(config))
    lines = [json.loads(line) for line in copy.metrics.read_text().splitlines()]
    last = {line["split"]: line for line in lines}
    rng = random.Random(number)
    records = [
        {name: value * rng.uniform(0.9, 1.1) if isinstance(value, float) else value for name, value in line.items()}
        | {"epoch": epoch, "step": 100 * epoch, "time": 10.0 * epoch}
        for epoch in range(1, EPOCHS + 1)
        for line in last.values()
    ]
    copy.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def time_sweep_page(trials: int) -> tuple[str, str, str]:
    content = make_sweep(trials)
    start = time.perf_counter()
    text = render_sweep_page(content, "parameters: {}\n")
    return f"a sweep of {trials} trials", f"{time.perf_counter() - start:.2f}", f"{len(text) / 2**20:.2f}"


def make_sweep(trials: int) -> dict[str, Any]:
    """Return the content of a sweep.json with finished trials of EPOCHS reports each."""
    rng, metric = random.Random(0), "valid/deepest_top1"
    finished: list[dict[str, Any]] = []
    for number in range(trials):
        top1, name = rng.random(), f"{number:04d}"
        reports = [{"epoch": epoch, metric: top1 * epoch / EPOCHS} for epoch in range(1, EPOCHS + 1)]
        values = {"distill.alpha": rng.random(), "optim.lr": rng.random()}
        about = {"state": "finished", "repeats": None, "epochs": EPOCHS, "seconds": 60.0, "cause": "", "command": ""}
        finished.append({"name": name, **about, "metrics": {metric: top1}, "values": values, "reports": reports})
    best = max(finished, key=lambda trial: trial["metrics"][metric])
    chosen = {"trial": best["name"], "metrics": best["metrics"], "values": best["values"], "command": "fmfsd-launch"}
    counts = {"finished": trials, "pruned": 0, "failed": 0, "asked": 0, "repeated": 0}
    return {
        "folder": "search",
        "options": {"metrics": [metric], "modes": ["max"], "search": "random"},
        "counts": counts,
        "trials": finished,
        "best": chosen,
        "front": [best["name"]],
        "confirmations": [],
        "tested": {},
        "importances": [],
        "effects": [],
        "space": {"parameters": {"distill.alpha": {}, "optim.lr": {}}},
        "versions": {},
    }


if __name__ == "__main__":
    main()
