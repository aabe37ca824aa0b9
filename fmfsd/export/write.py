"""A run's network as one file for serving: written, tried on images of the test split, and only then given its name."""

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
from fmfsd.data.augment.crop_flip import Normalise, centre
from fmfsd.data.loading.load_shards import images_stay_in_files, own_shards
from fmfsd.data.shards.index import SetIndex
from fmfsd.distributed.collectives import SoloComms
from fmfsd.engine.precision import exact_arithmetic
from fmfsd.errors import CheckError, ConfigError, Problem
from fmfsd.evaluation.exit_thresholds import settings_of
from fmfsd.evaluation.trained_run import own_index
from fmfsd.export.classifier import Classifier
from fmfsd.export.load import EARLY_EXIT, Card, card_of, load_exported, served, trained_network
from fmfsd.model.early_exit import EarlyExit, FirstSure, early_heads
from fmfsd.model.network import Network, ensemble
from fmfsd.model.prune import ENSEMBLE, pruned
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import flush_to_disk, give_name, sync_folder

SUFFIXES = {"safetensors": ".safetensors", "torch": ".pt2", "onnx": ".onnx"}
CHECKED_IMAGES = 512
TOLERANCE = 1e-4
"""Largest difference of a logit, as a share of the largest logit, or of 1 if that is more."""
MOST_STRAYED = 0.01
"""Of the images; whoever is as sure as a threshold, to rounding, may leave or stay."""
BATCH = 64
NEEDED = ("onnx", "onnxscript", "onnxruntime")

Answer = tuple[Tensor, Tensor]
"""Logits (B, K), and of each image the number of the head that they are from (zeros where there is one head)."""
Run = Callable[[Tensor], Answer]


@dataclass(frozen=True)
class Agreement:
    """`difference` is the largest of a logit, `tolerance` what was allowed. `ties` have another label because their
    two largest logits are the same to rounding; `strayed` left at another head, being as sure as its threshold."""

    difference: float
    tolerance: float
    ties: int = 0
    strayed: int = 0

    def __str__(self) -> str:
        told = {"label": self.ties, "exit": self.strayed}
        at_rounding = "".join(f", {count} by another {what} to rounding" for what, count in told.items() if count)
        return f"logits differ by {self.difference:.1e} at most (allowed: {self.tolerance:.1e}){at_rounding}"


@dataclass(frozen=True)
class Export:
    """A file that agrees with its run on `images` images of the test split."""

    path: str
    head: str
    checkpoint: str
    images: int
    agreement: Agreement

    def __str__(self) -> str:
        return f"{self.path}: {self.head} of {self.checkpoint}; {self.images} test images: {self.agreement}"


def export(
    run: RunDir, form: str, head: str = "deepest", thresholds: str | None = None, out: Path | None = None
) -> Export:
    """Export the newest whole checkpoint of `run` to one file of format `form`, one of SUFFIXES.

    `head` is one of the network's heads, ensemble, or early-exit, which alone takes `thresholds`.

    ConfigError for what was asked, CheckError if the file exists, a package or the run's set is missing, or the file's
    answers differ from the run's: then no file is left.
    """
    path = out or run.path / "export" / f"{head}{SUFFIXES[form]}"
    _require_possible(path, form)
    exact_arithmetic(deterministic=False)
    config, network, checkpoint = trained_network(run)
    _require_head(network, head)
    exits = _exits(network, head, thresholds)
    card = card_of(run, config, head, exits, checkpoint)
    images = _images(own_index(run, config), config.data)
    expected = _answers(_of_the_run(network, card), images)
    with _published(path) as beside:
        _write(form, network, card, beside)
        reader = _READERS[form](beside)
        found = _answers(lambda batch: reader(batch.float() / 255), images)
        agreed = agreement(found, expected, path)
    return Export(str(path), head, checkpoint, len(images), agreed)


def _require_possible(path: Path, form: str) -> None:
    problems = [Problem(str(path), "exists, and nothing is overwritten: choose another --out")] if path.exists() else []
    if missing := [name for name in NEEDED if form == "onnx" and find_spec(name) is None]:
        problems.append(Problem("--format onnx", f"needs {', '.join(missing)}: pip install 'fmfsd[export]'"))
    if problems:
        raise CheckError(problems)


def _require_head(network: Network, head: str) -> None:
    known = (*network.head_names, ENSEMBLE, EARLY_EXIT)
    if head not in known:
        raise ConfigError(f"--head {head}: the network has no such head: choose {', '.join(known[:-1])} or {known[-1]}")


def _exits(network: Network, head: str, thresholds: str | None) -> tuple[float, ...]:
    if head != EARLY_EXIT:
        if thresholds is not None:
            raise ConfigError(f"--exit-thresholds {thresholds}: --head {head} has none: add --head {EARLY_EXIT}")
        return ()
    if not (early := early_heads(network)):
        raise ConfigError(f"--head {EARLY_EXIT}: this network has no early head: choose another head")
    return settings_of([thresholds or "0.9"], early)[0]


def _images(index: SetIndex, data: DataConfig) -> Tensor:
    """uint8 (n, 3, size, size), the first of the test split."""
    cpu = torch.device("cpu")
    in_files = images_stay_in_files(data, index, SoloComms(), cpu)
    with closing(own_shards(index, "test", rank=0, world_size=1, device=cpu, in_files=in_files)) as shards:
        return centre(shards.rows(torch.arange(min(CHECKED_IMAGES, len(shards.labels)))), data.size)


def _of_the_run(network: Network, card: Card) -> Run:
    """As training evaluates uint8 images, by the whole network."""
    data = card.config.data
    normalise = Normalise(*data.channel_statistics, torch.float32, torch.device("cpu"))

    def answer(images: Tensor) -> Answer:
        if card.head == EARLY_EXIT:
            return _answer(EarlyExit(network, card.thresholds)(normalise(images)))
        logits = network(normalise(images)).logits
        return _answer(ensemble(logits) if card.head == ENSEMBLE else logits[network.head_names.index(card.head)])

    return answer


@contextmanager
def _published(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` at the end of the block, unless that exists by then."""
    beside = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.touch()
        mode = beside.stat().st_mode
        yield beside
        if beside.stat().st_mode != mode:  # safetensors makes a file of its own, which nobody else can read
            beside.chmod(mode)
        with beside.open("rb") as file:
            flush_to_disk(file.fileno())
        give_name(beside, path)
    except OSError as error:
        raise CheckError([Problem(str(path), f"can't be written: {error.strerror}; choose another --out")]) from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
    sync_folder(path.parent)


def _write(form: str, network: Network, card: Card, path: Path) -> None:
    try:
        _WRITERS[form](network, card, path)
    except OSError:
        raise
    except Exception as error:  # whatever the exporter says of such a network
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckError([Problem(f"--format {form}", f"does not take this network ({why}): try another")]) from error


def _answers(run: Run, images: Tensor) -> Answer:
    """By batches; the last may be short, as a served one may be."""
    with torch.no_grad():
        logits, heads = zip(*map(run, images.split(BATCH)), strict=True)
    return torch.cat(logits), torch.cat(heads)


def agreement(found: Answer, expected: Answer, path: Path) -> Agreement:
    """Raises CheckError where logits differ by more than rounding, so that labels do, or too many exits do."""
    together = found[1] == expected[1]
    logits, wanted = found[0][together].double(), expected[0][together].double()
    tolerance = TOLERANCE * max(1.0, expected[0].abs().max().item())
    difference = (logits - wanted).abs().max().item() if len(logits) else math.inf
    ties = int((logits.argmax(dim=1) != wanted.argmax(dim=1)).sum())
    known = Agreement(difference, tolerance, ties, int((~together).sum()))
    if not difference <= tolerance or known.strayed > MOST_STRAYED * len(together):
        advice = "no file was left; try another --format, and report this"
        raise CheckError([Problem(str(path), f"does not answer as the run does on test images: {known}: {advice}")])
    return known


def _of_module(module: nn.Module) -> Run:
    def answer(images: Tensor) -> Answer:
        return _answer(module(images))

    return answer


def _answer(found: Any) -> Answer:
    logits, heads = found if isinstance(found, tuple) else (found, torch.zeros(len(found), dtype=torch.int64))
    return logits, heads


def _graph(network: Network, card: Card) -> Classifier:
    """Without branching on data."""
    chosen = pruned(FirstSure(network, card.thresholds)) if card.head == EARLY_EXIT else served(network, card.head, ())
    return card.classifier(chosen)


def _example(card: Card) -> tuple[tuple[Tensor], dict[str, Any]]:
    """Images to trace with, and that their number is any."""
    images = torch.zeros(2, 3, card.config.data.size, card.config.data.size)
    return (images,), {"images": {0: torch.export.Dim("batch")}}


def _write_safetensors(network: Network, card: Card, path: Path) -> None:
    state = served(network, card.head, card.thresholds).state_dict()
    weights = {f"network.{name}": each.contiguous() for name, each in state.items()}
    safetensors.torch.save_file(weights, path, card.properties())


def _write_torch(network: Network, card: Card, path: Path) -> None:
    example, any_number = _example(card)
    program = torch.export.export(_graph(network, card), example, dynamic_shapes=any_number)
    torch.export.save(program, path, extra_files={"fmfsd.json": json.dumps(card.properties())})


def _write_onnx(network: Network, card: Card, path: Path) -> None:
    example, any_number = _example(card)
    names = ["logits", "heads"] if card.head == EARLY_EXIT else ["logits"]
    program = torch.onnx.export(
        _graph(network, card), example, dynamo=True, dynamic_shapes=any_number, output_names=names, verbose=False
    )
    assert program is not None
    program.model.metadata_props.update(card.properties())
    program.save(path, external_data=False)


def _read_torch(path: Path) -> Run:
    return _of_module(torch.export.load(path).module())


def _read_onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def answer(images: Tensor) -> Answer:
        logits, *heads = map(torch.from_numpy, session.run(None, {"images": images.numpy()}))
        return logits, heads[0] if heads else torch.zeros(len(logits), dtype=torch.int64)

    return answer


_WRITERS: Mapping[str, Callable[[Network, Card, Path], None]] = {
    "safetensors": _write_safetensors,
    "torch": _write_torch,
    "onnx": _write_onnx,
}
_READERS: Mapping[str, Callable[[Path], Run]] = {
    "safetensors": lambda path: _of_module(load_exported(path)),
    "torch": _read_torch,
    "onnx": _read_onnx,
}
