"""Cost probe: parameters, multiply-adds and memory of a config. A short process computes them with torch; cached."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO

from fmfsd.config import RunConfig
from fmfsd.cost.cache import estimate_cache_dir, parse_estimate, read_cached
from fmfsd.cost.cost_report import CostEstimate, Device
from fmfsd.errors import CheckError, ConfigError
from launcher.config.byte_sizes import format_size
from launcher.transport.local_commands import run_captured
from launcher.transport.wrap_command import with_python_fallback

ANSWER_TIMEOUT_S = 120.0
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
    probe: CostEstimate | None = None
    probe_error: str = ""
    config_error: str = ""

    def render(self, stream: TextIO) -> str:
        """Render the network as a table and its totals, to print on `stream`."""
        if self.probe is None:
            return "parameters and memory: unknown"
        return (
            f"{self.probe.render_network(stream)}\n"
            f"{self.parameters / 1e6:.2f} M parameters, {self.macs / 1e6:.0f} M multiply-adds an image, "
            f"at least {format_size(self.memory['total'])} of memory a worker"
        )

    def add_to_plan(self, plan: str) -> str:
        """Return the JSON text `plan` with the key `costs`: the output of `fmfsd probe --json`, or null."""
        costs = asdict(self.probe) if self.probe is not None else None
        return json.dumps({**json.loads(plan), "costs": costs}, indent=2)


def probe_costs(
    config: RunConfig,
    config_args: Sequence[str],
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
    cached_probe = read_cached(config, workers, device, estimate_cache_dir(environment))
    if cached_probe is not None:
        return _parse(cached_probe)
    probe = (sys.executable, "-P", "-m", "fmfsd", "probe", "--workers", str(workers), "--device", device, "--json")
    return _run_probe((*wrap, *with_python_fallback((*probe, *config_args))) if wrap else (*probe, *config_args))


def _run_probe(command: Sequence[str]) -> Costs:
    code, output, errors = run_captured(command, timeout_s=ANSWER_TIMEOUT_S)
    if code in (ConfigError.exit_code, CheckError.exit_code):
        return Costs(config_error=_extract_error(errors))
    try:
        return _parse(json.loads(output))
    except ValueError:
        last = (errors.strip().splitlines() or [f"exit code {code}"])[-1]
        return Costs(probe_error=f"`fmfsd probe`: {last}")


def _extract_error(errors: str) -> str:
    """Return the error without the output of packages before it.

    The error is one line, or starts with a key of the config.
    """
    lines = errors.strip().splitlines()
    start = max((number for number, line in enumerate(lines) if line.startswith("model.backbone: ")), default=0)
    return "\n".join(lines[start:])


def _parse(content: Mapping[str, Any]) -> Costs:
    """Convert the JSON of a probe. ValueError if it has another form."""
    probe = parse_estimate(content)
    return Costs(probe.parameters.total, probe.macs, asdict(probe.memory), probe)
