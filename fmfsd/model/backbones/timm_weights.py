"""timm's metadata of pretrained weights: their source, and the channel statistics of their training images."""

from pathlib import Path
from typing import Any, NamedTuple

from fmfsd.pretrained_names import FOLDER, HUB, read_weights_config

HEAD_ARGUMENTS = ("num_classes", "global_pool")
"""Model arguments that only affect the classifier."""
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "model.pth")
PerChannel = tuple[float, float, float]


class ChannelStatistics(NamedTuple):
    """Mean and standard deviation that normalise each channel, as fractions of full scale."""

    mean: PerChannel
    std: PerChannel


def load_pretrained_config(timm: Any, name: str, source: bool | str) -> Any:
    """Return timm's PretrainedCfg for the weights of its model `name`, or None; `source` is model.pretrained.

    Raises ValueError if the weights of `source` are missing, or are of another architecture.
    """
    if isinstance(source, bool):
        return timm.get_pretrained_cfg(name)
    if source.startswith(FOLDER):
        folder = Path(source.removeprefix(FOLDER))
        content = read_weights_config(folder)
        _require_same(name, content["architecture"], content.get("model_args"))
        return timm.models.PretrainedCfg(**_known_fields(timm, content), file=str(_find_weights(folder)))
    config, architecture, changes = timm.models.load_model_config_from_hf(source.removeprefix(HUB))
    _require_same(name, architecture, changes)
    return timm.models.PretrainedCfg(**config)


def load_channel_statistics(timm: Any, name: str, source: bool | str) -> ChannelStatistics | None:
    """Return the statistics that the weights were trained with, or None. Raises as `load_pretrained_config`."""
    config = load_pretrained_config(timm, name, source)
    if config is None:
        return None
    return ChannelStatistics(*(tuple(map(float, values)) for values in (config.mean, config.std)))  # type: ignore[arg-type]


def _require_same(name: str, architecture: str, changes: Any) -> None:
    expected = name.split(".")[0]
    if architecture.split(".")[0] != expected:
        raise ValueError(f"its weights are for {architecture}, not for {expected}: set model.backbone")
    changes = {key: value for key, value in (changes or {}).items() if key not in HEAD_ARGUMENTS}
    if changes not in ({}, {"in_chans": 3}):
        raise ValueError(f"its weights are for a modified architecture ({changes}), which can't be built here")


def _known_fields(timm: Any, content: dict[str, Any]) -> dict[str, Any]:
    fields = {**content, **content.get("pretrained_cfg", {})}
    known = timm.models.PretrainedCfg.__dataclass_fields__
    return {key: value for key, value in fields.items() if key in known and key not in ("url", "file", "hf_hub_id")}


def _find_weights(folder: Path) -> Path:
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{folder} has no weights: expected {' or '.join(WEIGHT_FILES)}")
