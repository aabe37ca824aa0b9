"""DistributedDataParallel finds every parameter of a backbone used, without looking for those that are not."""

import torch

from fmfsd.config import load_config
from fmfsd.distributed.collectives import Comms
from fmfsd.engine.build import build_loss
from fmfsd.engine.torch_engine import TorchEngine
from fmfsd.model.build import build_network
from tests.helpers.workers import run_workers

ONE_OF_EACH_FAMILY = ("resnet8", "vgg11", "mobilenetv3_large", "squeezenet", "timm/test_resnet")


def two_steps_each(comms: Comms) -> list[int]:
    """The sums of the weights after them."""
    return [_two_steps(comms, backbone) for backbone in ONE_OF_EACH_FAMILY]


def _two_steps(comms: Comms, backbone: str) -> int:
    wanted = load_config("cifar100-resnet18", [f"model.backbone={backbone}", "train.precision=fp32"])
    engine = TorchEngine(build_network(wanted), build_loss(wanted), wanted, comms, torch.device("cpu"))
    torch.manual_seed(comms.rank)
    for _ in range(2):
        terms = engine.terms(torch.randn(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64))
        engine.backward(terms.label + terms.soft_target + terms.squares_F.sum())
        assert all(parameter.grad is not None for parameter in engine.network.parameters())
        engine.step(1e-6)
    return int(engine.weights_checksum())


def test_two_workers_take_the_same_steps_with_every_parameter_in_use() -> None:
    one, other = run_workers(two_steps_each, 2)
    assert one == other
