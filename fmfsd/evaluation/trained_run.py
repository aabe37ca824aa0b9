"""What a run has to go by when somebody asks what it learnt: its newest checkpoint, and the set that it learnt from."""

import logging

from fmfsd.checkpoint import Saved
from fmfsd.checkpoint.store import load_checkpoint
from fmfsd.config import RunConfig, load_config
from fmfsd.config.names import TIMM
from fmfsd.data.shards.index import SetIndex, read_index, set_folder
from fmfsd.errors import CheckError, CheckpointError, NoCheckpointError, Problem, UnreadableCheckpointError
from fmfsd.model.backbones.timm import statistics_of_weights
from fmfsd.model.backbones.timm_weights import ChannelStatistics
from fmfsd.run.run_dir import RunDir
from fmfsd.run.train_position import positions_in
from fmfsd.system.atomic_files import access_remedy, read_json, sha256

log = logging.getLogger(__name__)


def newest_checkpoint(run: RunDir) -> Saved:
    """The newest one that is whole; nothing in the run changes, which may still be training.

    Raises CheckError without any, NoCheckpointError if all are damaged, UnreadableCheckpointError if this user can't
    read it.
    """
    try:
        found = positions_in(run.checkpoints)
    except PermissionError as error:
        raise UnreadableCheckpointError(f"{run.checkpoints} can't be read: {access_remedy(run.checkpoints)}") from error
    if not found:
        raise CheckError(
            [Problem(str(run.checkpoints), "no checkpoint there yet: train the run first (fmfsd-launch resume)")]
        )
    for position in found:
        try:
            return load_checkpoint(run.checkpoints / position.folder_name)
        except UnreadableCheckpointError:
            raise
        except CheckpointError as error:
            log.warning("%s; trying the one before", error)
    raise NoCheckpointError(
        f"{run.checkpoints}: no checkpoint there can be used, each one's damage is shown above: restore a copy, or "
        "train the run anew"
    )


def run_config(run: RunDir) -> RunConfig:
    """The run's config; where it leaves channel statistics to the model's weights, with those that it began with.

    ConfigError if it has not begun yet and the weights tell none.
    """
    config = load_config(str(run.config))
    data = config.data
    if "auto" not in (data.mean, data.std):
        return config
    mean, std = _first_statistics(run) or statistics_of_weights(
        config.model.backbone.removeprefix(TIMM), pretrained=config.model.pretrained
    )
    known = {"mean": mean if data.mean == "auto" else data.mean, "std": std if data.std == "auto" else data.std}
    return config.model_copy(update={"data": data.model_copy(update=known)})


def _first_statistics(run: RunDir) -> ChannelStatistics | None:
    try:
        found = read_json(run.classes)
        return ChannelStatistics(tuple(found["mean"]), tuple(found["std"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def describe_data(index: SetIndex, config: RunConfig) -> dict[str, object]:
    """What a trained network needs to know of the data that it learnt from, so that it needs no data set to be used."""
    mean, std = config.data.channel_statistics
    return {"classes": index.classes, "mean": mean, "std": std}


def own_index(run: RunDir, config: RunConfig) -> SetIndex:
    """Of the set that the run was trained on. CheckError if it is another."""
    index = read_index(set_folder(config.data))
    trained_on = read_json(run.manifest).get("data") if run.manifest.exists() else None
    if trained_on not in (None, sha256(index.folder / "index.json")):
        raise CheckError([Problem(str(index.folder), f"is not the set that {run.path} was trained on")])
    return index


def class_names(run: RunDir, config: RunConfig) -> tuple[str, ...]:
    """Return the names of the classes, by label. A run of an earlier version has them only in its set: CheckError."""
    try:
        return tuple(map(str, read_json(run.classes)["classes"]))
    except (OSError, ValueError, KeyError, TypeError):
        return own_index(run, config).classes


def without_download(config: RunConfig) -> RunConfig:
    """Return `config` for a network whose weights will be loaded: pretrained ones would only be replaced."""
    return config.model_copy(update={"model": config.model.model_copy(update={"pretrained": False})})
