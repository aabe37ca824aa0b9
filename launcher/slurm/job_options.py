"""Slurm options of a batch job as values: sbatch's and srun's options, the job's environment and its command."""

import math
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fmfsd.errors import ConfigError, Problem
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json
from launcher.config.array_seeds import ArraySeeds
from launcher.config.environment import LAUNCHER_VARIABLES as WORKER_VARIABLES
from launcher.config.environment import forwarded_variables
from launcher.config.launch_config import LaunchConfig, SlurmOptions

LEAD_S = 180
"""Seconds from the warning signal to the end of the job's time; Slurm may send it up to 60 s earlier."""
LEAD_MARGIN_S = 60
"""Added to twice the measured time of a step and a save."""
JOB_VARIABLES = ("CUDA_VISIBLE_DEVICES", "TMPDIR")
"""Variables that Slurm or the job sets itself."""
SAME_NAME_OPTIONS = ("partition", "account", "qos", "time", "mem")
"""Options with the same name in sbatch."""
RESERVED_SBATCH = (
    *("array", "chdir", "error", "export", "export-file", "get-user-env", "help", "hold", "input", "nodes", "ntasks"),
    *("ntasks-per-node", "ntasks-per-gpu", "ntasks-per-core", "ntasks-per-socket", "open-mode", "output", "parsable"),
    *("requeue", "no-requeue", "signal", "test-only", "usage", "version", "wait", "wrap"),
)
"""Options of sbatch that the launcher sets, or that would break it."""
RESERVED_SRUN = (
    *("cpus-per-task", "error", "exclude", "export", "help", "het-group", "input", "jobid", "kill-on-bad-exit"),
    *("label", "multi-prog", "nodelist", "nodes", "ntasks", "ntasks-per-node", "output", "overlap", "pty", "quiet"),
    *("relative", "test-only", "unbuffered", "usage", "version", "wait"),
)
"""Options of srun that the launcher sets, or that would break its connection to the agents."""
UNSUPPORTED_SBATCH = {
    "container": "would run the coordinator in the container, where Slurm's commands are missing: use --wrap",
    "container-id": "would run the coordinator in the container, where Slurm's commands are missing: use --wrap",
    "gpus": "requests GPUs for the whole job, not per node: use --gpus, or --sbatch-arg gpus-per-node=TYPE:N",
}
"""Options of sbatch with which a launch can't work, with the reason."""
_OPTION = re.compile(r"[a-z][a-z0-9]+(?:-[a-z0-9]+)*")
_TIME = re.compile(r"(?:(?P<days>[0-9]{1,5})-)?(?P<rest>[0-9]{1,7}(?::[0-9]{1,3}){0,2})")
_EXCLUDED_SBATCH_VARIABLES = ("SBATCH_WAIT", "SBATCH_ARRAY_INX", "SBATCH_TEST_ONLY")
"""Variables of sbatch that would make it wait, or submit something else."""
_MODULE_PREFIXES = (
    *("BASH_ENV", "MODULEPATH", "MODULEPATH_ROOT", "MODULERCFILE", "MODULESHOME", "MODULE_VERSION"),
    *("BASH_FUNC_", "LMOD_", "MODULES_"),
)
"""Prefixes of the variables that env.sh needs to call `module`. The list of loaded modules is left out, as not every
variable that these modules set is passed on."""
_SLURM_VARIABLES = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS")


def parse_slurm_options(
    options: Mapping[str, str | None],
    *,
    more: Sequence[str],
    srun: Sequence[str] = (),
    cpus_per_gpu: int | None,
    wait: bool,
) -> SlurmOptions:
    """Parse the command line's Slurm options: `options` by field name, `more` (for sbatch) and `srun` as KEY=VALUE.

    Raises ConfigError with all problems.
    """
    pairs = [(f"--{name}", value) for name, value in options.items() if value is not None]
    extra, steps = _split_pairs(more), _split_pairs(srun)
    problems = [Problem(name, _check_value(value)) for name, value in pairs if _check_value(value)]
    problems += [Problem(f"--sbatch-arg {key!a}", text) for key, value in extra if (text := _check_sbatch(key, value))]
    problems += [Problem(f"--srun-arg {key!a}", text) for key, value in steps if (text := _check_srun(key, value))]
    time = options.get("time")
    if time is not None and not problems and parse_time_limit(time) is None:
        problems.append(
            Problem(f"--time {time!a}", "expected Slurm's form: minutes, hours:minutes:seconds or days-hours")
        )
    if options.get("array") is not None:
        try:
            ArraySeeds.parse(str(options["array"]))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return SlurmOptions(**options, cpus_per_gpu=cpus_per_gpu, extra=extra, srun=steps, wait=wait)


def _split_pairs(arguments: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Split each KEY=VALUE; KEY alone has the value ""."""
    return tuple((key, value) for key, _, value in (text.partition("=") for text in arguments))


def _check_srun(key: str, value: str) -> str:
    """Return why this option can't be passed to srun; "" if it can."""
    if not _OPTION.fullmatch(key):
        return "expected the long name of an option of srun, as in container-image=IMAGE"
    if any(own.startswith(key) for own in RESERVED_SRUN):  # srun accepts abbreviated names
        return "is set by the launcher itself: leave it out"
    return _check_value(value) if value else ""


def _check_value(value: str) -> str:
    """Return why this value can't be passed to Slurm; "" if it can."""
    if not value or value.startswith("-") or not value.isprintable():
        return f"{value!a} is not a value: expected printable characters, not starting with a dash"
    return ""


def _check_sbatch(key: str, value: str) -> str:
    """Return why this option can't be passed to sbatch; "" if it can."""
    if not _OPTION.fullmatch(key):
        return "expected the long name of an option of sbatch, as in constraint=a100, or exclusive"
    if key in UNSUPPORTED_SBATCH:
        return UNSUPPORTED_SBATCH[key]
    if (key, value) == ("requeue", "expedite"):  # since Slurm 25.11
        return ""
    if any(own.startswith(key) for own in RESERVED_SBATCH):  # sbatch accepts abbreviated names
        return "is set by the launcher itself: leave it out"
    return _check_value(value) if value else ""


def parse_time_limit(time: str) -> float | None:
    """Parse Slurm's `--time` into seconds; None if the format is invalid."""
    if time.lower() in ("infinite", "unlimited", "0"):
        return math.inf
    match = _TIME.fullmatch(time)
    if match is None:
        return None
    numbers = list(map(int, match["rest"].split(":")))
    by_hours: Sequence[int] = (3600, 60, 1)
    units = by_hours if match["days"] is not None or len(numbers) == 3 else (60, 1)
    rest = sum(number * unit for number, unit in zip(numbers, units, strict=False))
    return float(int(match["days"] or 0) * 86_400 + rest)


def warning_lead_s(run: RunDir) -> int:
    """Return how many seconds before its end a job is warned: enough for a step and a save, as measured by the run."""
    try:
        takes_s = float(read_json(run.rank_progress(0))["stop_takes_s"])
    except (OSError, ValueError, KeyError):
        return LEAD_S
    return max(LEAD_S, math.ceil(LEAD_MARGIN_S + 2 * takes_s))


def build_sbatch_options(
    launch: LaunchConfig,
    *,
    workers: int,
    device: str,
    cores: int,
    name: str,
    cwd: str,
    log: Path,
    lead: int,
    seeds: ArraySeeds | None,
) -> tuple[str, ...]:
    """Return all options of sbatch, one argument each; `workers` and `cores` are per node.

    GPUs are requested per node: with `--gpus` for the whole job, every step of a job of several nodes is refused.
    """
    slurm, extra = launch.slurm, dict(launch.slurm.extra)
    has_gpus = "gpus-per-node" in extra or "gpu" in extra.get("gres", "")
    options = {
        "job-name": name,
        "nodes": str(launch.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(cores),
        **({"gpus-per-node": str(workers)} if device == "cuda" and not has_gpus else {}),
        **{name: value for name in SAME_NAME_OPTIONS if (value := getattr(slurm, name))},
        **({"array": str(seeds)} if seeds else {}),
        "chdir": cwd,
        "output": str(log),
        "open-mode": "append",
        "signal": f"B:USR1@{lead}",
        "export": "ALL",
        "requeue": "",
        **({"no-kill": ""} if launch.min_nodes is not None else {}),  # else Slurm ends the job with any of its nodes
        **extra,
    }
    return tuple(f"--{name}={value}" if value else f"--{name}" for name, value in options.items())


def build_job_environment(launch: LaunchConfig, source: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of sbatch, and so of the job: the workers' variables, the user's, and the snapshot's path.

    Values are passed by the environment, as other users can read command lines.
    """
    merged = {**environment, **launch.extra_env}
    bin_folder, modules = str(Path(sys.executable).parent), merged.get("PYTHONPATH")
    excluded = {*JOB_VARIABLES, *WORKER_VARIABLES, *_EXCLUDED_SBATCH_VARIABLES}
    for_slurm = {
        name: value for name, value in environment.items() if name in _SLURM_VARIABLES or name.startswith("SBATCH_")
    }
    for_site = {name: value for name, value in environment.items() if name.startswith(_MODULE_PREFIXES)}
    passed = {**forwarded_variables(environment), **for_slurm, **for_site}
    umask = {name: value for name, value in environment.items() if name == "FMFSD_UMASK"}
    return {
        **{name: value for name, value in passed.items() if name not in excluded},
        **umask,
        **launch.extra_env,
        "PATH": f"{bin_folder}:{merged.get('PATH', '/usr/bin:/bin')}",
        "PYTHONPATH": f"{source}:{modules}" if modules else str(source),
        "FMFSD_CLUSTER_DIR": str(source / "cluster"),
    }


def build_launch_arguments(
    launch: LaunchConfig, config: Path, folder: Path, *, workers: int, device: str
) -> tuple[str, ...]:
    """Return the arguments of `fmfsd-launch` inside the job; outside of a job they would submit it once more."""
    slurm, min_nodes = launch.slurm, launch.min_nodes
    options = {
        "--run-dir": folder,
        "--on": "slurm",
        **({"--nodes": launch.nodes} if min_nodes is None else {"--elastic": f"{min_nodes}:{launch.nodes}"}),
        "--gpus": workers,
        "--device": device,
        "--starter": launch.starter,
        "--grace": f"{launch.grace_s:g}",
        "--hang-timeout": f"{launch.hang_timeout_s:g}",
        "--max-restarts": launch.max_restarts,
        "--interface": launch.interface,
        **{f"--{name}": getattr(slurm, name) for name in ("array", *SAME_NAME_OPTIONS)},
        "--cpus-per-gpu": slurm.cpus_per_gpu,
    }
    preflight = {None: (), True: ("--preflight",), False: ("--no-preflight",)}[launch.preflight]
    pairs = [(name, str(value)) for name, value in options.items() if value is not None]
    pairs += [("--sbatch-arg", f"{key}={value}" if value else key) for key, value in slurm.extra]
    pairs += [("--srun-arg", f"{key}={value}" if value else key) for key, value in slurm.srun]
    pairs += [("--wrap", shlex.join(launch.wrap))] if launch.wrap else []
    pairs += [("--env", name) for name in launch.extra_env]
    return (str(config), *(part for pair in pairs for part in pair), *preflight)
