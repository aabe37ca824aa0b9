"""Formats and parses sizes in bytes: 1 G is 2**30."""

import math
import re

from fmfsd.errors import ConfigError

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)([KMGT])")


def format_size(number: float) -> str:
    """Format a number of bytes for messages: `12.5 GiB`, `850 MiB`."""
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def parse_size(option: str, text: str) -> int:
    """Return the bytes of `10G`, `500M` or `1.5T`. ConfigError names `option` if `text` is anything else."""
    match = _SIZE.fullmatch(text)
    number = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if not number:
        raise ConfigError(f"{option} {text!a}: expected a size above 0, as 500M, 10G or 1.5T")
    return number


def format_size_rounded_up(number: float) -> str:
    """Format a number of bytes as an option's value, rounded up: `850M`, `12.5G`."""
    return f"{math.ceil(number / 2**30 * 10) / 10:g}G" if number >= 2**30 else f"{math.ceil(number / 2**20)}M"


def format_size_rounded_down(number: float) -> str:
    """Format a number of bytes as an option's value, rounded down."""
    return f"{math.floor(number / 2**30 * 10) / 10:g}G" if number >= 2**30 else f"{math.floor(number / 2**20)}M"
