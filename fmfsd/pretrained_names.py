"""Pretrained weights that are not among those that timm names: in a folder, or in a repository of the Hugging Face hub.

A folder holds `config.json` and the weights, as timm's `save_for_hf` writes it and as the hub's repositories have it.
"""

import json
import re
from pathlib import Path
from typing import Any

TIMM = "timm/"
"""Begins the names of backbones that are timm's."""
FOLDER, HUB = "local-dir:", "hf-hub:"
OF_TIMM = "timm/"
"""The hub's organisation whose repositories are timm's own weights, by the names that timm has for them."""
_REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}(@[\w./-]{1,100})?")
EXPECTED = f"true, false, {FOLDER}PATH or {HUB}OWNER/NAME"


def weight_source(text: str) -> str:
    """`text`, if it names a folder or a repository: ValueError."""
    if text.startswith(FOLDER) and len(text) > len(FOLDER):
        return text
    if text.startswith(HUB) and _REPOSITORY.fullmatch(text.removeprefix(HUB)):
        return text
    raise ValueError(EXPECTED)


def read_weights_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a folder of weights; ValueError, with the reason, if there is none that timm understands."""
    path = folder / "config.json"
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("architecture"), str):
        raise ValueError(f"{path} names no `architecture`: expected a folder that timm's save_for_hf has written")
    return content


def expand_backbone(backbone: str) -> tuple[str, bool | str]:
    """From `timm/local-dir:PATH` or `timm/hf-hub:timm/NAME` to the model's name in timm and the source of its weights.

    ValueError if the architecture can't be told without a network.
    """
    source = backbone.removeprefix(TIMM)
    if source.startswith(FOLDER):
        folder = _absolute_folder(source)
        return f"{TIMM}{read_weights_config(folder)['architecture']}", f"{FOLDER}{folder}"
    repository = source.removeprefix(HUB)
    if repository.startswith(OF_TIMM):
        return f"{TIMM}{repository.removeprefix(OF_TIMM)}", True
    advice = f"set model.backbone {TIMM}ARCHITECTURE and model.pretrained {HUB}{repository}"
    raise ValueError(f"only the hub knows the architecture of {repository}: {advice}")


def absolute_source(source: bool | str) -> bool | str:
    """`source`, which is model.pretrained, as workers find it, which have another working directory."""
    is_folder = isinstance(source, str) and source.startswith(FOLDER)
    return f"{FOLDER}{_absolute_folder(str(source))}" if is_folder else source


def _absolute_folder(source: str) -> Path:
    return Path(source.removeprefix(FOLDER)).expanduser().absolute()


def names_weights(backbone: object) -> bool:
    """Whether `backbone` names weights and not an architecture."""
    return isinstance(backbone, str) and backbone.startswith((TIMM + FOLDER, TIMM + HUB))
