"""Result of an evaluation, as values, JSON and tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fmfsd.evaluation.accumulator import Evaluation
from fmfsd.evaluation.early_exits import ExitTable, MeasuredCost
from fmfsd.evaluation.exit_thresholds import CurvePoint

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class EarlyExitResults:
    """Results of early exits.

    `table`: measured. `curve`: one threshold for all early heads, computed from the measured costs. `target`: the value
    of --exit-target. `chosen`: the thresholds chosen for it on the validation split.
    """

    table: ExitTable
    curve: tuple[CurvePoint, ...]
    target: str | None = None
    chosen: tuple[float, ...] | None = None


@dataclass(frozen=True)
class RunEvaluation:
    """Evaluation of `checkpoint`, saved after `step` steps.

    `metrics`: by the names used in metrics.jsonl. `mirrored`: the same with the logits of each image and its mirror
    image averaged, if requested. `early_exits`: None if the network has no early head, or if not requested.
    `evaluation` and the names of the `classes` are for the run's report only; the JSON output leaves them out.
    """

    split: str
    data: str
    checkpoint: str
    step: int
    samples: int
    metrics: dict[str, float]
    mirrored: dict[str, float] | None
    early_exits: EarlyExitResults | None
    evaluation: Evaluation
    classes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name not in ("evaluation", "classes")}

    def tables(self) -> Iterator[Table]:
        """Yield a table of the metrics and, if measured, one of the early exits."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        title = f"step {self.step}, {self.split}, {self.samples} samples"
        extra = ("mirror-averaged",) if self.mirrored is not None else ()
        heads = Table("metric", "value", *extra, title=title, title_justify="left", box=SIMPLE_HEAD)
        for name, value in self.metrics.items():
            extra = (f"{self.mirrored[name]:.4f}",) if self.mirrored is not None else ()
            heads.add_row(name, f"{value:.4f}", *extra)
        yield heads
        if self.early_exits is not None:
            yield _exit_table(self.early_exits)


def _exit_table(early_exits: EarlyExitResults) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    exits = early_exits.table
    heads, alone = list(exits.if_all_leave), exits.deepest_alone
    title = "early exits, and costs relative to the deepest head alone"
    columns = ("threshold", "top-1", *heads, "M MACs", "ratio", "ms", "ratio")
    table = Table(*columns, title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))

    def add(name: str, top1: str, leaving: Mapping[str, float], cost: MeasuredCost) -> None:
        shares = (f"{leaving.get(head, 0):.1%}" for head in heads)
        macs = (f"{cost.macs / 1e6:.1f}", f"{cost.macs / alone.macs:.3f}")
        table.add_row(name, top1, *shares, *macs, f"{cost.seconds * 1e3:.3f}", f"{cost.seconds / alone.seconds:.3f}")

    for setting in exits.settings:
        for_target = f" for {early_exits.target}" if setting.thresholds == early_exits.chosen else ""
        name = ", ".join(f"{threshold:.4g}" for threshold in setting.thresholds)
        add(f"{name}{for_target}", f"{setting.top1:.4f}", setting.leaving, setting.cost)
    for name, cost in exits.if_all_leave.items():
        add("", "", {name: 1.0}, cost)
    add("alone", "", {heads[-1]: 1.0}, alone)
    return table
