"""Names of pretrained weights outside timm's own list: a local folder, or a repository of the Hugging Face hub.

A folder contains `config.json` and the weights, in the layout of timm's `save_for_hf` and of the hub's repositories.
"""

import json
import re
from pathlib import Path
from typing import Any

TIMM = "timm/"
"""Prefix of timm's backbones."""
FOLDER, HUB = "local-dir:", "hf-hub:"
TIMM_ORGANIZATION = "timm/"
"""Organization on the hub whose repositories have timm's own weights, under timm's names."""
_REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}(@[\w./-]{1,100})?")
EXPECTED_SOURCE = f"true, false, {FOLDER}PATH or {HUB}OWNER/NAME"


def validate_weight_source(text: str) -> str:
    """Return `text` if it names a folder or a repository; else raise ValueError."""
    if text.startswith(FOLDER) and len(text) > len(FOLDER):
        return text
    if text.startswith(HUB) and _REPOSITORY.fullmatch(text.removeprefix(HUB)):
        return text
    raise ValueError(EXPECTED_SOURCE)


def read_weights_config(folder: Path) -> dict[str, Any]:
    """Return the `config.json` of a folder of weights. ValueError with the reason if timm can't use it."""
    path = folder / "config.json"
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("architecture"), str):
        raise ValueError(f"{path} has no `architecture`: expected a folder written by timm's save_for_hf")
    return content


def expand_backbone(backbone: str) -> tuple[str, bool | str]:
    """Return the timm model name and the weight source for `timm/local-dir:PATH` or `timm/hf-hub:timm/NAME`.

    Raises ValueError if the architecture is unknown without network access.
    """
    source = backbone.removeprefix(TIMM)
    if source.startswith(FOLDER):
        folder = _absolute_folder(source)
        return f"{TIMM}{read_weights_config(folder)['architecture']}", f"{FOLDER}{folder}"
    repository = source.removeprefix(HUB)
    if repository.startswith(TIMM_ORGANIZATION):
        return f"{TIMM}{repository.removeprefix(TIMM_ORGANIZATION)}", True
    advice = f"set model.backbone {TIMM}ARCHITECTURE and model.pretrained {HUB}{repository}"
    raise ValueError(f"the architecture of {repository} is known to the hub only: {advice}")


def to_absolute_source(source: bool | str) -> bool | str:
    """Return `source` (model.pretrained) with an absolute path, because workers have another working directory."""
    is_folder = isinstance(source, str) and source.startswith(FOLDER)
    return f"{FOLDER}{_absolute_folder(str(source))}" if is_folder else source


def _absolute_folder(source: str) -> Path:
    return Path(source.removeprefix(FOLDER)).expanduser().absolute()


def is_weights_name(backbone: object) -> bool:
    """Return whether `backbone` names weights and not an architecture."""
    return isinstance(backbone, str) and backbone.startswith((TIMM + FOLDER, TIMM + HUB))
