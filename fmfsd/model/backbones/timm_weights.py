"""What timm knows of a model's pretrained weights: where they come from, and the channel statistics of their images."""

from pathlib import Path
from typing import Any, NamedTuple

from fmfsd.pretrained_names import FOLDER, HUB, read_weights_config

OF_THE_HEAD = ("num_classes", "global_pool")
"""Arguments of a model that change nothing below its classifier."""
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "model.pth")
PerChannel = tuple[float, float, float]


class ChannelStatistics(NamedTuple):
    """What was subtracted from each channel and by what it was divided, as fractions of full scale."""

    mean: PerChannel
    std: PerChannel


def pretrained_config(timm: Any, name: str, source: bool | str) -> Any:
    """timm's description of the weights of its model `name`; `source` is model.pretrained. None if timm has none.

    ValueError if the weights of `source` are of another architecture, or are not there.
    """
    if isinstance(source, bool):
        return timm.get_pretrained_cfg(name)
    if source.startswith(FOLDER):
        folder = Path(source.removeprefix(FOLDER))
        content = read_weights_config(folder)
        _require_same(name, content["architecture"], content.get("model_args"))
        return timm.models.PretrainedCfg(**_known_fields(timm, content), file=str(_weights_in(folder)))
    found, architecture, changes = timm.models.load_model_config_from_hf(source.removeprefix(HUB))
    _require_same(name, architecture, changes)
    return timm.models.PretrainedCfg(**found)


def channel_statistics(timm: Any, name: str, source: bool | str) -> ChannelStatistics | None:
    """Those that the pretrained weights were trained with. Raises as `pretrained_config` does."""
    found = pretrained_config(timm, name, source)
    if found is None:
        return None
    return ChannelStatistics(*(tuple(map(float, values)) for values in (found.mean, found.std)))  # type: ignore[arg-type]


def _require_same(name: str, architecture: str, changes: Any) -> None:
    asked = name.split(".")[0]
    if architecture.split(".")[0] != asked:
        raise ValueError(f"its weights are those of {architecture}, not of {asked}: set model.backbone")
    changes = {key: value for key, value in (changes or {}).items() if key not in OF_THE_HEAD}
    if changes not in ({}, {"in_chans": 3}):
        raise ValueError(f"its weights are those of a changed model ({changes}), which can't be built here")


def _known_fields(timm: Any, content: dict[str, Any]) -> dict[str, Any]:
    given = {**content, **content.get("pretrained_cfg", {})}
    known = timm.models.PretrainedCfg.__dataclass_fields__
    return {key: value for key, value in given.items() if key in known and key not in ("url", "file", "hf_hub_id")}


def _weights_in(folder: Path) -> Path:
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{folder} has no weights: expected {' or '.join(WEIGHT_FILES)}")
