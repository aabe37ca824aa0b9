"""Every parameter of every backbone is used, so DistributedDataParallel needs no `find_unused_parameters`."""

import torch

from fmfsd.config import load_config
from fmfsd.distributed.collectives import Comms
from fmfsd.engine.build import build_loss
from fmfsd.engine.torch_engine import TorchEngine
from fmfsd.model.build import build_network
from tests.helpers.workers import run_workers

ONE_OF_EACH_FAMILY = ("resnet8", "vgg11", "mobilenetv3_large", "squeezenet", "timm/test_resnet")


def train_two_steps_each(comms: Comms) -> list[int]:
    """Train two steps per backbone; return the checksums of the weights."""
    return [_train_two_steps(comms, backbone) for backbone in ONE_OF_EACH_FAMILY]


def _train_two_steps(comms: Comms, backbone: str) -> int:
    config = load_config("cifar100-resnet18", [f"model.backbone={backbone}", "train.precision=fp32"])
    engine = TorchEngine(build_network(config), build_loss(config), config, comms, torch.device("cpu"))
    torch.manual_seed(comms.rank)
    for _ in range(2):
        terms = engine.compute_terms(torch.randn(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64))
        engine.backward(terms.label + terms.soft_target + terms.squares_F.sum())
        assert all(parameter.grad is not None for parameter in engine.network.parameters())
        engine.step(1e-6)
    return int(engine.weights_checksum())


def test_two_workers_take_the_same_steps_with_every_parameter_in_use() -> None:
    rank_0, rank_1 = run_workers(train_two_steps_each, 2)
    assert rank_0 == rank_1
