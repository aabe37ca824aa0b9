"""Checks that this machine has what a launch needs: GPUs, software, disk space, loopback."""

import shutil
from collections.abc import Iterator

from fmfsd.config import RunConfig
from fmfsd.errors import Problem
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import nearest_visible
from fmfsd.system.compile_requirements import find_missing_compiler
from fmfsd.system.kernel_cache import find_privacy_problem
from launcher.agent.health import loopback_problem
from launcher.config.launch_config import LaunchConfig
from launcher.resources.config_cost import Costs
from launcher.resources.site import Site

FREE_BYTES = 320 << 20
"""Required free space if the size of a checkpoint is unknown."""
EXTRA_CHECKPOINTS = 2
"""Checkpoints in addition to the newest ones: the best one, and the one that is being written."""


NO_GPU_REMEDY = "see `nvidia-smi` and `fmfsd-launch doctor`, or train on the CPU with --device cpu"


def check_gpus_usable(launch: LaunchConfig, site: Site) -> Iterator[Problem]:
    """Check that the GPUs that this machine has, or was granted, are usable."""
    if site.is_here and launch.device != "cpu" and (problem := site.resources.gpu_trouble):
        yield Problem(f"--device {launch.device}", f"{problem}: {NO_GPU_REMEDY}")


def warn_unsupported_gpus(launch: LaunchConfig, site: Site) -> Iterator[str]:
    if site.is_here and launch.device == "auto" and site.resources.amd_gpus and not site.resources.gpus:
        yield "this machine has AMD GPUs, which are not supported: workers compute on the CPU"


def check_enough_gpus(launch: LaunchConfig, site: Site) -> Iterator[Problem]:
    device, workers = site.placement(launch)
    required, available = launch.nodes * workers, site.count_gpus(launch)
    if device == "cuda" and required > available:
        advice = f"set --gpus {available // launch.nodes}" if available >= launch.nodes else "set --device cpu"
        each = f"{launch.nodes} x {workers} workers need a GPU each"
        yield Problem("--nodes, --gpus", f"{each}, {available} visible: {advice}")


def check_compilers(config: RunConfig, launch: LaunchConfig, site: Site) -> Iterator[Problem]:
    """Check that this machine has what `train.compile` requires; other machines are not known."""
    if config.train.compile in ("auto", False) or not site.is_here:
        return
    if missing := find_missing_compiler(site.placement(launch)[0]):
        yield Problem("train.compile", f"can't work here, {missing}; or set false")


def warn_not_compiled(config: RunConfig, launch: LaunchConfig, site: Site) -> Iterator[str]:
    """Warn if `train.compile: auto` can't compile on this machine's GPUs; other machines are not known."""
    on_our_gpus = site.is_here and site.placement(launch)[0] == "cuda"
    if config.train.compile == "auto" and on_our_gpus and (missing := find_missing_compiler("cuda")):
        yield f"passes will not be compiled, and training takes longer: {missing}"


def warn_no_cpu_kernels(launch: LaunchConfig, site: Site) -> Iterator[str]:
    """Warn if workers on this machine's CPU can't use our kernels; other machines are not known."""
    if site.is_here and site.placement(launch)[0] == "cpu" and (problem := find_privacy_problem()):
        yield f"our kernels for CPUs will not be used, and training takes longer: {problem}"


def check_cuda_graphs(config: RunConfig, launch: LaunchConfig, site: Site) -> Iterator[Problem]:
    """Check that `train.compile: cuda_graphs` is used with one worker on a GPU."""
    if config.train.compile != "cuda_graphs":
        return
    if launch.device == "cpu" or (site.is_here and site.placement(launch)[0] != "cuda"):
        yield Problem("train.compile", "cuda_graphs need a GPU, and workers use the CPU: set true or false")
    elif (workers := site.count_workers(launch)) > 1:
        yield Problem("train.compile", f"cuda_graphs support one worker, found {workers}: set true, or --gpus 1")


def check_loopback(site: Site) -> Iterator[Problem]:
    """Check that loopback works, over which the nodes of one machine connect."""
    if site.is_here and (problem := loopback_problem()):
        yield Problem("loopback", f"{problem}: bring the interface lo up, as `ip link set lo up` does")


def check_disk_space(run: RunDir, required: int = FREE_BYTES) -> Iterator[Problem]:
    """Check that `required` bytes are free."""
    folder = nearest_visible(run.path)
    if (free := shutil.disk_usage(folder).free) < required:
        yield Problem(
            str(folder),
            f"{free >> 20} MiB free, a run needs at least {required >> 20}: free some or choose another --run-dir",
        )


def total_checkpoint_bytes(config: RunConfig, costs: Costs) -> int:
    """Return the bytes of all checkpoints that a run stores at the same time."""
    return checkpoint_bytes(config, costs) * (config.checkpoint.keep + EXTRA_CHECKPOINTS) or FREE_BYTES


def checkpoint_bytes(config: RunConfig, costs: Costs) -> int:
    """Return the bytes of one checkpoint: weights, optimizer state, EMA. 0: unknown."""
    values = costs.parameters * (1 + config.optim.state_per_weight + (config.train.ema is not None))
    return values * (8 if config.train.precision == "fp64" else 4)
