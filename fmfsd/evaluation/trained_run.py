"""Reading a trained run: its newest checkpoint, config, class names and training set."""

import logging

from fmfsd.checkpoint import Checkpoint
from fmfsd.checkpoint.store import load_checkpoint
from fmfsd.config import RunConfig, load_config
from fmfsd.config.names import TIMM
from fmfsd.data.shards.index import SetIndex, prepared_set_folder, read_index
from fmfsd.errors import CheckError, CheckpointError, NoCheckpointError, Problem, UnreadableCheckpointError
from fmfsd.model.backbones.timm import load_weight_statistics
from fmfsd.model.backbones.timm_weights import ChannelStatistics
from fmfsd.run.run_dir import RunDir
from fmfsd.run.train_position import list_positions
from fmfsd.system.atomic_files import access_remedy, read_json, sha256

log = logging.getLogger(__name__)


def load_newest_checkpoint(run: RunDir) -> Checkpoint:
    """Load the newest complete checkpoint. Nothing in the run changes; it may still be training.

    Raises CheckError if there is none, NoCheckpointError if all are damaged, UnreadableCheckpointError if this user
    can't read it.
    """
    try:
        positions = list_positions(run.checkpoints)
    except PermissionError as error:
        raise UnreadableCheckpointError(f"{run.checkpoints} can't be read: {access_remedy(run.checkpoints)}") from error
    if not positions:
        raise CheckError(
            [Problem(str(run.checkpoints), "has no checkpoint yet: train the run first (fmfsd-launch resume)")]
        )
    for position in positions:
        try:
            return load_checkpoint(run.checkpoints / position.folder_name)
        except UnreadableCheckpointError:
            raise
        except CheckpointError as error:
            log.warning("%s; trying the previous checkpoint", error)
    raise NoCheckpointError(
        f"{run.checkpoints}: every checkpoint is damaged, see the warnings above: restore a copy, or "
        "train the run again"
    )


def load_run_config(run: RunDir) -> RunConfig:
    """Load the run's config, with data.mean and data.std `auto` replaced by the values that the run started with.

    For a run that has not started they come from the pretrained weights; ConfigError if these have none.
    """
    config = load_config(str(run.config))
    data = config.data
    if "auto" not in (data.mean, data.std):
        return config
    mean, std = _first_statistics(run) or load_weight_statistics(
        config.model.backbone.removeprefix(TIMM), pretrained=config.model.pretrained
    )
    statistics = {"mean": mean if data.mean == "auto" else data.mean, "std": std if data.std == "auto" else data.std}
    return config.model_copy(update={"data": data.model_copy(update=statistics)})


def _first_statistics(run: RunDir) -> ChannelStatistics | None:
    try:
        content = read_json(run.classes)
        return ChannelStatistics(tuple(content["mean"]), tuple(content["std"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def describe_data(index: SetIndex, config: RunConfig) -> dict[str, object]:
    """Return what inference needs to know of the training set: class names and channel statistics."""
    mean, std = config.data.channel_statistics
    return {"classes": index.classes, "mean": mean, "std": std}


def read_training_index(run: RunDir, config: RunConfig) -> SetIndex:
    """Return the index of the run's training set. CheckError if the set in its place is another one."""
    index = read_index(prepared_set_folder(config.data))
    trained_on = read_json(run.manifest).get("data") if run.manifest.exists() else None
    if trained_on not in (None, sha256(index.folder / "index.json")):
        raise CheckError([Problem(str(index.folder), f"is not the data set that {run.path} was trained on")])
    return index


def read_class_names(run: RunDir, config: RunConfig) -> tuple[str, ...]:
    """Return the class names by label. CheckError if an old run has them only in its data set, and that has changed."""
    try:
        return tuple(map(str, read_json(run.classes)["classes"]))
    except (OSError, ValueError, KeyError, TypeError):
        return read_training_index(run, config).classes


def disable_pretrained(config: RunConfig) -> RunConfig:
    """Return `config` without pretrained weights, for a network whose weights are loaded from a checkpoint."""
    return config.model_copy(update={"model": config.model.model_copy(update={"pretrained": False})})
