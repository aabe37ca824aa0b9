"""Evaluation artifacts: files that rank 0 writes to a run's `evaluation/` for reports.

They are the latest evaluation of each split, and attention maps of a few images in the course of training.
"""

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
from fmfsd.data.loading.load_shards import open_worker_shards
from fmfsd.data.loading.shards_in_memory import ShardsInMemory
from fmfsd.data.shards.index import SetIndex
from fmfsd.engine.precision import DTYPES
from fmfsd.evaluation.accumulator import Evaluation, round_grids
from fmfsd.evaluation.attention_masks import AttentionRecorder
from fmfsd.evaluation.heads import Predictor
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_atomic

IMAGES = 12
MAX_IMAGE_SIDE = 64
"""Larger images are scaled down to this side, in pixels."""


class EvalArtifacts(Protocol):
    """Writes the artifacts of an evaluation."""

    def write_evaluation(self, split: str, step: int, evaluation: Evaluation) -> None: ...

    def write_attention(self, engine: Predictor, step: int) -> None: ...


class NoEvalArtifacts:
    """Writes nothing: for every worker but rank 0."""

    def write_evaluation(self, split: str, step: int, evaluation: Evaluation) -> None:
        pass

    def write_attention(self, engine: Predictor, step: int) -> None:
        pass


class EvalArtifactWriter:
    """Writes the files. They are optional: a file that can't be written is reported by `warn`."""

    def __init__(
        self,
        run: RunDir,
        classes: Sequence[str],
        pictures: EvaluationBatches,
        split: str,
        warn: Callable[[str], None],
    ) -> None:
        """`pictures`: the images of `split` to write attention maps of, in one batch."""
        self._run, self._classes, self._pictures, self._split, self._warn = run, classes, pictures, split, warn

    def write_evaluation(self, split: str, step: int, evaluation: Evaluation) -> None:
        try:
            write_evaluation(self._run, split, step, evaluation, self._classes)
        except OSError as error:
            self._warn(f"the evaluation of {split} can't be written: {error}")

    def write_attention(self, engine: Predictor, step: int) -> None:
        """Write the fusion's masks of each image and the deepest head's prediction; nothing without a fusion."""
        recorder = AttentionRecorder()
        with recorder.recording(engine.evaluated_network):
            logits = engine.predict(self._pictures.load_batch(0)[0]).logits[-1]
        if recorder.last is None:
            return
        confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
        content = {"step": step, "names": recorder.last.names, "grids": round_grids(recorder.last.grids)}
        predictions = {"said": predicted.tolist(), "sure": [round(each, 4) for each in confidence.tolist()]}
        try:
            self._run.attention.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._run.attention_images.exists():
                _write(self._run.attention_images, _pictures_to_dict(self._pictures, self._split))
            _write(self._run.attention_file(step), {**content, **predictions})
        except OSError as error:
            self._warn(f"the attention maps can't be written: {error}")


def write_evaluation(run: RunDir, split: str, step: int, evaluation: Evaluation, classes: Sequence[str]) -> None:
    """Write `evaluation/<split>.json`."""
    path = run.evaluation(split)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    _write(path, {"split": split, "step": step, "classes": list(classes), **asdict(evaluation)})


def _write(path: Path, content: Mapping[str, object]) -> None:
    """Write JSON without spaces: there may be a million numbers."""
    write_atomic(path, json.dumps(content, separators=(",", ":")), durable=False)


def select_images(index: SetIndex, split: str, config: RunConfig, device: torch.device) -> EvaluationBatches:
    """Select one image each of up to IMAGES classes, the first in shard order: the same for any number of workers.

    Only the labels and the selected images of a shard are read, and no further shard once the selection is complete.
    """
    by_label: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    for number in range(index.shards):
        part = {"rank": number, "world_size": index.shards}
        with closing(open_worker_shards(index, split, **part, device=device, stream=True)) as shard:
            for row, label in enumerate(shard.labels.tolist()):
                if label not in by_label:
                    by_label[label] = shard.read_images(torch.tensor([row]))[0], shard.labels[row], shard.ids[row]
        if len(by_label) >= min(IMAGES, len(index.classes)):
            break
    selected = [by_label[label] for label in sorted(by_label)[:IMAGES]]
    images, labels, ids = (torch.stack(parts) for parts in zip(*selected, strict=True))
    own, dtype = ShardsInMemory(images, labels, ids, (0,), (len(selected),)), DTYPES[config.train.precision]
    return EvaluationBatches(own, config.data, batch=IMAGES, largest_part=len(selected), dtype=dtype)


def _pictures_to_dict(pictures: EvaluationBatches, split: str) -> dict[str, object]:
    images, labels, ids = pictures.load_raw_batch(0)
    pixels = [_png(image) for image in images.cpu()]
    return {"split": split, "png": pixels, "labels": labels.tolist(), "ids": ids.tolist()}


def _png(image: Tensor) -> str:
    """Encode a (3, H, W) uint8 image as a PNG in base64."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    picture.thumbnail((MAX_IMAGE_SIDE, MAX_IMAGE_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
