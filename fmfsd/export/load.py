"""Loading trained networks for inference, from a run or from a file written by `fmfsd export`."""

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
from fmfsd.evaluation.trained_run import disable_pretrained, load_newest_checkpoint, load_run_config, read_class_names
from fmfsd.export.classifier import Classifier
from fmfsd.model.build import build_network
from fmfsd.model.early_exit import EarlyExit
from fmfsd.model.network import Network
from fmfsd.model.prune import prune
from fmfsd.run.run_dir import RunDir

EARLY_EXIT = "early-exit"
METADATA_KEY = "fmfsd"
IMAGE_FORMAT = "float32 (B, 3, size, size), RGB in [0, 1]; normalised inside"


@dataclass(frozen=True)
class ModelCard:
    """Metadata of an exported file, stored as JSON under METADATA_KEY.

    `config`: the config to build the network from. `thresholds`: those of the early exits.
    """

    config: RunConfig
    class_names: tuple[str, ...]
    head: str
    thresholds: tuple[float, ...]
    checkpoint: str
    images: str = IMAGE_FORMAT

    def to_metadata(self) -> dict[str, str]:
        """Return metadata for a file, as text by name: the whole card, and each value that other software needs."""
        data = self.config.data
        mean, std = data.channel_statistics
        values = {"size": data.size, "mean": mean, "std": std, **asdict(self)}
        del values["config"]
        return {
            METADATA_KEY: _FORMAT.dump_json(self).decode(),
            **{name: json.dumps(value) for name, value in values.items()},
        }

    def build_classifier(self, network: nn.Module) -> Classifier:
        """Return a classifier of `network` with this card's normalisation and class names."""
        mean, std = self.config.data.channel_statistics
        return Classifier(network, self.class_names, size=self.config.data.size, mean=mean, std=std)


_FORMAT = TypeAdapter(ModelCard)


def load(source: str | PathLike[str], *, head: str | None = None) -> Classifier:
    """Load a classifier from a run's newest complete checkpoint or from a `.safetensors` file of `fmfsd export`.

    It is on the CPU and in evaluation mode; neither internet access nor the data set is needed. `head`: the head of a
    run's network, the deepest by default. ConfigError if `source` is neither, CheckError if it can't be loaded,
    ValueError for an unknown head, and for a `head` given with a file, which has only the exported one.
    """
    path = Path(source)
    if path.is_file():
        if head is not None:
            raise ValueError(f"head {head!r} of {path}: a file has only the head that was exported; leave it out")
        return load_exported(path)
    run = RunDir(path.absolute())
    config, network, checkpoint = load_trained_network(run)
    head = head or "deepest"
    return build_card(run, config, head, checkpoint=checkpoint).build_classifier(prune(network, head))


def load_trained_network(run: RunDir) -> tuple[RunConfig, Network, str]:
    """Return the run's config, its network with the evaluated weights in fp32, and the name of the checkpoint."""
    config = load_run_config(run)
    checkpoint = load_newest_checkpoint(run)
    network = build_network(disable_pretrained(config)).float()
    network.load_state_dict(checkpoint.engine.evaluated_weights)
    return config, network.eval(), checkpoint.position.folder_name


def load_exported(path: Path) -> Classifier:
    """Load a file written by `fmfsd export --format safetensors`. CheckError for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            card = _parse_card(file.metadata() or {})
        weights = safetensors.torch.load_file(path)
        classifier = card.build_classifier(
            extract_network(build_network(disable_pretrained(card.config)), card.head, card.thresholds)
        )
        classifier.load_state_dict(weights)
    except (OSError, SafetensorError, ValidationError, ValueError, KeyError, RuntimeError) as error:
        text = f"is not a file of `fmfsd export --format safetensors`, or is damaged: {error}"
        raise CheckError([Problem(str(path), text)]) from error
    return classifier


def _parse_card(metadata: Mapping[str, str]) -> ModelCard:
    if METADATA_KEY not in metadata:
        raise ValueError(f"its metadata has no {METADATA_KEY!r}")
    return _FORMAT.validate_json(metadata[METADATA_KEY])


def build_card(
    run: RunDir, config: RunConfig, head: str, thresholds: Sequence[float] = (), checkpoint: str = ""
) -> ModelCard:
    """Return the card of `head` of the run. It contains no path of this machine."""
    without_paths = {
        "data": config.data.model_copy(update={"root": None}),
        "train": config.train.model_copy(update=_NO_INIT),
    }
    return ModelCard(
        config.model_copy(update=without_paths), read_class_names(run, config), head, tuple(thresholds), checkpoint
    )


_NO_INIT = {"init_from": None}


def extract_network(network: Network, head: str, thresholds: Sequence[float]) -> nn.Module:
    """Return `network` pruned to `head`, or the whole network with early exits for EARLY_EXIT."""
    return EarlyExit(network, thresholds) if head == EARLY_EXIT else prune(network, head)
