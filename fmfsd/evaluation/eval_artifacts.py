"""What rank 0 leaves in a run's `evaluation/` for whoever draws it: each split as it was last, and what the fusion
attended to in a few images as the training went on."""

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from fmfsd.config import RunConfig
from fmfsd.data.loading.batches import EvaluationBatches
from fmfsd.data.loading.load_shards import own_shards
from fmfsd.data.loading.shards_in_memory import OwnShards
from fmfsd.data.shards.index import SetIndex
from fmfsd.engine.precision import DTYPES
from fmfsd.evaluation.accumulator import Evaluation, rounded
from fmfsd.evaluation.attention_masks import Watcher
from fmfsd.evaluation.heads import Predictor
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_whole

IMAGES = 12
SHOWN_SIDE = 64
"""Images of more pixels are shown smaller."""


class Findings(Protocol):
    def keep(self, split: str, step: int, found: Evaluation) -> None: ...

    def look(self, engine: Predictor, step: int) -> None: ...


class NoFindings:
    """Of every worker but rank 0."""

    def keep(self, split: str, step: int, found: Evaluation) -> None:
        pass

    def look(self, engine: Predictor, step: int) -> None:
        pass


class WrittenFindings:
    """Files that a run can do without: what can't be written is told by `warn`."""

    def __init__(
        self,
        run: RunDir,
        classes: Sequence[str],
        pictures: EvaluationBatches,
        split: str,
        warn: Callable[[str], None],
    ) -> None:
        """`pictures`: the images of `split` that are looked at, in one batch."""
        self._run, self._classes, self._pictures, self._split, self._warn = run, classes, pictures, split, warn

    def keep(self, split: str, step: int, found: Evaluation) -> None:
        try:
            keep_evaluation(self._run, split, step, found, self._classes)
        except OSError as error:
            self._warn(f"the evaluation of {split} can't be kept: {error}")

    def look(self, engine: Predictor, step: int) -> None:
        """The fusion's masks of each image, and what the deepest head says of it; nothing without a fusion."""
        watcher = Watcher()
        with watcher.watching(engine.evaluated):
            logits = engine.predict(self._pictures.at(0)[0]).logits[-1]
        if watcher.last is None:
            return
        sure, said = logits.double().softmax(dim=1).max(dim=1)
        content = {"step": step, "names": watcher.last.names, "grids": rounded(watcher.last.grids)}
        told = {"said": said.tolist(), "sure": [round(each, 4) for each in sure.tolist()]}
        try:
            self._run.attention.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._run.pictures.exists():
                _write(self._run.pictures, _shown(self._pictures, self._split))
            _write(self._run.attention_at(step), {**content, **told})
        except OSError as error:
            self._warn(f"what the fusion attends to can't be kept: {error}")


def keep_evaluation(run: RunDir, split: str, step: int, found: Evaluation, classes: Sequence[str]) -> None:
    """As `evaluation/<split>.json`."""
    path = run.evaluation(split)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    _write(path, {"split": split, "step": step, "classes": list(classes), **asdict(found)})


def _write(path: Path, content: Mapping[str, object]) -> None:
    """Without spaces: there may be a million numbers."""
    write_whole(path, json.dumps(content, separators=(",", ":")), durable=False)


def pictures_of(index: SetIndex, split: str, config: RunConfig, device: torch.device) -> EvaluationBatches:
    """Images of as many classes, the first of each in the first shards; the same for any number of workers.

    Of each shard only labels and these images are read, and no shard after all classes are found.
    """
    found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    for number in range(index.shards):
        part = {"rank": number, "world_size": index.shards}
        with closing(own_shards(index, split, **part, device=device, in_files=True)) as shard:
            for row, label in enumerate(shard.labels.tolist()):
                if label not in found:
                    found[label] = shard.rows(torch.tensor([row]))[0], shard.labels[row], shard.ids[row]
        if len(found) >= min(IMAGES, len(index.classes)):
            break
    chosen = [found[label] for label in sorted(found)[:IMAGES]]
    images, labels, ids = (torch.stack(parts) for parts in zip(*chosen, strict=True))
    own, dtype = OwnShards(images, labels, ids, (0,), (len(chosen),)), DTYPES[config.train.precision]
    return EvaluationBatches(own, config.data, batch=IMAGES, largest_part=len(chosen), dtype=dtype)


def _shown(pictures: EvaluationBatches, split: str) -> dict[str, object]:
    images, labels, ids = pictures.stored(0)
    pixels = [_png(image) for image in images.cpu()]
    return {"split": split, "png": pixels, "labels": labels.tolist(), "ids": ids.tolist()}


def _png(image: Tensor) -> str:
    """Of (3, H, W) uint8, in base64."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
