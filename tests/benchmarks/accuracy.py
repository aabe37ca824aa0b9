"""Accuracies of methods side by side: last epoch, deepest head, ensemble and each branch, over seeds.

python -m tests.benchmarks.accuracy --root DIR [--preset cifar100-resnet8] [--methods plain,byot,fmfsd] [--seeds N]
    [--out DIR]

Each run is an ordinary `fmfsd-launch`, in its own folder below --out; what is finished there is not run again, and what
was stopped goes on.
"""

import argparse
import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

from tests.benchmarks.table import print_table
from tests.helpers.processes import command

MAIN = ("deepest_top1", "ensemble_top1")


def outcome(run: Path, preset: str, root: Path, method: str, seed: int) -> dict[str, Any]:
    """The finished run's outcome; the run is started or gone on with if need be."""
    changes = (f"method={method}", f"seed={seed}", f"data.root={root.absolute()}")
    settings = [part for change in changes for part in ("--set", change)]
    subprocess.run([command("fmfsd-launch"), preset, *settings, "--run-dir", str(run)], check=True)
    return dict(json.loads((run / "outcome.json").read_text()))


def shown(values: list[float]) -> str:
    percent = [100 * value for value in values]
    if len(percent) == 1:
        return f"{percent[0]:.2f}"
    return f"{statistics.mean(percent):.2f} ± {statistics.stdev(percent):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--preset", default="cifar100-resnet8")
    parser.add_argument("--methods", default="plain,byot,fmfsd")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    asked = parser.parse_args()
    rows = []
    for method in asked.methods.split(","):
        runs = [asked.out / f"{asked.preset}-{method}-{seed}" for seed in range(asked.seeds)]
        found = [outcome(run, asked.preset, asked.root, method, seed) for seed, run in enumerate(runs)]
        tests = [each["metrics"]["test"] for each in found]
        heads = {name: shown([test[name] for test in tests]) for name in tests[0] if name.endswith("_top1")}
        branches = ", ".join(
            f"{name.removesuffix('_top1')} {value}" for name, value in heads.items() if name not in MAIN
        )
        rows.append([method, heads[MAIN[0]], heads.get(MAIN[1], "-"), branches or "-"])
    seeds = f"{asked.seeds} seed{'s' if asked.seeds > 1 else ''}"
    print_table([f"{asked.preset}, {seeds}", "deepest head, %", "ensemble, %", "branches, %"], rows)


if __name__ == "__main__":
    main()
