"""The checksum by which workers notice that their weights are no longer the same."""

import torch

from fmfsd.engine.base_engine import checksum


def test_it_depends_on_each_value_and_on_its_place() -> None:
    torch.manual_seed(1)
    weight, bias = torch.randn(4, 3, 3, 3), torch.randn(4)
    known = checksum(weight, bias)
    assert checksum(weight.clone(), bias.clone()) == known
    assert checksum(weight.flip(0), bias) != known
    assert checksum(weight.transpose(2, 3), bias) != known
    assert checksum(weight, bias[[1, 0, 2, 3]]) != known
    assert checksum(bias, weight) != known
    assert checksum(weight, torch.nextafter(bias, bias + 1)) != known
    assert checksum(weight, -bias) != known


def test_it_does_not_depend_on_the_layout_in_memory() -> None:
    weight = torch.randn(4, 3, 3, 3)
    assert checksum(weight.to(memory_format=torch.channels_last)) == checksum(weight)


def test_every_precision_has_one() -> None:
    values = torch.arange(1, 7, dtype=torch.float64).view(2, 3)
    for kind in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64):
        found = checksum(values.to(kind))
        assert (found.dtype, found.shape) == (torch.int64, ())
        assert found != checksum(values.to(kind).flip(1))
