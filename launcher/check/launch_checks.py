"""All checks of a launch before a process is started or a file is written; they report all problems together."""

from collections.abc import Collection, Iterator

from fmfsd.config import RunConfig
from fmfsd.config.consistency import can_check
from fmfsd.data.shards.index import CHECKED_AT_LAUNCH_BYTES
from fmfsd.errors import CheckError, ConfigError, Problem
from fmfsd.run.run_dir import RunDir
from launcher.check import (
    access_checks,
    data_checks,
    deepspeed_checks,
    host_checks,
    machine_checks,
    memory_and_batch_checks,
    run_checks,
    software_checks,
    tracker_checks,
)
from launcher.check.data_checks import is_prepared as is_prepared
from launcher.check.data_checks import total_steps as total_steps
from launcher.config.launch_config import LaunchConfig
from launcher.resources.config_cost import Costs
from launcher.resources.host_probe import HostProbe
from launcher.resources.site import Site

NOT_PROBED, UNKNOWN_COSTS = HostProbe(), Costs()


def require_valid_launch(
    config: RunConfig,
    launch: LaunchConfig,
    site: Site,
    run: RunDir,
    *,
    checksums_bytes: float = CHECKED_AT_LAUNCH_BYTES,
    host_probe: HostProbe = NOT_PROBED,
    costs: Costs = UNKNOWN_COSTS,
) -> None:
    """Raise one error with all problems: ConfigError (exit code 2), or CheckError (3) if the config is valid.

    The contents of all shards are verified too, for a set of up to `checksums_bytes`.
    """
    require_visible(run)
    config_problems = [
        *machine_checks.check_enough_gpus(launch, site),
        *machine_checks.check_cuda_graphs(config, launch, site),
        *deepspeed_checks.check_grace(launch),
        *run_checks.check_run_dir(launch, run),
        *run_checks.check_config_changes(config, launch, run),
        *data_checks.check_even_shares(config, launch, site),
        *memory_and_batch_checks.check_probe(costs),
    ]
    check_problems = [
        *_check_environment(launch, site, run, host_probe),
        *access_checks.check_code_is_private(run, site),
        *(_check_deepspeed(host_probe) if deepspeed_checks.is_requested(launch, config) else ()),
        *run_checks.check_init_weights(config, run),
        *machine_checks.check_disk_space(run, machine_checks.total_checkpoint_bytes(config, costs)),
        *memory_and_batch_checks.check_device_memory(config, launch, site, costs),
        *memory_and_batch_checks.check_offload_memory(launch, site, costs),
        *memory_and_batch_checks.check_host_memory(config, launch, site, costs),
        *data_checks.check_dataset(config, checksums_bytes=checksums_bytes),
        *data_checks.check_same_dataset(config, run),
        *host_checks.check_dataset_on_hosts(config, host_probe),
        *host_checks.check_timm_versions(config, host_probe),
        *tracker_checks.check_trackers(config),
        *machine_checks.check_compilers(config, launch, site),
    ]
    if config_problems:
        raise ConfigError([*config_problems, *check_problems])
    if check_problems:
        raise CheckError(check_problems)


def find_problems_without_config(
    launch: LaunchConfig, site: Site, run: RunDir, host_probe: HostProbe = NOT_PROBED
) -> list[Problem]:
    """Return the problems that do not depend on a config, to report them together with those of the config."""
    if problems := list(access_checks.check_visible(run)):
        return problems
    return [
        *machine_checks.check_enough_gpus(launch, site),
        *deepspeed_checks.check_grace(launch),
        *run_checks.check_run_dir(launch, run),
        *_check_environment(launch, site, run, host_probe),
        *machine_checks.check_disk_space(run),
    ]


def find_config_problems(
    config: RunConfig, run: RunDir, launch: LaunchConfig, site: Site | None, *, unknown: Collection[str] = ()
) -> list[Problem]:
    """Return the problems of a config's data and initial weights and, if the site is known, of its shares.

    Checks that depend on the `unknown` keys are skipped.
    """
    problems: list[Problem] = []
    if site is not None and can_check(["data.shards"], unknown):
        problems += data_checks.check_even_shares(config, launch, site)
    if can_check(["train.init_from"], unknown):
        problems += run_checks.check_init_weights(config, run)
    if can_check([f"data.{key}" for key in type(config.data).model_fields], unknown):
        problems += data_checks.check_dataset(config, checksums_bytes=0)
    return problems


def require_visible(run: RunDir) -> None:
    """Raise CheckError if this user can't enter the run directory, because nothing else can be checked then."""
    if problems := list(access_checks.check_visible(run)):
        raise CheckError(problems)


def _check_environment(launch: LaunchConfig, site: Site, run: RunDir, host_probe: HostProbe) -> Iterator[Problem]:
    yield from run_checks.check_not_in_use(run)
    yield from (() if site.is_wrapped else software_checks.check_software())
    yield from machine_checks.check_loopback(site)
    yield from machine_checks.check_gpus_usable(launch, site)
    yield from access_checks.check_writable(run)
    yield from access_checks.check_access(run)
    yield from host_checks.check_hosts(launch, host_probe)


def _check_deepspeed(host_probe: HostProbe) -> Iterator[Problem]:
    yield from deepspeed_checks.check_installed()
    yield from host_checks.check_deepspeed_versions(host_probe)


def find_warnings(
    config: RunConfig,
    launch: LaunchConfig,
    site: Site,
    run: RunDir,
    host_probe: HostProbe = NOT_PROBED,
    costs: Costs = UNKNOWN_COSTS,
) -> list[str]:
    """Return the warnings, which do not prevent the start of a run."""
    return [
        *run_checks.warn_short_grace(launch, run),
        *host_checks.warn_about_hosts(host_probe),
        *(deepspeed_checks.warn_untested() if deepspeed_checks.is_requested(launch, config) else ()),
        *memory_and_batch_checks.warn_small_batch(config, launch, site),
        *memory_and_batch_checks.warn_unknown_costs(costs),
        *data_checks.warn_other_statistics(config, costs),
        *machine_checks.warn_no_cpu_kernels(launch, site),
        *machine_checks.warn_not_compiled(config, launch, site),
        *machine_checks.warn_unsupported_gpus(launch, site),
    ]
