"""What a batch job is asked of Slurm: sbatch's options and the job's environment, as values."""

import math
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fmfsd.errors import ConfigError, Problem
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json
from launcher.config.array_seeds import Seeds
from launcher.config.environment import OWN as WORKERS_OWN
from launcher.config.environment import travelling
from launcher.config.launch_config import LaunchConfig, SlurmOptions

LEAD_S = 180
"""From the warning that time is nearly up to its end; Slurm may send it up to 60 s early."""
LEAD_BEYOND_S = 60
JOBS_OWN = ("CUDA_VISIBLE_DEVICES", "TMPDIR")
"""Variables that a job has of its own."""

PLAIN = ("partition", "account", "qos", "time", "mem")
"""Options that sbatch has under the same name."""
OWN = (
    *("array", "chdir", "error", "export", "export-file", "get-user-env", "help", "hold", "input", "nodes", "ntasks"),
    *("ntasks-per-node", "ntasks-per-gpu", "ntasks-per-core", "ntasks-per-socket", "open-mode", "output", "parsable"),
    *("requeue", "no-requeue", "signal", "test-only", "usage", "version", "wait", "wrap"),
)
"""Options of sbatch that are the launcher's, or would keep it from its work."""
STEPS_OWN = (
    *("cpus-per-task", "error", "exclude", "export", "help", "het-group", "input", "jobid", "kill-on-bad-exit"),
    *("label", "multi-prog", "nodelist", "nodes", "ntasks", "ntasks-per-node", "output", "overlap", "pty", "quiet"),
    *("relative", "test-only", "unbuffered", "usage", "version", "wait"),
)
"""Options of srun that are the launcher's, or would keep it from talking to the agents."""
REFUSED = {
    "container": "would run the coordinator in the container, where Slurm's commands are missing: use --wrap",
    "container-id": "would run the coordinator in the container, where Slurm's commands are missing: use --wrap",
    "gpus": "asks for GPUs of the whole job, not of each node: use --gpus, or --sbatch-arg gpus-per-node=TYPE:N",
}
"""Options of sbatch with which a launch can't work, and why."""
_OPTION = re.compile(r"[a-z][a-z0-9]+(?:-[a-z0-9]+)*")
_TIME = re.compile(r"(?:(?P<days>[0-9]{1,5})-)?(?P<rest>[0-9]{1,7}(?::[0-9]{1,3}){0,2})")
_NOT_FOR_US = ("SBATCH_WAIT", "SBATCH_ARRAY_INX", "SBATCH_TEST_ONLY")
"""Of sbatch's variables those that would make it wait, or submit something else."""
_OF_MODULES = (
    *("BASH_ENV", "MODULEPATH", "MODULEPATH_ROOT", "MODULERCFILE", "MODULESHOME", "MODULE_VERSION"),
    *("BASH_FUNC_", "LMOD_", "MODULES_"),
)
"""Beginnings of variables by which env.sh can call `module`. Not among them: which modules are loaded, as not all that
these have set is passed on."""
_OF_SLURM = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS")


def slurm_options(
    asked: Mapping[str, str | None],
    *,
    more: Sequence[str],
    srun: Sequence[str] = (),
    cpus_per_gpu: int | None,
    wait: bool,
) -> SlurmOptions:
    """Of the command line: `asked` by the field's name, `more` (of sbatch) and `srun` as KEY=VALUE.

    ConfigError with all that is wrong.
    """
    pairs = [(f"--{name}", value) for name, value in asked.items() if value is not None]
    extra, steps = _pairs(more), _pairs(srun)
    wrong = [Problem(name, _unfit(value)) for name, value in pairs if _unfit(value)]
    wrong += [Problem(f"--sbatch-arg {key!a}", words) for key, value in extra if (words := _unfit_option(key, value))]
    wrong += [Problem(f"--srun-arg {key!a}", words) for key, value in steps if (words := _unfit_step(key, value))]
    time = asked.get("time")
    if time is not None and not wrong and seconds(time) is None:
        wrong.append(Problem(f"--time {time!a}", "expected Slurm's form: minutes, hours:minutes:seconds or days-hours"))
    if asked.get("array") is not None:
        try:
            Seeds.parse(str(asked["array"]))
        except ConfigError as error:
            wrong += error.problems
    if wrong:
        raise ConfigError(wrong)
    return SlurmOptions(**asked, cpus_per_gpu=cpus_per_gpu, extra=extra, srun=steps, wait=wait)


def _pairs(given: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Of KEY=VALUE, or KEY alone."""
    return tuple((key, value) for key, _, value in (text.partition("=") for text in given))


def _unfit_step(key: str, value: str) -> str:
    """Why srun does not get such an option; empty if it does."""
    if not _OPTION.fullmatch(key):
        return "expected the long name of an option of srun, as in container-image=IMAGE"
    if any(own.startswith(key) for own in STEPS_OWN):  # srun takes the beginning of a name for the name
        return "is the launcher's own"
    return _unfit(value) if value else ""


def _unfit(value: str) -> str:
    """Why Slurm does not get such a value; empty if it does."""
    if not value or value.startswith("-") or not value.isprintable():
        return f"{value!a} is no value: expected visible characters, the first one no dash"
    return ""


def _unfit_option(key: str, value: str) -> str:
    if not _OPTION.fullmatch(key):
        return "expected the long name of an option of sbatch, as in constraint=a100, or exclusive"
    if key in REFUSED:
        return REFUSED[key]
    if (key, value) == ("requeue", "expedite"):  # since Slurm 25.11
        return ""
    if any(own.startswith(key) for own in OWN):  # sbatch takes the beginning of a name for the name
        return "is the launcher's own"
    return _unfit(value) if value else ""


def seconds(time: str) -> float | None:
    """Of Slurm's `--time`; None if it is none."""
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


def lead_s(run: RunDir) -> int:
    """How long before its end a job is to hear of it: enough for a step and a save, as far as the run has measured."""
    try:
        takes_s = float(read_json(run.rank_progress(0))["stop_takes_s"])
    except (OSError, ValueError, KeyError):
        return LEAD_S
    return max(LEAD_S, math.ceil(LEAD_BEYOND_S + 2 * takes_s))


def sbatch_options(
    launch: LaunchConfig,
    *,
    workers: int,
    device: str,
    cores: int,
    name: str,
    cwd: str,
    log: Path,
    lead: int,
    seeds: Seeds | None,
) -> tuple[str, ...]:
    """All options of sbatch, each one argument; `workers` and `cores` are a node's.

    GPUs are asked for a node: with `--gpus` for the whole job, every step of a job of several nodes is refused.
    """
    asked, given = launch.slurm, dict(launch.slurm.extra)
    has_gpus = "gpus-per-node" in given or "gpu" in given.get("gres", "")
    options = {
        "job-name": name,
        "nodes": str(launch.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(cores),
        **({"gpus-per-node": str(workers)} if device == "cuda" and not has_gpus else {}),
        **{name: value for name in PLAIN if (value := getattr(asked, name))},
        **({"array": str(seeds)} if seeds else {}),
        "chdir": cwd,
        "output": str(log),
        "open-mode": "append",
        "signal": f"B:USR1@{lead}",
        "export": "ALL",
        "requeue": "",
        **({"no-kill": ""} if launch.min_nodes is not None else {}),  # else Slurm ends the job with any of its nodes
        **given,
    }
    return tuple(f"--{name}={value}" if value else f"--{name}" for name, value in options.items())


def job_environment(launch: LaunchConfig, source: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """All that sbatch itself gets, and so the job: what travels to workers, what the user adds, and where the copy of
    the program is. So no value stands in a command line, where others could read it."""
    asked = {**environment, **launch.extra_env}
    bin_folder, modules = str(Path(sys.executable).parent), asked.get("PYTHONPATH")
    set_by_others = {*JOBS_OWN, *WORKERS_OWN, *_NOT_FOR_US}
    for_slurm = {name: value for name, value in environment.items() if name in _OF_SLURM or name.startswith("SBATCH_")}
    for_site = {name: value for name, value in environment.items() if name.startswith(_OF_MODULES)}
    kept = {**travelling(environment), **for_slurm, **for_site}
    umask = {name: value for name, value in environment.items() if name == "FMFSD_UMASK"}
    return {
        **{name: value for name, value in kept.items() if name not in set_by_others},
        **umask,
        **launch.extra_env,
        "PATH": f"{bin_folder}:{asked.get('PATH', '/usr/bin:/bin')}",
        "PYTHONPATH": f"{source}:{modules}" if modules else str(source),
        "FMFSD_CLUSTER_DIR": str(source / "cluster"),
    }


def inner_arguments(launch: LaunchConfig, config: Path, folder: Path, *, workers: int, device: str) -> tuple[str, ...]:
    """What `fmfsd-launch` is told inside the job; outside of one it would submit the same job once more."""
    asked, fewest = launch.slurm, launch.min_nodes
    options = {
        "--run-dir": folder,
        "--on": "slurm",
        **({"--nodes": launch.nodes} if fewest is None else {"--elastic": f"{fewest}:{launch.nodes}"}),
        "--gpus": workers,
        "--device": device,
        "--starter": launch.starter,
        "--grace": f"{launch.grace_s:g}",
        "--hang-timeout": f"{launch.hang_timeout_s:g}",
        "--max-restarts": launch.max_restarts,
        "--interface": launch.interface,
        **{f"--{name}": getattr(asked, name) for name in ("array", *PLAIN)},
        "--cpus-per-gpu": asked.cpus_per_gpu,
    }
    tries = {None: (), True: ("--preflight",), False: ("--no-preflight",)}[launch.preflight]
    given = [(name, str(value)) for name, value in options.items() if value is not None]
    given += [("--sbatch-arg", f"{key}={value}" if value else key) for key, value in asked.extra]
    given += [("--srun-arg", f"{key}={value}" if value else key) for key, value in asked.srun]
    given += [("--wrap", shlex.join(launch.wrap))] if launch.wrap else []
    given += [("--env", name) for name in launch.extra_env]
    return (str(config), *(part for pair in given for part in pair), *tries)
