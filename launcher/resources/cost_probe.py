"""What a config costs a worker, asked of a short process, as only torch can tell; the answers are kept."""

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
"""A first import of torch from a shared file system takes its time."""


@dataclass(frozen=True)
class Costs:
    """`parameters`; `macs` of an image's forward pass; `memory` by its parts and in `total`, in bytes, at least.

    `probe` is all that was found out.

    Not known: 0 and empty, and the reason, if there is one to tell, is `unknown`; `refused`: the config is wrong.
    """

    parameters: int = 0
    macs: int = 0
    memory: Mapping[str, int] = field(default_factory=dict)
    probe: Probe | None = None
    unknown: str = ""
    refused: str = ""

    def text(self, stream: TextIO) -> str:
        """For people, to be printed to `stream`: the network as a table, and the sums."""
        if self.probe is None:
            return "parameters and memory are not known"
        return (
            f"{self.probe.network_text(stream)}\n"
            f"{self.parameters / 1e6:.2f} M parameters, {self.macs / 1e6:.0f} M multiply-adds an image, "
            f"at least {size(self.memory['total'])} of memory a worker"
        )

    def beside(self, plan: str) -> str:
        """`plan`, which is JSON, with `costs`: what `fmfsd probe --json` says, or null."""
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
    """`asked` is what `config` was made from, as words of a command line. `wrap`: a command with torch inside."""
    if config.data.shards % workers:
        return Costs()  # told elsewhere
    found = cached(config, workers, device, cache_folder(environment))
    if found is not None:
        return _read(found)
    probe = (sys.executable, "-P", "-m", "fmfsd", "probe", "--workers", str(workers), "--device", device, "--json")
    return _ask((*wrap, *python_inside((*probe, *asked))) if wrap else (*probe, *asked))


def _ask(command: Sequence[str]) -> Costs:
    code, output, errors = said_here(command, deadline_s=ANSWER_S)
    if code in (ConfigError.exit_code, CheckError.exit_code):
        return Costs(refused=_own_words(errors))
    try:
        return _read(json.loads(output))
    except ValueError:
        last = (errors.strip().splitlines() or [f"exit code {code}"])[-1]
        return Costs(unknown=f"`fmfsd probe`: {last}")


def _own_words(errors: str) -> str:
    """Without what packages say before the error itself, which is in one line or begins with a key of the config."""
    lines = errors.strip().splitlines()
    start = max((number for number, line in enumerate(lines) if line.startswith("model.backbone: ")), default=0)
    return "\n".join(lines[start:])


def _read(content: Mapping[str, Any]) -> Costs:
    """ValueError if it is none of a probe's."""
    found = probe_of(content)
    return Costs(found.parameters.total, found.macs, asdict(found.memory), found)
