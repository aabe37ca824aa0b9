"""What the runs of an accuracy benchmark have found: means over seeds, and a paired comparison to plain."""

import json
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmfsd.report.paired_tests import Paired
from fmfsd.system.atomic_files import read_json
from tests.benchmarks.accuracy_runs import Asked, Run, notes_in
from tests.benchmarks.table import command_line, print_rows

MAIN = ("deepest_top1", "ensemble_top1")
COMPARED_TO = "plain"
NOT_RUN = "not run"
HEADER = ("seeds", "deepest head, %", "ensemble, %", "branches, %", "to plain, points (95 %)", "training", "images/s")
VERSIONS = ("python", "torch", "torchvision", "numpy")


@dataclass(frozen=True)
class Result:
    """Of a finished run: its last accuracies by head, the seconds and images of its training steps, and how many others
    were at work beside it, at most; None: not known."""

    top1: Mapping[str, float]
    seconds: float
    images: int
    beside: int | None

    @classmethod
    def of(cls, run: Run, notes: Mapping[str, Any]) -> "Result":
        test = run.outcome()["metrics"]["test"]
        top1 = {name: value for name, value in test.items() if name.endswith("_top1")}
        seconds, images = trained(run.folder.metrics, run.config().train.batch)
        return cls(top1, seconds, images, notes.get(run.name, {}).get("beside"))


def trained(metrics: Path, batch: int) -> tuple[float, int]:
    """Seconds in steps, and images: by the records' rates, as their times include the pauses of a run that stopped."""
    seconds, last = 0.0, 0
    for record in map(json.loads, metrics.read_text().splitlines()):
        if record["split"] == "train":
            seconds += (record["step"] - last) * batch / max(record["images_per_s"], 1e-9)
            last = record["step"]
    return seconds, last * batch


def print_results(asked: Asked, notes_file: Path) -> None:
    """One table of what is finished, and where it comes from."""
    notes, runs = notes_in(notes_file), asked.runs()
    finished = {run: Result.of(run, notes) for run in runs if run.is_finished}
    by_method = {
        method: {run.seed: found for run, found in finished.items() if run.method == method} for method in asked.methods
    }
    plain = by_method.get(COMPARED_TO, {})
    rows = [_row(asked, method, found, plain) for method, found in by_method.items()]
    print_rows([f"{asked.backbone} on {asked.dataset}, last epoch", *HEADER], rows)
    print(f"\n{' · '.join([f'`{command_line()}`', *_origins(list(finished), notes)])}")


def _row(asked: Asked, method: str, found: Mapping[int, Result], plain: Mapping[int, Result]) -> list[str]:
    if not found:
        return [method, f"0 of {asked.seeds}", NOT_RUN, *["-"] * (len(HEADER) - 2)]
    first = next(iter(found.values()))
    heads = {name: spread([each.top1[name] for each in found.values()]) for name in first.top1}
    branches = [f"{name.removesuffix('_top1')} {value}" for name, value in heads.items() if name not in MAIN]
    return [
        method,
        f"{len(found)} of {asked.seeds}",
        heads[MAIN[0]],
        heads.get(MAIN[1], "-"),
        ", ".join(branches) or "-",
        "-" if method == COMPARED_TO else compared(found, plain),
        f"{statistics.mean(each.seconds for each in found.values()) / 60:.1f} min",
        rate(found, plain),
    ]


def spread(shares: Sequence[float]) -> str:
    """In percent, mean and standard deviation."""
    percent = [100 * share for share in shares]
    if len(percent) == 1:
        return f"{percent[0]:.2f}"
    return f"{statistics.mean(percent):.2f} ± {statistics.stdev(percent):.2f}"


def compared(found: Mapping[int, Result], plain: Mapping[int, Result]) -> str:
    """The deepest heads, seed by seed: the same order of images and the same first weights of the trunk."""
    both = sorted(found.keys() & plain.keys())
    if not both:
        return "-"
    return str(Paired.of(*([of[seed].top1[MAIN[0]] for seed in both] for of in (found, plain))))


def rate(found: Mapping[int, Result], plain: Mapping[int, Result]) -> str:
    """With the ratio to plain where it is known that no run of either had another beside it."""
    mine, beside = f"{_images_per_s(found):,.0f}", [each.beside for each in found.values()]
    if most := max(count or 0 for count in beside):
        return f"{mine} (up to {most + 1} at a time)"
    alone = all(count == 0 for count in (*beside, *(each.beside for each in plain.values())))
    return f"{mine} ({_images_per_s(found) / _images_per_s(plain):.2f}x)" if alone and plain else mine


def _images_per_s(found: Mapping[int, Result]) -> float:
    return sum(each.images for each in found.values()) / sum(each.seconds for each in found.values())


def _origins(runs: Sequence[Run], notes: Mapping[str, Any]) -> list[str]:
    """The hardware and the versions that the runs were made with, each once."""
    hardware = [notes[run.name]["hardware"] for run in runs if run.name in notes]
    versions = []
    for run in runs:
        with suppress(OSError, ValueError, KeyError, IndexError):
            entry = read_json(run.folder.manifest)["launches"][-1]
            commit = [f"commit {entry['commit'][:7]}"] if entry["commit"] else []
            versions.append(", ".join([*(f"{name} {entry['versions'][name]}" for name in VERSIONS), *commit]))
    return [*dict.fromkeys(hardware), *dict.fromkeys(versions)]
