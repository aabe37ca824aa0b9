"""What a config costs a worker, asked of a short process, as only torch can tell; the answers are kept."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fmfsd.config import TrainConfig
from fmfsd.errors import CheckError, ConfigError
from fmfsd.probe_cache import cache_folder, cached
from launcher.hosts.helpers import said_here
from launcher.sizes import size

ANSWER_S = 120.0
"""A first import of torch from a shared file system takes its time."""


@dataclass(frozen=True)
class Costs:
    """`parameters`; `macs` of an image's forward pass; `memory` by its parts and in `total`, in bytes, at least.

    `heads` by name, each with its stage and the shape of the map there.

    Not known: 0 and empty, and the reason, if there is one to tell, is `unknown`; `refused`: the config is wrong.
    """

    parameters: int = 0
    macs: int = 0
    memory: Mapping[str, int] = field(default_factory=dict)
    heads: Mapping[str, str] = field(default_factory=dict)
    unknown: str = ""
    refused: str = ""

    def __str__(self) -> str:
        if not self.memory:
            return "parameters and memory are not known"
        heads = ", ".join(f"{name} from {place}" for name, place in self.heads.items())
        return (
            f"{heads}\n{self.parameters / 1e6:.2f} M parameters, {self.macs / 1e6:.0f} M multiply-adds an image, "
            f"at least {size(self.memory['total'])} of memory a worker"
        )


def costs_of(config: TrainConfig, asked: Sequence[str], *, workers: int, environment: Mapping[str, str]) -> Costs:
    """`asked` is what `config` was made from, as words of a command line."""
    if config.data.shards % workers:
        return Costs()  # told elsewhere
    found = cached(config, workers, cache_folder(environment))
    return _read(found) if found is not None else _ask(["--workers", str(workers), "--json", *asked])


def _ask(words: Sequence[str]) -> Costs:
    code, output, errors = said_here((sys.executable, "-P", "-m", "fmfsd", "probe", *words), deadline_s=ANSWER_S)
    if code in (ConfigError.exit_code, CheckError.exit_code):
        return Costs(refused=errors.strip())
    try:
        return _read(json.loads(output))
    except (ValueError, KeyError, TypeError):
        last = (errors.strip().splitlines() or [f"exit code {code}"])[-1]
        return Costs(unknown=f"`fmfsd probe`: {last}")


def _read(content: Mapping[str, Any]) -> Costs:
    heads = ((head["name"], f"{head['tap']} {'x'.join(map(str, head['shape']))}") for head in content["heads"])
    return Costs(content["parameters"]["total"], content["macs"], content["memory"], dict(heads))
