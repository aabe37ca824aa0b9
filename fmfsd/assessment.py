"""What a run's newest checkpoint can do on a split: each head, the ensemble, and early exits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fmfsd.checkpoint import Saved
from fmfsd.checkpoint.folder import load_checkpoint
from fmfsd.comms import SoloComms
from fmfsd.config import TrainConfig, load_config
from fmfsd.data.index import SetIndex, read_index, set_folder
from fmfsd.engine.base import EngineState
from fmfsd.engine.form import Form
from fmfsd.engine.torch_engine import TorchEngine
from fmfsd.errors import CheckError, CheckpointError, ConfigError, NoCheckpointError, Problem
from fmfsd.evaluation import evaluate
from fmfsd.exits import ExitTable, MeasuredCost, measure_exits
from fmfsd.files import read_json, sha256, write_json
from fmfsd.model.build import build_network
from fmfsd.model.early_exit import early_heads
from fmfsd.position import positions_in
from fmfsd.rundir import RunDir
from fmfsd.terminal import Report
from fmfsd.trainer import evaluation_batches, exact_arithmetic

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger(__name__)
DEFAULT_THRESHOLDS = ("0.9",)

Thresholds = tuple[float, ...]


@dataclass(frozen=True)
class Assessment:
    """Of `checkpoint`, taken after `step` steps; `metrics` by the names of a run's records, `early_exits` None where no
    head is early or nobody asked for them."""

    split: str
    checkpoint: str
    step: int
    samples: int
    metrics: dict[str, float]
    early_exits: ExitTable | None

    def tables(self) -> Iterator[Table]:
        """For people."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        title = f"step {self.step}, {self.split}, {self.samples} samples"
        heads = Table("what", "value", title=title, title_justify="left", box=SIMPLE_HEAD)
        for name, value in self.metrics.items():
            heads.add_row(name, f"{value:.4f}")
        yield heads
        if self.early_exits is not None:
            yield _table_of_exits(self.early_exits)


def assess(
    run: RunDir,
    split: str,
    asked: Sequence[str],
    device: torch.device,
    *,
    early_exits: bool = True,
    report: Report = lambda *_: None,
) -> Assessment:
    """Evaluate the newest whole checkpoint of `run` by one process; kept in the run as `evaluation/<split>.json`.

    `asked` are settings of `early_exits`, each a threshold a head or one for all, in (0, 1], with commas between. On
    one worker of the same kind of device the metrics are those of the run's own record, to the last digit. Raises
    ConfigError for a split or thresholds that do not fit, CheckError without a checkpoint, NoCheckpointError if none
    is whole.
    """
    config = load_config(str(run.config))
    exact_arithmetic(deterministic=config.train.deterministic)
    index, network, comms = index_with(split, run, config), build_network(config), SoloComms()
    early = early_heads(network) if early_exits else ()
    settings = settings_of(asked or (DEFAULT_THRESHOLDS if early else ()), early)
    saved = newest_checkpoint(run)
    engine = TorchEngine(network, config, comms, device)
    engine.load(EngineState(saved.engine.evaluated, {}))
    batches = evaluation_batches(config, index, split, comms, device)
    metrics = evaluate(engine, batches, comms, report=_told(report, "images", index.samples(split)))
    told, form = _told(report, "settings of early exits", len(settings)), Form.of(config.train)
    exits = measure_exits(network, batches, form, settings, report=told) if early else None
    position = saved.position
    found = Assessment(split, position.folder_name, position.step, index.samples(split), metrics, exits)
    _keep(found, run.evaluation(split))
    return found


def _keep(found: Assessment, path: Path) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_json(path, asdict(found))


def _told(report: Report, what: str, total: int) -> Callable[[float], None]:
    return lambda done: report(what, round(done * total), total)


def index_with(split: str, run: RunDir, config: TrainConfig) -> SetIndex:
    """Of the set that the run was trained on. CheckError if it is gone or another, ConfigError if it has no `split`."""
    index = read_index(set_folder(config.data))
    trained_on = read_json(run.manifest).get("data") if run.manifest.exists() else None
    if trained_on not in (None, sha256(index.folder / "index.json")):
        raise CheckError([Problem(str(index.folder), f"is not the set that {run.path} was trained on")])
    if split not in index.splits:
        raise ConfigError(f"--split {split}: {index.folder} has {', '.join(index.splits)}")
    return index


def newest_checkpoint(run: RunDir) -> Saved:
    """The newest one that is whole; nothing in the run changes, which may still be training.

    Raises CheckError without any, NoCheckpointError if none can be used.
    """
    found = positions_in(run.checkpoints)
    if not found:
        raise CheckError(
            [Problem(str(run.checkpoints), "no checkpoint there yet: train the run first (fmfsd-launch resume)")]
        )
    for position in found:
        try:
            return load_checkpoint(run.checkpoints / position.folder_name)
        except CheckpointError as error:
            log.warning("%s; trying the one before", error)
    raise NoCheckpointError(f"{run.checkpoints}: no checkpoint there can be used, see above: train the run anew")


def settings_of(asked: Sequence[str], early: Sequence[str]) -> list[Thresholds]:
    """`--exit-thresholds` by early head. Raises ConfigError with everything that is wrong with them."""
    settings, problems = [], []
    for text in asked:
        try:
            settings.append(_thresholds(text, early))
        except ValueError as error:
            problems.append(Problem(f"--exit-thresholds {text}", str(error)))
    if problems:
        raise ConfigError(problems)
    return settings


def _thresholds(text: str, early: Sequence[str]) -> Thresholds:
    if not early:
        raise ValueError("there is no early exit to measure: leave it out")
    try:
        values = tuple(map(float, text.split(",")))
    except ValueError:
        values = ()
    if not values or not all(0 < value <= 1 for value in values):
        raise ValueError("expected probabilities above 0 and up to 1 with commas between, as in 0.9,0.95")
    if len(values) not in (1, len(early)):
        raise ValueError(
            f"{len(values)} for {len(early)} early heads ({', '.join(early)}): give one each, or one for all"
        )
    return values * len(early) if len(values) == 1 else values


def _table_of_exits(exits: ExitTable) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    heads, alone = list(exits.if_all_leave), exits.deepest_alone
    title = "early exits, and costs beside the deepest head alone"
    columns = ("sure from", "top-1", *heads, "M MACs", "ratio", "ms", "ratio")
    table = Table(*columns, title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))

    def add(name: str, top1: str, leaving: Mapping[str, float], cost: MeasuredCost) -> None:
        shares = (f"{leaving.get(head, 0):.1%}" for head in heads)
        macs = (f"{cost.macs / 1e6:.1f}", f"{cost.macs / alone.macs:.3f}")
        table.add_row(name, top1, *shares, *macs, f"{cost.seconds * 1e3:.3f}", f"{cost.seconds / alone.seconds:.3f}")

    for setting in exits.settings:
        add(", ".join(map(str, setting.thresholds)), f"{setting.top1:.4f}", setting.leaving, setting.cost)
    for name, cost in exits.if_all_leave.items():
        add("", "", {name: 1.0}, cost)
    add("alone", "", {heads[-1]: 1.0}, alone)
    return table
