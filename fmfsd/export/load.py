"""Trained networks ready to be used: from a run, or from a file that `fmfsd export` has made of one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path

import safetensors.torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import nn

from fmfsd.config import RunConfig
from fmfsd.errors import CheckError, Problem
from fmfsd.evaluation.trained_run import class_names, newest_checkpoint, run_config, without_download
from fmfsd.export.classifier import Classifier
from fmfsd.model.build import build_network
from fmfsd.model.early_exit import EarlyExit
from fmfsd.model.network import Network
from fmfsd.model.prune import prune
from fmfsd.run.run_dir import RunDir

EARLY_EXIT = "early-exit"
KEY = "fmfsd"
IMAGES = "float32 (B, 3, size, size), RGB in [0, 1]; normalised inside"


@dataclass(frozen=True)
class Card:
    """What an exported file says of itself, as JSON under KEY. `thresholds` are those of early exits; `config` has
    what the network is built from."""

    config: RunConfig
    class_names: tuple[str, ...]
    head: str
    thresholds: tuple[float, ...]
    checkpoint: str
    images: str = IMAGES

    def properties(self) -> dict[str, str]:
        """As text by name, for a file's metadata: of the config also by itself what others need to know."""
        data = self.config.data
        mean, std = data.channel_statistics
        plain = {"size": data.size, "mean": mean, "std": std, **asdict(self)}
        del plain["config"]
        return {KEY: _FORMAT.dump_json(self).decode(), **{name: json.dumps(value) for name, value in plain.items()}}

    def classifier(self, network: nn.Module) -> Classifier:
        mean, std = self.config.data.channel_statistics
        return Classifier(network, self.class_names, size=self.config.data.size, mean=mean, std=std)


_FORMAT = TypeAdapter(Card)


def load(source: str | PathLike[str], *, head: str | None = None) -> Classifier:
    """A run's newest whole checkpoint, `head` of it (deepest), or what a `.safetensors` file of `fmfsd export` holds.

    On the CPU, in evaluation; without network or data set. ConfigError if there is neither, CheckError if it can't be
    used; ValueError for a head that is not there, and for one asked of a file, which has its own.
    """
    path = Path(source)
    if path.is_file():
        if head is not None:
            raise ValueError(f"head {head!r} of {path}: a file has the one that it was exported with; leave it out")
        return load_exported(path)
    run = RunDir(path.absolute())
    config, network, checkpoint = trained_network(run)
    asked = head or "deepest"
    return card_of(run, config, asked, checkpoint=checkpoint).classifier(prune(network, asked))


def trained_network(run: RunDir) -> tuple[RunConfig, Network, str]:
    """The run's config, its network with the weights that are evaluated, in fp32, and whose checkpoint they are."""
    config = run_config(run)
    saved = newest_checkpoint(run)
    network = build_network(without_download(config)).float()
    network.load_state_dict(saved.engine.evaluated)
    return config, network.eval(), saved.position.folder_name


def load_exported(path: Path) -> Classifier:
    """What `fmfsd export --format safetensors` has written. CheckError if it is something else."""
    try:
        with safe_open(path, framework="pt") as file:
            card = _card(file.metadata() or {})
        weights = safetensors.torch.load_file(path)
        classifier = card.classifier(served(build_network(without_download(card.config)), card.head, card.thresholds))
        classifier.load_state_dict(weights)
    except (OSError, SafetensorError, ValidationError, ValueError, KeyError, RuntimeError) as error:
        text = f"is no file of `fmfsd export --format safetensors`, or damaged: {error}"
        raise CheckError([Problem(str(path), text)]) from error
    return classifier


def _card(metadata: Mapping[str, str]) -> Card:
    if KEY not in metadata:
        raise ValueError(f"its metadata has no {KEY!r}")
    return _FORMAT.validate_json(metadata[KEY])


def card_of(run: RunDir, config: RunConfig, head: str, thresholds: Sequence[float] = (), checkpoint: str = "") -> Card:
    """What there is to say of `head` of the run; no path of this machine is in it."""
    bare = {"data": config.data.model_copy(update={"root": None}), "train": config.train.model_copy(update=_NOWHERE)}
    return Card(config.model_copy(update=bare), class_names(run, config), head, tuple(thresholds), checkpoint)


_NOWHERE = {"init_from": None}


def served(network: Network, head: str, thresholds: Sequence[float]) -> nn.Module:
    """What is kept of `network` for `head`, which may be EARLY_EXIT: the whole, whose images leave early."""
    return EarlyExit(network, thresholds) if head == EARLY_EXIT else prune(network, head)
