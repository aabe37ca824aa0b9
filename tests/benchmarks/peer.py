"""Reference training script, as public repositories write it: torchvision's PIL pipeline in a DataLoader, an eager
loop."""

import time

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import AutoAugmentPolicy

from fmfsd.config import DataConfig, RunConfig
from fmfsd.data.loading.shards_in_memory import load_worker_shards
from fmfsd.data.shards.index import SetIndex
from fmfsd.engine.build import build_loss
from fmfsd.losses import SelfDistillLoss
from fmfsd.model.build import build_network


class PilImages(Dataset[tuple[Tensor, int]]):
    """The set as torchvision's CIFAR classes store it: an array, of which each access makes a PIL image."""

    def __init__(self, index: SetIndex, data: DataConfig) -> None:
        shards = load_worker_shards(index, "train", rank=0, world_size=1)
        self.images: NDArray[np.uint8] = shards.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = shards.labels.tolist()
        fill = float(data.crop_fill)
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=data.crop_padding, fill=data.crop_fill),
                transforms.RandomHorizontalFlip(),
                *([transforms.AutoAugment(AutoAugmentPolicy.CIFAR10, fill=[fill] * 3)] if data.autoaugment else []),
                transforms.ToTensor(),
                transforms.Normalize(data.mean, data.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[number])), self.labels[number]


def pil_loader(index: SetIndex, data: DataConfig, *, batch: int, processes: int) -> DataLoader[tuple[Tensor, int]]:
    return DataLoader(PilImages(index, data), batch, shuffle=True, num_workers=processes, drop_last=True)


class PlainLoop:
    """The network and the loss of `config`, trained step by step as a script would."""

    def __init__(self, config: RunConfig, index: SetIndex, *, processes: int) -> None:
        self.network = build_network(config)
        self.loss: SelfDistillLoss = build_loss(config)
        optim = config.optim
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay
        )
        loader = pil_loader(index, config.data, batch=config.train.batch, processes=processes)
        self.batches, self.waited_s = iter(loader), 0.0

    def step(self) -> None:
        start = time.perf_counter()
        images, labels = next(self.batches)
        self.waited_s += time.perf_counter() - start
        terms = self.loss.terms(self.network(images), labels)
        total = terms.label + terms.soft_target + self.loss.beta * terms.squares_F.sqrt().sum()
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
