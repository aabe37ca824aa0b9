"""Names of the metrics of a sweep: validation metrics of a run, and costs of its network."""

from collections.abc import Mapping, Sequence

from fmfsd.config import RunConfig
from fmfsd.cost.cost_report import CostEstimate, Device
from fmfsd.errors import CheckError, ConfigError
from launcher.config.launch_config import LaunchConfig
from launcher.resources.config_cost import probe_costs
from launcher.resources.site import Site

SPLIT = "valid"
"""The split by which trials are compared; the test set is evaluated only for the winners."""
COST_PREFIX = "cost/"


def list_metric_names(probe: CostEstimate) -> list[str]:
    """Return the names of all metrics that a run of this network writes."""
    heads = [head.name for head in probe.heads]
    tops = [*heads, *(["ensemble"] if len(heads) > 1 else [])]
    return [*(f"{SPLIT}/{name}_top1" for name in tops), f"{SPLIT}/loss", *cost_metrics(probe)]


def cost_metrics(probe: CostEstimate) -> dict[str, float]:
    """Return the number of parameters, and the multiply-adds per image of all heads and of the deepest alone."""
    deepest = next(head for head in probe.heads if head.name == "deepest")
    return {
        f"{COST_PREFIX}params": probe.parameters.total,
        f"{COST_PREFIX}train_macs": probe.macs,
        f"{COST_PREFIX}infer_macs": deepest.alone.macs,
    }


def probe_cost_metrics(
    config: RunConfig, config_args: Sequence[str], launch: LaunchConfig, site: Site, environment: Mapping[str, str]
) -> dict[str, float]:
    """Probe the costs of `config`, which the arguments `config_args` specify.

    Raise ConfigError if the config is invalid, and CheckError if the costs are unknown.
    """
    device: Device = "cuda" if site.placement(launch)[0] == "cuda" else "cpu"
    costs = probe_costs(config, config_args, workers=site.count_workers(launch), environment=environment, device=device)
    if costs.config_error:
        raise ConfigError(costs.config_error)
    if costs.probe is None:
        raise CheckError(f"the cost of the network is unknown: {costs.probe_error}")
    return cost_metrics(costs.probe)
