"""The names that a search knows metrics by: what a run measures on held-out samples, and what its network costs."""

from collections.abc import Mapping, Sequence

from fmfsd.config import RunConfig
from fmfsd.cost.estimate import Device, Probe
from fmfsd.errors import CheckError, ConfigError
from launcher.config.launch_config import LaunchConfig
from launcher.resources.cost_probe import costs_of
from launcher.resources.site import Site

SPLIT = "valid"
"""The test set is not looked at while a search goes on."""
COST = "cost/"


def metric_names(probe: Probe) -> list[str]:
    """Of every metric that a run of this network has."""
    heads = [head.name for head in probe.heads]
    tops = [*heads, *(["ensemble"] if len(heads) > 1 else [])]
    return [*(f"{SPLIT}/{name}_top1" for name in tops), f"{SPLIT}/loss", *costs_in(probe)]


def costs_in(probe: Probe) -> dict[str, float]:
    """Parameters in training; multiply-adds of an image's forward pass, of all heads and of the deepest one alone."""
    deepest = next(head for head in probe.heads if head.name == "deepest")
    return {
        f"{COST}params": probe.parameters.total,
        f"{COST}train_macs": probe.macs,
        f"{COST}infer_macs": deepest.alone.macs,
    }


def costs_by_name(
    config: RunConfig, words: Sequence[str], launch: LaunchConfig, site: Site, environment: Mapping[str, str]
) -> dict[str, float]:
    """Of `config`, which `words` of a command line make. ConfigError if it is wrong, CheckError if nothing is known."""
    device: Device = "cuda" if site.placement(launch)[0] == "cuda" else "cpu"
    costs = costs_of(config, words, workers=site.workers(launch), environment=environment, device=device)
    if costs.refused:
        raise ConfigError(costs.refused)
    if costs.probe is None:
        raise CheckError(f"what the network costs is not known: {costs.unknown}")
    return costs_in(costs.probe)
