"""Writes a run directory's config, manifest and plan before a launch starts workers: of a new run or a resumed one."""

from collections.abc import Callable, Mapping
from typing import Any

from fmfsd.config import RunConfig, dump_config, find_changes, load_config
from fmfsd.errors import CheckError
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json, write_atomic, write_json
from launcher.check.launch_checks import total_steps
from launcher.config.launch_config import LaunchConfig, launch_to_dict
from launcher.plan.launch_plan import LaunchPlan
from launcher.run_dir.manifest import find_software_changes, new_manifest


def is_finished(config: RunConfig, run: RunDir) -> bool:
    """Return whether the run has finished, with at least as many steps as `config` requests."""
    try:
        outcome = read_json(run.outcome)
    except (OSError, ValueError):
        return False
    return outcome.get("state") == "finished" and outcome["step"] >= (total_steps(config) or 0)


def write_run_dir(
    config: RunConfig,
    run: RunDir,
    plan: LaunchPlan,
    launch: LaunchConfig,
    entry: Mapping[str, Any],
    *,
    report: Callable[[str], None],
) -> None:
    """Write the run directory; the caller holds the run's lock. `entry`: this launch's in the manifest. CheckError."""
    try:
        if run.config.exists():
            _update(config, run, launch, entry, report)
        else:
            write_json(run.manifest, new_manifest(config, entry))
            write_json(run.launch, launch_to_dict(launch))
            write_atomic(run.config, dump_config(config))
        write_atomic(run.plan, plan.to_json())
    except OSError as error:
        raise CheckError(f"the run directory can't be written: {error}") from error


def _update(
    config: RunConfig,
    run: RunDir,
    launch: LaunchConfig,
    entry: Mapping[str, Any],
    report: Callable[[str], None],
) -> None:
    """Resume the existing run, which another launch may have created between the check and the lock."""
    changed = find_changes(load_config(str(run.config)), config)
    if launch.resume == "never" or not all(change.is_allowed for change in changed):
        raise CheckError(f"{run.path}: another launch has just started a run there: choose another --run-dir")
    entry, content = {**entry, "changes": list(map(str, changed))}, read_json(run.manifest)
    for text in entry["changes"]:
        report(f"changed: {text}")
    for text in find_software_changes(content["launches"][-1], entry):
        report(f"warning: changed since the last launch, so results may differ in the last bits: {text}")
    write_json(run.manifest, {**content, "launches": [*content["launches"], entry]})
    write_json(run.launch, launch_to_dict(launch))
    write_atomic(run.config, dump_config(config))
