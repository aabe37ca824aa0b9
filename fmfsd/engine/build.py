"""Makes the engine that a config names; DeepSpeed is imported only for its own."""

import os

import torch

from fmfsd.comms import Comms
from fmfsd.config import TrainConfig
from fmfsd.distill import SelfDistillLoss
from fmfsd.engine.base import Engine
from fmfsd.engine.torch_engine import TorchEngine
from fmfsd.model.network import Network


def build_engine(
    network: Network, loss: SelfDistillLoss, config: TrainConfig, comms: Comms, device: torch.device
) -> Engine:
    if config.engine.name == "torch":
        return TorchEngine(network, loss, config, comms, device)
    os.environ["DS_ACCELERATOR"] = device.type  # read by its import, which would otherwise look for one itself
    from fmfsd.engine.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(network, loss, config, comms, device)
