"""Evaluation of a run's newest checkpoint on a split: each head, the ensemble, and early exits."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from fmfsd.config import RunConfig
from fmfsd.config.load import load_data_config
from fmfsd.config.names import FOLDER
from fmfsd.data.cifar.official_files import OFFICIAL, has_files
from fmfsd.data.loading.load_shards import should_stream_images
from fmfsd.data.prepare import prepare
from fmfsd.data.shards.index import SetIndex, prepared_set_folder, read_index
from fmfsd.distributed.collectives import Comms, SingleWorkerComms
from fmfsd.engine.build import build_loss
from fmfsd.engine.interface import EngineState
from fmfsd.engine.precision import PrecisionFormat, configure_arithmetic
from fmfsd.engine.torch_engine import TorchEngine
from fmfsd.errors import CheckError, ConfigError, DataError, Problem
from fmfsd.evaluation.early_exits import ExitTable, measure_costs, measure_settings
from fmfsd.evaluation.exit_thresholds import (
    Thresholds,
    collect_confidences,
    find_cheapest_thresholds,
    parse_target,
    parse_thresholds,
    threshold_curve,
)
from fmfsd.evaluation.heads import Predictor, evaluate, evaluation_batches
from fmfsd.evaluation.results import EarlyExitResults, RunEvaluation
from fmfsd.evaluation.trained_run import (
    disable_pretrained,
    load_newest_checkpoint,
    load_run_config,
    read_training_index,
)
from fmfsd.model.build import build_network
from fmfsd.model.early_exit import early_head_names
from fmfsd.model.network import Network, Outputs
from fmfsd.run.run_dir import RunDir
from fmfsd.terminal import ProgressCallback

DEFAULT_THRESHOLDS = ("0.9",)


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of an evaluation of a checkpoint.

    `data`: a folder with another data set than the run's; `split`: the split of it. `thresholds`: settings of early
    exits, each one threshold per early head or one for all, in (0, 1], separated by commas. `exit_target`: choose
    thresholds for this target on the validation split. `mirrored`: also average the logits of each image and its mirror
    image.
    """

    split: str = "test"
    thresholds: Sequence[str] = ()
    exit_target: str | None = None
    early_exits: bool = True
    mirrored: bool = False
    data: Path | None = None


def evaluate_run(
    run: RunDir,
    options: EvaluateOptions,
    device: torch.device,
    comms: Comms | None = None,
    report: ProgressCallback = lambda *_: None,
) -> RunEvaluation:
    """Evaluate the newest complete checkpoint of `run`, the samples divided over the workers of `comms`. Write nothing.

    With the same number of workers and the same kind of device the metrics equal the run's own to the last digit.
    Raises ConfigError for an invalid split, thresholds or target, CheckError without a checkpoint, NoCheckpointError if
    none is complete, DataError for data of another kind.
    """
    config, comms = load_run_config(run), comms or SingleWorkerComms()
    configure_arithmetic(deterministic=config.train.deterministic)
    with (
        _index(run, config, options, comms) as index,
        closing(_Evaluator(run, config, index, options, device, comms, report)) as evaluator,
    ):
        return evaluator.evaluate()


class _Evaluator:
    """A checkpoint loaded into an engine, with the data and options of its evaluation."""

    def __init__(
        self,
        run: RunDir,
        config: RunConfig,
        index: SetIndex,
        options: EvaluateOptions,
        device: torch.device,
        comms: Comms,
        report: ProgressCallback,
    ) -> None:
        """Load the checkpoint. Raises ConfigError for invalid options before anything slow starts."""
        self.config, self.index, self.options, self.comms = config, index, options, comms
        self._device, self._report = device, report
        self.network: Network = build_network(disable_pretrained(config))
        self.early = early_head_names(self.network) if options.early_exits else ()
        self.settings = parse_thresholds(options.thresholds or (DEFAULT_THRESHOLDS if self.early else ()), self.early)
        self.target = _target(options, self.early, index)
        self.checkpoint = load_newest_checkpoint(run)
        self.engine = TorchEngine(self.network, build_loss(config), config, SingleWorkerComms(), device)
        self.engine.load(EngineState(self.checkpoint.engine.evaluated_weights, {}))
        self._in_files = should_stream_images(config.data, index, comms, device)
        self.batches = evaluation_batches(config, index, options.split, comms, device, self._in_files)

    def close(self) -> None:
        self.batches.close()

    def evaluate(self) -> RunEvaluation:
        options, position = self.options, self.checkpoint.position
        samples = self.index.num_samples(options.split)
        evaluation = evaluate(self.engine, self.batches, self.comms, report=self._progress("images", samples))
        assert evaluation is not None, "evaluate() got no stop callback"
        mirrored = evaluate(_Mirrored(self.engine), self.batches, self.comms) if options.mirrored else None
        exits = self._exits() if self.early else None
        return RunEvaluation(
            options.split,
            str(options.data or self.index.folder),
            position.folder_name,
            position.step,
            samples,
            evaluation.metrics,
            mirrored.metrics if mirrored is not None else None,
            exits,
            evaluation=evaluation,
            classes=self.index.classes,
        )

    def _exits(self) -> EarlyExitResults:
        alone, if_all_leave = measure_costs(self.network, self.batches, self._form, self.comms)
        costs, seconds = zip(*map(astuple, if_all_leave.values()), strict=True)
        chosen = self._choose_thresholds(costs) if self.target is not None else None
        settings = [*self.settings, *([chosen] if chosen is not None else [])]
        progress = self._progress("settings of early exits", len(settings))
        measured = measure_settings(self.network, self.batches, self._form, settings, self.comms, report=progress)
        table = ExitTable(alone, if_all_leave, measured)
        confidences = collect_confidences(self.engine, self.batches, len(self.early), self.comms)
        return EarlyExitResults(table, threshold_curve(confidences, costs, seconds), self.options.exit_target, chosen)

    def _choose_thresholds(self, costs: Sequence[float]) -> Thresholds:
        """Choose thresholds on the validation split: on the split they are chosen on, accuracy is biased upwards."""
        assert self.target is not None
        held_out = evaluation_batches(self.config, self.index, "valid", self.comms, self._device, self._in_files)
        with closing(held_out):
            confidences = collect_confidences(self.engine, held_out, len(self.early), self.comms)
        thresholds = find_cheapest_thresholds(confidences, costs, confidences.deepest_top1 + self.target)
        if thresholds is None:
            best = max(point.top1 for point in threshold_curve(confidences, costs, costs)) - confidences.deepest_top1
            reached = f"one threshold for all heads reaches {100 * best:+.2f} points on the validation split"
            name = f"--exit-target {self.options.exit_target}"
            raise CheckError([Problem(name, f"no thresholds reach it: {reached}")])
        return thresholds

    @property
    def _form(self) -> PrecisionFormat:
        return PrecisionFormat.from_config(self.config.train)

    def _progress(self, unit: str, total: int) -> Callable[[float], None]:
        return lambda done: self._report(unit, round(done * total), total)


class _Mirrored:
    """A predictor that averages the logits of an image and its mirror image."""

    def __init__(self, engine: Predictor) -> None:
        self._engine, self.head_names = engine, engine.head_names

    @property
    def evaluated_network(self) -> nn.Module:
        return self._engine.evaluated_network

    def predict(self, images: Tensor) -> Outputs:
        plain, mirrored = self._engine.predict(images), self._engine.predict(images.flip(3))
        logits = [(one + other) / 2 for one, other in zip(plain.logits, mirrored.logits, strict=True)]
        return plain._replace(logits=logits)


@contextmanager
def _index(run: RunDir, config: RunConfig, options: EvaluateOptions, comms: Comms) -> Iterator[SetIndex]:
    """Open the index of the data set to evaluate; prepare the set in a temporary folder if `data` is not prepared."""
    training_index = read_training_index(run, config) if options.data is None else None
    if training_index is not None:
        yield _require_fit(training_index, options.split, config, comms)
    elif options.data is not None and (options.data / "index.json").exists():
        yield _require_fit(read_index(options.data), options.split, config, comms)
    elif options.data is not None:
        if comms.size > 1:
            raise ConfigError(
                f"--data {options.data}: not a prepared data set, which several workers need: run fmfsd data prepare"
            )
        with TemporaryDirectory(prefix="fmfsd-") as scratch:
            yield _require_fit(_prepare(options.data, config, scratch), options.split, config, comms)


def _prepare(source: Path, config: RunConfig, scratch: str) -> SetIndex:
    """Prepare the official files of the run's data set, or image folders, as for its training."""
    name = config.data.name
    is_official = name in OFFICIAL and has_files(OFFICIAL[name], source)
    data = load_data_config(name=name if is_official else FOLDER, root=scratch, size=config.data.size, shards=1)
    return prepare(data, source=source, fetch=False, report=lambda *_: None)


def _require_fit(index: SetIndex, split: str, config: RunConfig, comms: Comms) -> SetIndex:
    """Return `index`; raise ConfigError or DataError if its `split` does not fit this run and these workers."""
    if split not in index.splits:
        raise ConfigError(f"--split {split}: {index.folder} has no such split: choose one of {', '.join(index.splits)}")
    if index.shards % comms.size:
        raise ConfigError(f"{comms.size} workers do not divide the {index.shards} shards of {index.folder}")
    num_classes, train_folder = len(index.classes), prepared_set_folder(config.data)
    if num_classes != config.data.num_classes:
        raise DataError([Problem(str(index.folder), f"has {num_classes} classes, the run {config.data.num_classes}")])
    trained_on = read_index(train_folder) if (train_folder / "index.json").exists() else index
    if (trained_on.classes, trained_on.shape) != (index.classes, index.shape):
        message = f"its classes or image size differ from those of the run's training set, {train_folder}"
        raise DataError([Problem(str(index.folder), message)])
    return index


def _target(options: EvaluateOptions, early: Sequence[str], index: SetIndex) -> float | None:
    if options.exit_target is None:
        return None
    name = f"--exit-target {options.exit_target}"
    if not early:
        raise ConfigError([Problem(name, "there is no early exit to choose thresholds for: leave it out")])
    if "valid" not in index.splits:
        raise ConfigError(
            [Problem(name, f"{index.folder} has no validation split to choose thresholds on: set data.valid")]
        )
    try:
        return parse_target(options.exit_target)
    except ValueError as error:
        raise ConfigError([Problem(name, str(error))]) from error
