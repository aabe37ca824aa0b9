"""From config and resources to a plan: every command, variable and folder of a launch, as a value."""

import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fmfsd.rundir import RunDir
from launcher.config import LaunchConfig
from launcher.environment import shown, travelling
from launcher.pulses import SLOW_STATES_S
from launcher.resources import Resources

RENDEZVOUS, INIT_METHOD, ATTEMPT, RUN_ID, SCRATCH = "{rendezvous}", "{init_method}", "{attempt}", "{id}", "{scratch}"
"""Symbols for what is only known when an attempt starts. Each is a whole argument, so no path of a user's is one."""

JOIN_TIMEOUT_S = 120
KEEP_ALIVE_S = 60
"""How often a torchrun tells the others that it lives, which makes their file grow; our agents know it anyway."""
AFTER_HANG_S = 15
"""A worker gives up waiting for others only after the coordinator has looked who it is that hangs."""
_TORCHRUN = "torch.distributed.run"

KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(16 << 30)}
"""glibc would give every large tensor back to the kernel, which clears its pages again in the next step
(`python -m tests.benchmarks.train` shows what that costs on the CPU)."""


@dataclass(frozen=True)
class NodePlan:
    """What a node's agent starts: a command, its whole environment, and where."""

    node: int
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str

    def filled(self, symbols: Mapping[str, str]) -> "NodePlan":
        """With what is known now in the symbols' places."""
        return replace(
            self,
            argv=tuple(symbols.get(part, part) for part in self.argv),
            env={name: symbols.get(value, value) for name, value in self.env.items()},
        )


@dataclass(frozen=True)
class LaunchPlan:
    """One launch on this machine: a command for each node, and the one that prepares the data first, if need be."""

    run_dir: str
    device: str
    workers_per_node: int
    nodes: tuple[NodePlan, ...]
    prepare: tuple[str, ...] = ()

    @property
    def num_workers(self) -> int:
        return self.workers_per_node * len(self.nodes)

    def summary(self) -> str:
        """`2 workers on cpu, 1 node agent`."""
        counts = {"worker": self.num_workers, "node agent": len(self.nodes)}
        workers, nodes = (f"{count} {what}{'' if count == 1 else 's'}" for what, count in counts.items())
        return f"{workers} on {self.device}, {nodes}"

    def to_json(self) -> str:
        """Byte-stable; secrets are masked."""
        content = {
            "run_dir": self.run_dir,
            "device": self.device,
            "workers": self.num_workers,
            "prepare": list(self.prepare),
            "nodes": [
                {
                    "node": node.node,
                    "cwd": node.cwd,
                    "argv": list(node.argv),
                    "env": {name: shown(name, value) for name, value in sorted(node.env.items())},
                }
                for node in self.nodes
            ],
        }
        return json.dumps(content, indent=2) + "\n"

    def render(self) -> str:
        """What a person would type."""
        lines = [f"# run directory {self.run_dir}: {self.summary()}; words in braces are filled in at the start"]
        if self.prepare:
            lines += ["# first, as the data is not prepared yet", shlex.join(self.prepare)]
        for node in self.nodes:
            variables = [f"{name}={shlex.quote(shown(name, value))}" for name, value in sorted(node.env.items())]
            command = " \\\n    ".join(["env -i", *variables, shlex.join(node.argv)])
            lines += [f"# node {node.node}", f"cd {shlex.quote(node.cwd)}", command]
        return "\n".join(lines)


def plan_run(
    launch: LaunchConfig,
    resources: Resources,
    run: RunDir,
    slots: Sequence[int] | None = None,
    *,
    environment: Mapping[str, str],
    cwd: str,
    prepare: tuple[str, ...] = (),
) -> LaunchPlan:
    """The plan of `launch`, which has passed the checks, on this machine.

    `slots`: which of the launch's nodes are used, as some may have been lost; None: all. They are numbered anew.
    """
    device, workers = placement(launch, resources)
    chosen = range(launch.nodes) if slots is None else slots
    nodes = tuple(
        NodePlan(
            node=node,
            argv=_torchrun(len(chosen), run, node, workers, device),
            env={
                **travelling(environment),
                **_own_variables(launch, resources, slot, workers, device),
                **_threads(environment, resources, len(chosen) * workers),
                **launch.extra_env,
            },
            cwd=cwd,
        )
        for node, slot in enumerate(chosen)
    )
    return LaunchPlan(str(run.path), device, workers, nodes, prepare)


def placement(launch: LaunchConfig, resources: Resources) -> tuple[str, int]:
    """The device, and the workers on each node."""
    device = launch.device if launch.device != "auto" else ("cuda" if resources.gpus else "cpu")
    if launch.gpus is not None:
        return device, launch.gpus
    return device, max(1, len(resources.gpus) // launch.nodes) if device == "cuda" else 1


def _torchrun(nodes: int, run: RunDir, node: int, workers: int, device: str) -> tuple[str, ...]:
    """One node's torchrun. The nodes meet at a file, so nothing listens outside loopback; a restart is a new attempt.

    torchrun numbers the nodes by sorting their addresses, so each gets a loopback address of its own, in order.
    """
    options = {
        "--nnodes": str(nodes),
        "--nproc-per-node": str(workers),
        "--rdzv-backend": "c10d",
        "--rdzv-conf": f"store_type=file,join_timeout={JOIN_TIMEOUT_S},keep_alive_interval={KEEP_ALIVE_S}",
        "--rdzv-endpoint": RENDEZVOUS,
        "--rdzv-id": RUN_ID,
        "--local-addr": f"127.0.{1 + node // 100}.{100 + node % 100}",
        "--max-restarts": "0",
        "--log-dir": SCRATCH,
    }
    starter = (sys.executable, "-P", "-m", _TORCHRUN, *(part for option in options.items() for part in option))
    return (*starter, "-m", "fmfsd", "train", str(run.path), "--device", device)


def _own_variables(launch: LaunchConfig, resources: Resources, slot: int, workers: int, device: str) -> dict[str, str]:
    gpus = resources.gpus[slot * workers : (slot + 1) * workers] if device == "cuda" else ()
    return {
        "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        "FMFSD_ATTEMPT": ATTEMPT,
        "FMFSD_COLLECTIVE_TIMEOUT_S": f"{max(launch.hang_timeout_s, SLOW_STATES_S) + AFTER_HANG_S:g}",
        "FMFSD_INIT_METHOD": INIT_METHOD,
        "FMFSD_LOG_TO_FILE": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "PYTHONSAFEPATH": "1",  # no module of the folder that the launch was started in
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(math.ceil(launch.grace_s)),  # the option is unknown to torch 2.11
        **(KEEP_FREED_MEMORY if device == "cpu" else {}),
    }


def _threads(environment: Mapping[str, str], resources: Resources, workers: int) -> dict[str, str]:
    """The caller's own number of threads a worker, else an equal share of the cores."""
    asked = environment.get("OMP_NUM_THREADS")
    return {"OMP_NUM_THREADS": asked or str(max(1, resources.cores // workers))}
