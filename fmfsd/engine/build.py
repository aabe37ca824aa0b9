"""Builds the engine and the loss of a config. DeepSpeed is imported only if the config names it."""

import os

import torch

from fmfsd.config import RunConfig
from fmfsd.distributed.collectives import Comms
from fmfsd.engine.interface import Engine
from fmfsd.engine.torch_engine import TorchEngine
from fmfsd.losses import SelfDistillLoss
from fmfsd.model.network import Network


def build_engine(
    network: Network, loss: SelfDistillLoss, config: RunConfig, comms: Comms, device: torch.device
) -> Engine:
    if config.engine.name == "torch":
        return TorchEngine(network, loss, config, comms, device)
    os.environ["DS_ACCELERATOR"] = device.type  # deepspeed reads it when imported, and would else guess
    from fmfsd.engine.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(network, loss, config, comms, device)


def build_loss(config: RunConfig) -> SelfDistillLoss:
    """Return the loss with the settings of `config`."""
    distill = config.distill
    return SelfDistillLoss(
        alpha=distill.alpha,
        beta=distill.beta,
        temperature=distill.temperature,
        label_weight=distill.label_weight,
        label_smoothing=config.train.label_smoothing,
        teacher=distill.teacher,
        t_squared=distill.t_squared,
        feature=distill.feature,
    )
