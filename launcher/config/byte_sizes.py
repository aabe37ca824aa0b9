"""Bytes as people read and write them: 1 G is 2**30."""

import math
import re

from fmfsd.errors import ConfigError

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)([KMGT])")


def size(number: float) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def parse_size(option: str, text: str) -> int:
    """Bytes of `10G`, `500M` or `1.5T`. ConfigError for anything else that `option` is given."""
    match = _SIZE.fullmatch(text)
    number = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if not number:
        raise ConfigError(f"{option} {text!a}: expected a size above 0, as 500M, 10G or 1.5T")
    return number


def at_least(number: float) -> str:
    """As an option has it, rounded up: `850M`, `12.5G`."""
    return f"{math.ceil(number / 2**30 * 10) / 10:g}G" if number >= 2**30 else f"{math.ceil(number / 2**20)}M"


def at_most(number: float) -> str:
    """As an option has it, rounded down."""
    return f"{math.floor(number / 2**30 * 10) / 10:g}G" if number >= 2**30 else f"{math.floor(number / 2**20)}M"
