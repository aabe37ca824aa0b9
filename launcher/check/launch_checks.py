"""All checks of a launch before a process is started or a file is written; they report all problems together."""

from collections.abc import Collection, Iterator

from fmfsd.config import RunConfig
from fmfsd.config.consistency import is_meant
from fmfsd.data.shards.index import CHECKED_AT_LAUNCH_BYTES
from fmfsd.errors import CheckError, ConfigError, Problem
from fmfsd.run.run_dir import RunDir
from launcher.check import (
    access_checks,
    data_checks,
    deepspeed_checks,
    host_checks,
    machine_checks,
    memory_checks,
    run_checks,
    tracker_checks,
)
from launcher.check.data_checks import is_prepared as is_prepared
from launcher.check.data_checks import total_steps as total_steps
from launcher.config.launch_config import LaunchConfig
from launcher.resources.cost_probe import Costs
from launcher.resources.host_probe import Survey
from launcher.resources.site import Site

NOBODY, UNKNOWN = Survey(), Costs()


def require_sound(
    config: RunConfig,
    launch: LaunchConfig,
    site: Site,
    run: RunDir,
    *,
    checksums_bytes: float = CHECKED_AT_LAUNCH_BYTES,
    survey: Survey = NOBODY,
    costs: Costs = UNKNOWN,
) -> None:
    """Raise one error with all problems: ConfigError (exit code 2), or CheckError (3) if the config is valid.

    The contents of all shards are verified too, for a set of up to `checksums_bytes`.
    """
    require_visible(run)
    config_problems = [
        *machine_checks.too_few_gpus(launch, site),
        *machine_checks.no_cuda_graphs(config, launch, site),
        *deepspeed_checks.long_grace(launch),
        *run_checks.not_usable(launch, run),
        *run_checks.changed(config, launch, run),
        *data_checks.not_divided(config, launch, site),
        *memory_checks.refused(costs),
    ]
    check_problems = [
        *_check_environment(launch, site, run, survey),
        *access_checks.code_of_others(run, site),
        *(_check_deepspeed(survey) if deepspeed_checks.is_asked_for(launch, config) else ()),
        *run_checks.without_first_weights(config, run),
        *machine_checks.too_little_space(run, machine_checks.checkpoints_bytes(config, costs)),
        *memory_checks.too_little(config, launch, site, costs),
        *memory_checks.no_room_to_offload(launch, site, costs),
        *memory_checks.too_little_beside_gpus(config, launch, site, costs),
        *data_checks.damaged(config, checksums_bytes=checksums_bytes),
        *data_checks.other_than_before(config, run),
        *host_checks.other_data(config, survey),
        *host_checks.other_timm(config, survey),
        *tracker_checks.missing(config),
        *machine_checks.not_compiled(config, launch, site),
    ]
    if config_problems:
        raise ConfigError([*config_problems, *check_problems])
    if check_problems:
        raise CheckError(check_problems)


def problems_of_any_config(launch: LaunchConfig, site: Site, run: RunDir, survey: Survey = NOBODY) -> list[Problem]:
    """Return the problems that do not depend on a config, to report them together with those of the config."""
    if problems := list(access_checks.hidden(run)):
        return problems
    return [
        *machine_checks.too_few_gpus(launch, site),
        *deepspeed_checks.long_grace(launch),
        *run_checks.not_usable(launch, run),
        *_check_environment(launch, site, run, survey),
        *machine_checks.too_little_space(run),
    ]


def problems_of_config(
    config: RunConfig, run: RunDir, launch: LaunchConfig, site: Site | None, *, unknown: Collection[str] = ()
) -> list[Problem]:
    """Return the problems of a config's data and initial weights and, if the site is known, of its shares.

    Checks that depend on the `unknown` keys are skipped.
    """
    problems: list[Problem] = []
    if site is not None and is_meant(["data.shards"], unknown):
        problems += data_checks.not_divided(config, launch, site)
    if is_meant(["train.init_from"], unknown):
        problems += run_checks.without_first_weights(config, run)
    if is_meant([f"data.{key}" for key in type(config.data).model_fields], unknown):
        problems += data_checks.damaged(config, checksums_bytes=0)
    return problems


def require_visible(run: RunDir) -> None:
    """Raise CheckError if this user can't enter the run directory, because nothing else can be checked then."""
    if problems := list(access_checks.hidden(run)):
        raise CheckError(problems)


def _check_environment(launch: LaunchConfig, site: Site, run: RunDir, host_probe: Survey) -> Iterator[Problem]:
    yield from run_checks.in_use(run)
    yield from (() if site.is_wrapped else machine_checks.software())
    yield from machine_checks.loopback(site)
    yield from machine_checks.no_gpus(launch, site)
    yield from access_checks.not_writable(run)
    yield from access_checks.denied(run)
    yield from host_checks.problems(launch, host_probe)


def _check_deepspeed(host_probe: Survey) -> Iterator[Problem]:
    yield from deepspeed_checks.missing()
    yield from host_checks.other_deepspeed(host_probe)


def warnings(
    config: RunConfig, launch: LaunchConfig, site: Site, run: RunDir, survey: Survey = NOBODY, costs: Costs = UNKNOWN
) -> list[str]:
    """Return the warnings, which do not prevent the start of a run."""
    return [
        *run_checks.short_grace(launch, run),
        *host_checks.warnings(survey),
        *(deepspeed_checks.untested() if deepspeed_checks.is_asked_for(launch, config) else ()),
        *memory_checks.too_small(config, launch, site),
        *memory_checks.unknown(costs),
        *data_checks.other_statistics(config, costs),
        *machine_checks.private_kernels(launch, site),
        *machine_checks.left_to_eager(config, launch, site),
        *machine_checks.unsupported_gpus(launch, site),
    ]
