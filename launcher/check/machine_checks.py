"""Whether this machine has what a launch needs: GPUs, software, space, loopback."""

import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from fmfsd.config import RunConfig
from fmfsd.errors import Problem
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import nearest_visible
from fmfsd.system.compilers import missing_for_compile
from fmfsd.system.kernel_cache import privacy_problem
from launcher.agent.health import loopback_trouble
from launcher.config.launch_config import LaunchConfig
from launcher.resources.cost_probe import Costs
from launcher.resources.site import Site

TESTED_TORCH = ("2.11", "2.16")
"""The first version that works, and the first that was not tried."""
FREE_BYTES = 320 << 20
"""What is wanted free where nothing is known of a checkpoint's size."""
ALSO_KEPT = 2
"""Beside the newest checkpoints: the best one, and the one that is being written."""


NO_GPU_REMEDY = "see `nvidia-smi` and `fmfsd-launch doctor`, or train on the CPU with --device cpu"


def no_gpus(launch: LaunchConfig, site: Site) -> Iterator[Problem]:
    """That no GPU of this machine can be used, although it has some, or was granted some."""
    if site.is_here and launch.device != "cpu" and (trouble := site.resources.gpu_trouble):
        yield Problem(f"--device {launch.device}", f"{trouble}: {NO_GPU_REMEDY}")


def unsupported_gpus(launch: LaunchConfig, site: Site) -> Iterator[str]:
    if site.is_here and launch.device == "auto" and site.resources.amd_gpus and not site.resources.gpus:
        yield "this machine has AMD GPUs, which are not supported: workers compute on the CPU"


def too_few_gpus(launch: LaunchConfig, site: Site) -> Iterator[Problem]:
    device, workers = site.placement(launch)
    wanted, found = launch.nodes * workers, site.gpus_for(launch)
    if device == "cuda" and wanted > found:
        advice = f"set --gpus {found // launch.nodes}" if found >= launch.nodes else "set --device cpu"
        each = f"{launch.nodes} x {workers} workers need a GPU each"
        yield Problem("--nodes, --gpus", f"{each}, {found} visible: {advice}")


def not_compiled(config: RunConfig, launch: LaunchConfig, site: Site) -> Iterator[Problem]:
    """What `train.compile` asks for and this machine has not; of others nothing is known."""
    if config.train.compile in ("auto", False) or not site.is_here:
        return
    if missing := missing_for_compile(site.placement(launch)[0]):
        yield Problem("train.compile", f"can't work here, {missing}; or set false")


def left_to_eager(config: RunConfig, launch: LaunchConfig, site: Site) -> Iterator[str]:
    """That `train.compile: auto` will not compile on this machine's GPUs; nothing is known of other machines."""
    on_our_gpus = site.is_here and site.placement(launch)[0] == "cuda"
    if config.train.compile == "auto" and on_our_gpus and (missing := missing_for_compile("cuda")):
        yield f"passes will not be compiled, and training takes longer: {missing}"


def private_kernels(launch: LaunchConfig, site: Site) -> Iterator[str]:
    """That workers on this machine's CPU will do without our kernels; nothing is known of other machines."""
    if site.is_here and site.placement(launch)[0] == "cpu" and (problem := privacy_problem()):
        yield f"our kernels for CPUs will not be used, and training takes longer: {problem}"


def no_cuda_graphs(config: RunConfig, launch: LaunchConfig, site: Site) -> Iterator[Problem]:
    """What the launch of a step as one CUDA graph can't be combined with."""
    if config.train.compile != "cuda_graphs":
        return
    if launch.device == "cpu" or (site.is_here and site.placement(launch)[0] != "cuda"):
        yield Problem("train.compile", "cuda_graphs are a GPU's, and workers are on the CPU: set true or false")
    elif (workers := site.workers(launch)) > 1:
        yield Problem("train.compile", f"cuda_graphs are for one worker, found {workers}: set true, or --gpus 1")


def software() -> Iterator[Problem]:
    for package in ("torch", "torchvision"):
        if find_spec(package) is None:
            yield Problem(package, "not installed in this environment: install fmfsd with its dependencies")
            return
    first, beyond = (tuple(map(int, text.split("."))) for text in TESTED_TORCH)
    try:
        found = tuple(int(part) for part in version("torch").split("+")[0].split(".")[:2])
    except (PackageNotFoundError, ValueError):
        return
    if not first <= found < beyond:
        yield Problem("torch", f"version {version('torch')} is not between {TESTED_TORCH[0]} and {TESTED_TORCH[1]}")


def loopback(site: Site) -> Iterator[Problem]:
    """Nodes of one machine meet there."""
    if site.is_here and (trouble := loopback_trouble()):
        yield Problem("loopback", f"{trouble}: bring the interface lo up, as `ip link set lo up` does")


def too_little_space(run: RunDir, wanted: int = FREE_BYTES) -> Iterator[Problem]:
    """`wanted` in bytes."""
    place = nearest_visible(run.path)
    if (free := shutil.disk_usage(place).free) < wanted:
        yield Problem(
            str(place),
            f"{free >> 20} MiB free, a run needs at least {wanted >> 20}: free some or choose another --run-dir",
        )


def checkpoints_bytes(config: RunConfig, costs: Costs) -> int:
    """What all checkpoints that a run has at a time take."""
    return checkpoint_bytes(config, costs) * (config.checkpoint.keep + ALSO_KEPT) or FREE_BYTES


def checkpoint_bytes(config: RunConfig, costs: Costs) -> int:
    """What one takes: weights, what the optimizer keeps, and averages. 0 if that is not known."""
    values = costs.parameters * (1 + config.optim.kept_per_weight + (config.train.ema is not None))
    return values * (8 if config.train.precision == "fp64" else 4)
