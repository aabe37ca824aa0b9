"""Everything that can be known to be wrong before a process is started or a file is written; all of it at once."""

from collections.abc import Collection, Iterator

from fmfsd.config import TrainConfig
from fmfsd.config.contradictions import is_meant
from fmfsd.data.index import CHECKED_AT_LAUNCH_BYTES
from fmfsd.errors import CheckError, ConfigError, Problem
from fmfsd.rundir import RunDir
from launcher.check import of_access, of_data, of_deepspeed, of_hosts, of_machine, of_memory, of_run, of_trackers
from launcher.check.of_data import is_prepared as is_prepared
from launcher.check.of_data import total_steps as total_steps
from launcher.config import LaunchConfig
from launcher.costs import Costs
from launcher.site import Site
from launcher.survey import Survey

NOBODY, UNKNOWN = Survey(), Costs()


def require_sound(
    config: TrainConfig,
    launch: LaunchConfig,
    site: Site,
    run: RunDir,
    *,
    checksums_bytes: float = CHECKED_AT_LAUNCH_BYTES,
    survey: Survey = NOBODY,
    costs: Costs = UNKNOWN,
) -> None:
    """Raises ConfigError (exit code 2) or, if the config itself is right, CheckError (3) with everything that is wrong.

    The content of every shard is verified too, of a set of up to `checksums_bytes`.
    """
    require_visible(run)
    wrong = [
        *of_machine.too_few_gpus(launch, site),
        *of_machine.no_cuda_graphs(config, launch, site),
        *of_deepspeed.long_grace(launch),
        *of_run.not_usable(launch, run),
        *of_run.changed(config, launch, run),
        *of_data.not_divided(config, launch, site),
        *of_memory.refused(costs),
    ]
    missing = [
        *_around(launch, site, run, survey),
        *of_access.code_of_others(run, site),
        *(_deepspeed(survey) if of_deepspeed.is_asked_for(launch, config) else ()),
        *of_run.without_first_weights(config, run),
        *of_machine.too_little_space(run, of_machine.checkpoints_bytes(config, costs)),
        *of_memory.too_little(config, launch, site, costs),
        *of_memory.no_room_to_offload(launch, site, costs),
        *of_memory.too_little_beside_gpus(config, launch, site, costs),
        *of_data.damaged(config, checksums_bytes=checksums_bytes),
        *of_data.other_than_before(config, run),
        *of_hosts.other_data(config, survey),
        *of_hosts.other_timm(config, survey),
        *of_trackers.missing(config),
        *of_machine.not_compiled(config, launch, site),
    ]
    if wrong:
        raise ConfigError([*wrong, *missing])
    if missing:
        raise CheckError(missing)


def problems_of_any_config(launch: LaunchConfig, site: Site, run: RunDir, survey: Survey = NOBODY) -> list[Problem]:
    """What is wrong whatever is trained: said together with what is wrong with a config."""
    if problems := list(of_access.hidden(run)):
        return problems
    return [
        *of_machine.too_few_gpus(launch, site),
        *of_deepspeed.long_grace(launch),
        *of_run.not_usable(launch, run),
        *_around(launch, site, run, survey),
        *of_machine.too_little_space(run),
    ]


def problems_of_config(
    config: TrainConfig, run: RunDir, launch: LaunchConfig, site: Site | None, *, unknown: Collection[str] = ()
) -> list[Problem]:
    """What is wrong with a config's data and first weights and, where the site is known, with its shares; whatever does
    not depend on the `unknown` keys."""
    found: list[Problem] = []
    if site is not None and is_meant(["data.shards"], unknown):
        found += of_data.not_divided(config, launch, site)
    if is_meant(["train.init_from"], unknown):
        found += of_run.without_first_weights(config, run)
    if is_meant([f"data.{key}" for key in type(config.data).model_fields], unknown):
        found += of_data.damaged(config, checksums_bytes=0)
    return found


def require_visible(run: RunDir) -> None:
    """Raise CheckError if this user can't look into the run's folder: nothing else can be checked then."""
    if problems := list(of_access.hidden(run)):
        raise CheckError(problems)


def _around(launch: LaunchConfig, site: Site, run: RunDir, survey: Survey) -> Iterator[Problem]:
    yield from of_run.in_use(run)
    yield from (() if site.is_wrapped else of_machine.software())
    yield from of_machine.loopback(site)
    yield from of_machine.no_gpus(launch, site)
    yield from of_access.not_writable(run)
    yield from of_access.denied(run)
    yield from of_hosts.problems(launch, survey)


def _deepspeed(survey: Survey) -> Iterator[Problem]:
    yield from of_deepspeed.missing()
    yield from of_hosts.other_deepspeed(survey)


def warnings(
    config: TrainConfig, launch: LaunchConfig, site: Site, run: RunDir, survey: Survey = NOBODY, costs: Costs = UNKNOWN
) -> list[str]:
    """What is said and does not keep a run from being started."""
    return [
        *of_run.short_grace(launch, run),
        *of_hosts.warnings(survey),
        *(of_deepspeed.untested() if of_deepspeed.is_asked_for(launch, config) else ()),
        *of_memory.too_small(config, launch, site),
        *of_memory.unknown(costs),
        *of_data.other_statistics(config, costs),
        *of_machine.private_kernels(launch, site),
        *of_machine.left_to_eager(config, launch, site),
        *of_machine.unsupported_gpus(launch, site),
    ]
