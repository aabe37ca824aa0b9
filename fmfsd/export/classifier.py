"""Image classifier for inference: a network with input normalisation and class names."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Prediction(NamedTuple):
    """Index of the most likely class of each image, (B,), and the probabilities of all classes, (B, K)."""

    labels: Tensor
    probabilities: Tensor


class Classifier(nn.Module):
    """`network` with input normalisation, in evaluation mode and fp32; `size`: side of the images in pixels."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, class_names: Sequence[str], *, size: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.network, self.class_names, self.size = network, tuple(class_names), size
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
        self.float().eval()

    def forward(self, images: Tensor) -> Any:
        """Map floats in [0, 1], (B, 3, size, size), to logits (B, K), or to Exits for a network with early exits."""
        return self.network((images - self.mean) / self.std)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Classify uint8 images or floats in [0, 1]: (B, 3, size, size), or one image (3, size, size).

        ValueError for images of another shape, type or range.
        """
        output = self(self._to_batch(images))
        logits = output[0] if isinstance(output, tuple) else output
        return Prediction(logits.argmax(dim=1), logits.softmax(dim=1))

    def _to_batch(self, images: Tensor) -> Tensor:
        batch = images.unsqueeze(0) if images.dim() == 3 else images
        if batch.shape[1:] != (3, self.size, self.size):
            expected = f"(B, 3, {self.size}, {self.size}) or (3, {self.size}, {self.size})"
            raise ValueError(f"images of shape {tuple(images.shape)}: expected {expected}")
        if batch.dtype == torch.uint8:
            return batch.to(self.mean) / 255
        if not batch.is_floating_point() or (batch.numel() and not 0 <= batch.min() <= batch.max() <= 1):
            raise ValueError(f"images of {batch.dtype}: expected uint8, or floats in [0, 1] that are not normalised")
        return batch.to(self.mean)
