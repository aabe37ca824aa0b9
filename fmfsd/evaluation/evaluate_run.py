"""What a run's newest checkpoint can do on a split: each head, the ensemble, and early exits."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from fmfsd.config import RunConfig
from fmfsd.config.load import checked_data
from fmfsd.config.names import FOLDER
from fmfsd.data.cifar.official_files import OFFICIAL, has_files
from fmfsd.data.loading.load_shards import images_stay_in_files
from fmfsd.data.prepare import prepare
from fmfsd.data.shards.index import SetIndex, read_index, set_folder
from fmfsd.distributed.collectives import Comms, SoloComms
from fmfsd.engine.build import build_loss
from fmfsd.engine.interface import EngineState
from fmfsd.engine.precision import Form, exact_arithmetic
from fmfsd.engine.torch_engine import TorchEngine
from fmfsd.errors import CheckError, ConfigError, DataError, Problem
from fmfsd.evaluation.early_exits import ExitTable, measure_costs, measure_settings
from fmfsd.evaluation.exit_thresholds import Thresholds, cheapest, curve, parsed_target, settings_of, sureness
from fmfsd.evaluation.heads import Predictor, evaluate, evaluation_batches
from fmfsd.evaluation.results import Assessment, EarlyExits
from fmfsd.evaluation.trained_run import newest_checkpoint, own_index, run_config, without_download
from fmfsd.model.build import build_network
from fmfsd.model.early_exit import early_heads
from fmfsd.model.network import Network, Outputs
from fmfsd.run.run_dir import RunDir
from fmfsd.terminal import Report

DEFAULT_THRESHOLDS = ("0.9",)


@dataclass(frozen=True)
class Questions:
    """What is asked of a checkpoint on `split`, of the run's data or of those in the folder `data`.

    `thresholds` are settings of early exits, each a threshold a head or one for all, in (0, 1], with commas between;
    `exit_target` asks for thresholds that the validation split gives. `mirrored`: also by an image and its mirror image
    together.
    """

    split: str = "test"
    thresholds: Sequence[str] = ()
    exit_target: str | None = None
    early_exits: bool = True
    mirrored: bool = False
    data: Path | None = None


def assess(
    run: RunDir,
    asked: Questions,
    device: torch.device,
    comms: Comms | None = None,
    report: Report = lambda *_: None,
) -> Assessment:
    """Evaluate the newest whole checkpoint of `run`, each sample by one of the workers of `comms`; nothing is written.

    On as many workers of the same kind of device the metrics are those of the run's own record, to the last digit.
    Raises ConfigError for a split, thresholds or a target that do not fit, CheckError without a checkpoint,
    NoCheckpointError if none is whole, DataError for data of another kind.
    """
    config, comms = run_config(run), comms or SoloComms()
    exact_arithmetic(deterministic=config.train.deterministic)
    with (
        _index(run, config, asked, comms) as index,
        closing(_Assessing(run, config, index, asked, device, comms, report)) as assessing,
    ):
        return assessing.all_of_it()


class _Assessing:
    """A checkpoint in an engine, and what is asked of it."""

    def __init__(
        self,
        run: RunDir,
        config: RunConfig,
        index: SetIndex,
        asked: Questions,
        device: torch.device,
        comms: Comms,
        report: Report,
    ) -> None:
        """ConfigError before anything long is begun."""
        self.config, self.index, self.asked, self.comms = config, index, asked, comms
        self._device, self._report = device, report
        self.network: Network = build_network(without_download(config))
        self.early = early_heads(self.network) if asked.early_exits else ()
        self.settings = settings_of(asked.thresholds or (DEFAULT_THRESHOLDS if self.early else ()), self.early)
        self.target = _target(asked, self.early, index)
        self.saved = newest_checkpoint(run)
        self.engine = TorchEngine(self.network, build_loss(config), config, SoloComms(), device)
        self.engine.load(EngineState(self.saved.engine.evaluated, {}))
        self._in_files = images_stay_in_files(config.data, index, comms, device)
        self.batches = evaluation_batches(config, index, asked.split, comms, device, self._in_files)

    def close(self) -> None:
        self.batches.close()

    def all_of_it(self) -> Assessment:
        asked, position, samples = self.asked, self.saved.position, self.index.samples(self.asked.split)
        found = evaluate(self.engine, self.batches, self.comms, report=self._told("images", samples))
        assert found is not None, "nobody could ask it to stop"
        mirrored = evaluate(_Mirrored(self.engine), self.batches, self.comms) if asked.mirrored else None
        exits = self._exits() if self.early else None
        of_mirrored = mirrored.metrics if mirrored is not None else None
        return Assessment(
            asked.split,
            str(asked.data or self.index.folder),
            position.folder_name,
            position.step,
            samples,
            found.metrics,
            of_mirrored,
            exits,
            evaluation=found,
            classes=self.index.classes,
        )

    def _exits(self) -> EarlyExits:
        alone, if_all_leave = measure_costs(self.network, self.batches, self._form, self.comms)
        costs, seconds = zip(*map(astuple, if_all_leave.values()), strict=True)
        chosen = self._chosen(costs) if self.target is not None else None
        settings = [*self.settings, *([chosen] if chosen is not None else [])]
        told = self._told("settings of early exits", len(settings))
        measured = measure_settings(self.network, self.batches, self._form, settings, self.comms, report=told)
        table = ExitTable(alone, if_all_leave, measured)
        sure = sureness(self.engine, self.batches, len(self.early), self.comms)
        return EarlyExits(table, curve(sure, costs, seconds), self.asked.exit_target, chosen)

    def _chosen(self, costs: Sequence[float]) -> Thresholds:
        """From the validation split, whatever split is assessed: thresholds chosen on a split look too good on it."""
        assert self.target is not None
        held_out = evaluation_batches(self.config, self.index, "valid", self.comms, self._device, self._in_files)
        with closing(held_out):
            sure = sureness(self.engine, held_out, len(self.early), self.comms)
        found = cheapest(sure, costs, sure.deepest_top1 + self.target)
        if found is None:
            best = max(point.top1 for point in curve(sure, costs, costs)) - sure.deepest_top1
            reached = f"one threshold for all heads reaches {100 * best:+.2f} points on the validation split"
            raise CheckError([Problem(f"--exit-target {self.asked.exit_target}", f"no thresholds give it: {reached}")])
        return found

    @property
    def _form(self) -> Form:
        return Form.of(self.config.train)

    def _told(self, what: str, total: int) -> Callable[[float], None]:
        return lambda done: self._report(what, round(done * total), total)


class _Mirrored:
    """Means of the logits of an image and of its mirror image."""

    def __init__(self, engine: Predictor) -> None:
        self._engine, self.head_names = engine, engine.head_names

    @property
    def evaluated(self) -> nn.Module:
        return self._engine.evaluated

    def predict(self, images: Tensor) -> Outputs:
        plain, mirrored = self._engine.predict(images), self._engine.predict(images.flip(3))
        logits = [(one + other) / 2 for one, other in zip(plain.logits, mirrored.logits, strict=True)]
        return plain._replace(logits=logits)


@contextmanager
def _index(run: RunDir, config: RunConfig, asked: Questions, comms: Comms) -> Iterator[SetIndex]:
    """Of the set that is asked about, which may be made for it."""
    own = own_index(run, config) if asked.data is None else None
    if own is not None:
        yield _fitting(own, asked.split, config, comms)
    elif asked.data is not None and (asked.data / "index.json").exists():
        yield _fitting(read_index(asked.data), asked.split, config, comms)
    elif asked.data is not None:
        if comms.size > 1:
            raise ConfigError(f"--data {asked.data}: several workers need a prepared set; see fmfsd data prepare")
        with TemporaryDirectory(prefix="fmfsd-") as scratch:
            yield _fitting(_prepared(asked.data, config, scratch), asked.split, config, comms)


def _prepared(source: Path, config: RunConfig, scratch: str) -> SetIndex:
    """Official files of the run's kind of set, or image folders, as they were prepared for its training."""
    name = config.data.name
    is_official = name in OFFICIAL and has_files(OFFICIAL[name], source)
    data = checked_data(name=name if is_official else FOLDER, root=scratch, size=config.data.size, shards=1)
    return prepare(data, source=source, fetch=False, report=lambda *_: None)


def _fitting(index: SetIndex, split: str, config: RunConfig, comms: Comms) -> SetIndex:
    """Raises ConfigError or DataError unless the run's network can be asked about `split` by these workers."""
    if split not in index.splits:
        raise ConfigError(f"--split {split}: {index.folder} has {', '.join(index.splits)}")
    if index.shards % comms.size:
        raise ConfigError(f"{comms.size} workers do not divide the {index.shards} shards of {index.folder}")
    known, own_folder = len(index.classes), set_folder(config.data)
    if known != config.data.num_classes:
        raise DataError([Problem(str(index.folder), f"has {known} classes, the run {config.data.num_classes}")])
    own = read_index(own_folder) if (own_folder / "index.json").exists() else index
    if (own.classes, own.shape) != (index.classes, index.shape):
        told = f"its classes or the size of its images are not those of {own_folder}, which the run learnt from"
        raise DataError([Problem(str(index.folder), told)])
    return index


def _target(asked: Questions, early: Sequence[str], index: SetIndex) -> float | None:
    if asked.exit_target is None:
        return None
    name = f"--exit-target {asked.exit_target}"
    if not early:
        raise ConfigError([Problem(name, "there is no early exit to find thresholds for: leave it out")])
    if "valid" not in index.splits:
        raise ConfigError([Problem(name, f"{index.folder} holds no samples out to find them on: see data.valid")])
    try:
        return parsed_target(asked.exit_target)
    except ValueError as error:
        raise ConfigError([Problem(name, str(error))]) from error
