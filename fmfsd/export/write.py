"""Export of a run's network to one file: written under a temporary name, checked on test images, then renamed."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from fmfsd.config import DataConfig
from fmfsd.data.augment.crop_flip_cutout import Normalise, centre_crop
from fmfsd.data.loading.load_shards import open_worker_shards, should_stream_images
from fmfsd.data.shards.index import SetIndex
from fmfsd.distributed.collectives import SingleWorkerComms
from fmfsd.engine.precision import configure_arithmetic
from fmfsd.errors import CheckError, ConfigError, Problem
from fmfsd.evaluation.exit_thresholds import parse_thresholds
from fmfsd.evaluation.trained_run import read_training_index
from fmfsd.export.classifier import Classifier
from fmfsd.export.load import EARLY_EXIT, ModelCard, build_card, extract_network, load_exported, load_trained_network
from fmfsd.model.early_exit import EarlyExit, StaticEarlyExit, early_head_names
from fmfsd.model.network import Network, average_logits
from fmfsd.model.prune import ENSEMBLE, prune_graph
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import flush_to_disk, rename_no_replace, sync_folder

SUFFIXES = {"safetensors": ".safetensors", "torch": ".pt2", "onnx": ".onnx"}
CHECKED_IMAGES = 512
TOLERANCE = 1e-4
"""Largest allowed difference of a logit, as a fraction of the largest logit, or of 1 if that is larger."""
MAX_CHANGED_EXITS = 0.01
"""Fraction of the images that may exit at another head: rounding can move a confidence across its threshold."""
BATCH = 64
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

ModelOutput = tuple[Tensor, Tensor]
"""Logits (B, K), and the index of the head that each image's logits are from (zeros if there is one head)."""
Run = Callable[[Tensor], ModelOutput]


@dataclass(frozen=True)
class OutputComparison:
    """Comparison of the exported file's outputs with the run's.

    `difference`: the largest of a logit; `tolerance`: the largest allowed. `ties`: images with another label, because
    their two largest logits are equal up to rounding. `changed_exits`: images that exit at another head, because their
    confidence equals a threshold up to rounding.
    """

    difference: float
    tolerance: float
    ties: int = 0
    changed_exits: int = 0

    def __str__(self) -> str:
        counts = {"label": self.ties, "exit": self.changed_exits}
        rounding = "".join(f", {count} with another {what} by rounding" for what, count in counts.items() if count)
        return f"logits differ by {self.difference:.1e} at most (allowed: {self.tolerance:.1e}){rounding}"


@dataclass(frozen=True)
class Export:
    """An exported file whose outputs equal its run's on `images` images of the test split."""

    path: str
    head: str
    checkpoint: str
    images: int
    agreement: OutputComparison

    def __str__(self) -> str:
        return f"{self.path}: {self.head} of {self.checkpoint}; {self.images} test images: {self.agreement}"


def export(
    run: RunDir, file_format: str, head: str = "deepest", thresholds: str | None = None, out: Path | None = None
) -> Export:
    """Export the newest complete checkpoint of `run` to one file of format `file_format`, one of SUFFIXES.

    `head` is one of the network's heads, ensemble, or early-exit; `thresholds` are for early-exit only.

    ConfigError for invalid arguments. CheckError if the file exists, a package or the run's data set is missing, or the
    file's outputs differ from the run's; then no file remains.
    """
    path = out or run.path / "export" / f"{head}{SUFFIXES[file_format]}"
    _require_possible(path, file_format)
    configure_arithmetic(deterministic=False)
    config, network, checkpoint = load_trained_network(run)
    _require_head(network, head)
    exits = _exits(network, head, thresholds)
    card = build_card(run, config, head, exits, checkpoint)
    images = _images(read_training_index(run, config), config.data)
    expected = _run_batches(_reference_model(network, card), images)
    with _rename_on_success(path) as temporary:
        _write(file_format, network, card, temporary)
        exported = _READERS[file_format](temporary)
        actual = _run_batches(lambda batch: exported(batch.float() / 255), images)
        result = compare_outputs(actual, expected, path)
    return Export(str(path), head, checkpoint, len(images), result)


def _require_possible(path: Path, file_format: str) -> None:
    problems = [Problem(str(path), "exists and is not overwritten: choose another --out")] if path.exists() else []
    if missing := [name for name in ONNX_PACKAGES if file_format == "onnx" and find_spec(name) is None]:
        problems.append(Problem("--format onnx", f"needs {', '.join(missing)}: pip install 'fmfsd[export]'"))
    if problems:
        raise CheckError(problems)


def _require_head(network: Network, head: str) -> None:
    heads = (*network.head_names, ENSEMBLE, EARLY_EXIT)
    if head not in heads:
        raise ConfigError(f"--head {head}: the network has no such head: choose {', '.join(heads[:-1])} or {heads[-1]}")


def _exits(network: Network, head: str, thresholds: str | None) -> tuple[float, ...]:
    if head != EARLY_EXIT:
        if thresholds is not None:
            raise ConfigError(
                f"--exit-thresholds {thresholds}: --head {head} has no thresholds: add --head {EARLY_EXIT}"
            )
        return ()
    if not (early := early_head_names(network)):
        raise ConfigError(f"--head {EARLY_EXIT}: this network has no early head: choose another head")
    return parse_thresholds([thresholds or "0.9"], early)[0]


def _images(index: SetIndex, data: DataConfig) -> Tensor:
    """Return the first images of the test split, uint8 (N, 3, size, size)."""
    cpu = torch.device("cpu")
    in_files = should_stream_images(data, index, SingleWorkerComms(), cpu)
    with closing(open_worker_shards(index, "test", rank=0, world_size=1, device=cpu, stream=in_files)) as shards:
        return centre_crop(shards.read_images(torch.arange(min(CHECKED_IMAGES, len(shards.labels)))), data.size)


def _reference_model(network: Network, card: ModelCard) -> Run:
    """Return a function that computes the expected outputs of uint8 images as in training, with the whole network."""
    data = card.config.data
    normalise = Normalise(*data.channel_statistics, torch.float32, torch.device("cpu"))

    def run(images: Tensor) -> ModelOutput:
        if card.head == EARLY_EXIT:
            return _to_answer(EarlyExit(network, card.thresholds)(normalise(images)))
        logits = network(normalise(images)).logits
        return _to_answer(
            average_logits(logits) if card.head == ENSEMBLE else logits[network.head_names.index(card.head)]
        )

    return run


@contextmanager
def _rename_on_success(path: Path) -> Iterator[Path]:
    """Yield a temporary path and rename it to `path` at the end of the block, unless `path` exists by then."""
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        if temporary.stat().st_mode != mode:  # safetensors replaces the file by one with mode 0600
            temporary.chmod(mode)
        with temporary.open("rb") as file:
            flush_to_disk(file.fileno())
        rename_no_replace(temporary, path)
    except OSError as error:
        raise CheckError([Problem(str(path), f"can't be written: {error.strerror}; choose another --out")]) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _write(file_format: str, network: Network, card: ModelCard, path: Path) -> None:
    try:
        _WRITERS[file_format](network, card, path)
    except OSError:
        raise
    except Exception as error:  # exporters raise many types for networks that they do not support
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckError(
            [Problem(f"--format {file_format}", f"does not support this network ({reason}): try another")]
        ) from error


def _run_batches(run: Run, images: Tensor) -> ModelOutput:
    """Run a model on the images batch by batch; the last batch may be smaller, as in serving."""
    with torch.no_grad():
        logits, heads = zip(*map(run, images.split(BATCH)), strict=True)
    return torch.cat(logits), torch.cat(heads)


def compare_outputs(actual: ModelOutput, expected: ModelOutput, path: Path) -> OutputComparison:
    """Compare outputs. CheckError if logits differ by more than TOLERANCE or too many images exit at another head."""
    same_exit = actual[1] == expected[1]
    logits, reference = actual[0][same_exit].double(), expected[0][same_exit].double()
    tolerance = TOLERANCE * max(1.0, expected[0].abs().max().item())
    difference = (logits - reference).abs().max().item() if len(logits) else math.inf
    ties = int((logits.argmax(dim=1) != reference.argmax(dim=1)).sum())
    result = OutputComparison(difference, tolerance, ties, int((~same_exit).sum()))
    if not difference <= tolerance or result.changed_exits > MAX_CHANGED_EXITS * len(same_exit):
        remedy = "the file was removed; try another --format, and report this"
        raise CheckError([Problem(str(path), f"its outputs on test images differ from the run's: {result}: {remedy}")])
    return result


def _module_runner(module: nn.Module) -> Run:
    def run(images: Tensor) -> ModelOutput:
        return _to_answer(module(images))

    return run


def _to_answer(output: Any) -> ModelOutput:
    logits, heads = output if isinstance(output, tuple) else (output, torch.zeros(len(output), dtype=torch.int64))
    return logits, heads


def _graph(network: Network, card: ModelCard) -> Classifier:
    """Return a classifier without data-dependent control flow, for tracing."""
    module = (
        prune_graph(StaticEarlyExit(network, card.thresholds))
        if card.head == EARLY_EXIT
        else extract_network(network, card.head, ())
    )
    return card.build_classifier(module)


def _example(card: ModelCard) -> tuple[tuple[Tensor], dict[str, Any]]:
    """Return example images for tracing, and their dynamic shapes (any batch size)."""
    images = torch.zeros(2, 3, card.config.data.size, card.config.data.size)
    return (images,), {"images": {0: torch.export.Dim("batch")}}


def _write_safetensors(network: Network, card: ModelCard, path: Path) -> None:
    state = extract_network(network, card.head, card.thresholds).state_dict()
    weights = {f"network.{name}": each.contiguous() for name, each in state.items()}
    safetensors.torch.save_file(weights, path, card.to_metadata())


def _write_torch(network: Network, card: ModelCard, path: Path) -> None:
    example, dynamic_shapes = _example(card)
    program = torch.export.export(_graph(network, card), example, dynamic_shapes=dynamic_shapes)
    torch.export.save(program, path, extra_files={"fmfsd.json": json.dumps(card.to_metadata())})


def _write_onnx(network: Network, card: ModelCard, path: Path) -> None:
    example, dynamic_shapes = _example(card)
    names = ["logits", "heads"] if card.head == EARLY_EXIT else ["logits"]
    program = torch.onnx.export(
        _graph(network, card), example, dynamo=True, dynamic_shapes=dynamic_shapes, output_names=names, verbose=False
    )
    assert program is not None
    program.model.metadata_props.update(card.to_metadata())
    program.save(path, external_data=False)


def _read_torch(path: Path) -> Run:
    return _module_runner(torch.export.load(path).module())


def _read_onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> ModelOutput:
        logits, *heads = map(torch.from_numpy, session.run(None, {"images": images.numpy()}))
        return logits, heads[0] if heads else torch.zeros(len(logits), dtype=torch.int64)

    return run


_WRITERS: Mapping[str, Callable[[Network, ModelCard, Path], None]] = {
    "safetensors": _write_safetensors,
    "torch": _write_torch,
    "onnx": _write_onnx,
}
_READERS: Mapping[str, Callable[[Path], Run]] = {
    "safetensors": lambda path: _module_runner(load_exported(path)),
    "torch": _read_torch,
    "onnx": _read_onnx,
}
