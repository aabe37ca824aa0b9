"""The checksum by which workers detect that their weights differ."""

import torch

from fmfsd.engine.base_engine import checksum


def test_the_checksum_depends_on_each_value_and_its_position() -> None:
    torch.manual_seed(1)
    weight, bias = torch.randn(4, 3, 3, 3), torch.randn(4)
    expected = checksum(weight, bias)
    assert checksum(weight.clone(), bias.clone()) == expected
    assert checksum(weight.flip(0), bias) != expected
    assert checksum(weight.transpose(2, 3), bias) != expected
    assert checksum(weight, bias[[1, 0, 2, 3]]) != expected
    assert checksum(bias, weight) != expected
    assert checksum(weight, torch.nextafter(bias, bias + 1)) != expected
    assert checksum(weight, -bias) != expected


def test_the_checksum_does_not_depend_on_the_memory_format() -> None:
    weight = torch.randn(4, 3, 3, 3)
    assert checksum(weight.to(memory_format=torch.channels_last)) == checksum(weight)


def test_every_precision_has_a_checksum() -> None:
    values = torch.arange(1, 7, dtype=torch.float64).view(2, 3)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64):
        result = checksum(values.to(dtype))
        assert (result.dtype, result.shape) == (torch.int64, ())
        assert result != checksum(values.to(dtype).flip(1))
