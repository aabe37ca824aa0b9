"""Cost probe: parameters, multiply-adds and memory of a config. A short process computes them with torch; cached."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO

from fmfsd.config import RunConfig
from fmfsd.cost.cache import cache_folder, cached, probe_of
from fmfsd.cost.estimate import Device, Probe
from fmfsd.errors import CheckError, ConfigError
from launcher.config.byte_sizes import size
from launcher.transport.local_commands import said_here
from launcher.transport.wrap import python_inside

ANSWER_S = 120.0
"""Timeout of the probe process. A first import of torch from a shared file system is slow."""


@dataclass(frozen=True)
class Costs:
    """Cost of a config per worker. `parameters`; `macs`: multiply-adds of one image's forward pass.

    `memory`: lower bounds in bytes, by part and in `total`. `probe`: the complete result.

    If nothing is known, numbers are 0 and mappings empty. `probe_error`: why, if there is a reason to report.
    `config_error`: why the config is invalid.
    """

    parameters: int = 0
    macs: int = 0
    memory: Mapping[str, int] = field(default_factory=dict)
    probe: Probe | None = None
    unknown: str = ""
    refused: str = ""

    def text(self, stream: TextIO) -> str:
        """Render the network as a table and its totals, to print on `stream`."""
        if self.probe is None:
            return "parameters and memory: unknown"
        return (
            f"{self.probe.network_text(stream)}\n"
            f"{self.parameters / 1e6:.2f} M parameters, {self.macs / 1e6:.0f} M multiply-adds an image, "
            f"at least {size(self.memory['total'])} of memory a worker"
        )

    def beside(self, plan: str) -> str:
        """Return the JSON text `plan` with the key `costs`: the output of `fmfsd probe --json`, or null."""
        costs = asdict(self.probe) if self.probe is not None else None
        return json.dumps({**json.loads(plan), "costs": costs}, indent=2)


def costs_of(
    config: RunConfig,
    asked: Sequence[str],
    *,
    workers: int,
    environment: Mapping[str, str],
    device: Device = "cpu",
    wrap: tuple[str, ...] = (),
) -> Costs:
    """Return the costs of `config`, from the cache or from a probe process.

    `config_args`: the command line arguments that `config` was made from. `wrap`: a command that provides torch.
    """
    if config.data.shards % workers:
        return Costs()  # another check reports this
    cached_probe = cached(config, workers, device, cache_folder(environment))
    if cached_probe is not None:
        return _parse(cached_probe)
    probe = (sys.executable, "-P", "-m", "fmfsd", "probe", "--workers", str(workers), "--device", device, "--json")
    return _ask((*wrap, *python_inside((*probe, *asked))) if wrap else (*probe, *asked))


def _ask(command: Sequence[str]) -> Costs:
    code, output, errors = said_here(command, deadline_s=ANSWER_S)
    if code in (ConfigError.exit_code, CheckError.exit_code):
        return Costs(refused=_extract_error(errors))
    try:
        return _parse(json.loads(output))
    except ValueError:
        last = (errors.strip().splitlines() or [f"exit code {code}"])[-1]
        return Costs(unknown=f"`fmfsd probe`: {last}")


def _extract_error(errors: str) -> str:
    """Return the error without the output of packages before it.

    The error is one line, or starts with a key of the config.
    """
    lines = errors.strip().splitlines()
    start = max((number for number, line in enumerate(lines) if line.startswith("model.backbone: ")), default=0)
    return "\n".join(lines[start:])


def _parse(content: Mapping[str, Any]) -> Costs:
    """Convert the JSON of a probe. ValueError if it has another form."""
    probe = probe_of(content)
    return Costs(probe.parameters.total, probe.macs, asdict(probe.memory), probe)
