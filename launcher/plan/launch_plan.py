"""Builds the plan of a launch from config and resources: every command, variable and folder, as a value."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fmfsd.run.run_dir import RunDir
from launcher.agent.available_resources import format_core_list
from launcher.agent.network import MACHINE_VARIABLES
from launcher.config.environment import LAUNCHER_VARIABLES, forwarded_variables, mask_secret
from launcher.config.launch_config import LaunchConfig
from launcher.plan.placeholders import ATTEMPT, INIT_METHOD, INTERFACE, NCCL_INTERFACE
from launcher.plan.starters import NodeWorkers, StartCommand, build_start_command
from launcher.resources.site import Site
from launcher.transport.agent_client import AGENT_COMMAND
from launcher.transport.wrap_command import WRAPPER_VARIABLES, with_python_fallback

MIN_PHASE_TIMEOUT_S = 120.0
"""Minimum timeout of imports, rendezvous, loading and saving, which give no heartbeat; --hang-timeout can't shorten
it."""
THREAD_PLACEMENT_VARIABLES = (
    *("FMFSD_CORES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "KMP_HW_SUBSET"),
    *("OMP_NUM_THREADS", "OMP_PLACES", "OMP_PROC_BIND"),
)
"""If the caller sets one of these, the caller controls which cores run which threads."""
HANG_MARGIN_S = 15
"""A worker gives up a collective only after the coordinator has had time to find the worker that hangs."""

MALLOC_SETTINGS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(16 << 30)}
"""Settings that make glibc reuse freed memory on the CPU.

Otherwise it returns every large tensor to the kernel, which clears the pages again in the next step (`python -m
tests.benchmarks.train` shows the cost).
"""


@dataclass(frozen=True)
class NodePlan:
    """The process that a node's agent starts: a command, its complete environment and its working directory.

    `host`: empty for this machine. `agent`: the command that becomes, or leads to, the agent. `inherits`: variables
    taken from the agent's own environment. `workers`: the variables of each worker, for which this command is started;
    if empty, the command is a starter that starts the workers.
    """

    node: int
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    host: str = ""
    agent: tuple[str, ...] = AGENT_COMMAND
    inherits: tuple[str, ...] = ()
    workers: tuple[Mapping[str, str], ...] = ()

    def fill_placeholders(self, values: Mapping[str, str]) -> "NodePlan":
        """Return the plan with `values` in place of the placeholders."""
        return replace(
            self,
            argv=tuple(values.get(part, part) for part in self.argv),
            env={name: values.get(value, value) for name, value in self.env.items()},
        )

    def render_commands(self) -> list[str]:
        """Return each command that the agent starts, as a user would type it; secrets are masked."""
        environments = [{**self.env, **variables} for variables in self.workers or ({},)]
        return [_render_command(self.argv, env) for env in environments]


@dataclass(frozen=True)
class LaunchPlan:
    """Plan of one launch: a command per node, and in `prepare` a command that prepares the data first, if needed.

    For the rendezvous, nodes use a file on this machine; a single remote node uses its own file; several machines use
    an address of the first node. `max_scratch_length`: limit for the length of the scratch folder's path, which sockets
    need.
    """

    run_dir: str
    device: str
    workers_per_node: int
    nodes: tuple[NodePlan, ...]
    prepare: tuple[str, ...] = ()
    interface: str | None = None
    max_scratch_length: int = 4096
    scratch_parent: str = ""
    """Parent of the scratch folder if nodes on this machine do not see the default one; empty: the default."""

    @property
    def is_here(self) -> bool:
        """Return whether the nodes are on this machine."""
        return not self.nodes[0].host

    @property
    def rendezvous_place(self) -> Literal["file here", "file there", "address"]:
        """Return where the nodes find each other."""
        if self.is_here:
            return "file here"
        return "file there" if len(self.nodes) == 1 else "address"

    @property
    def num_workers(self) -> int:
        return self.workers_per_node * len(self.nodes)

    def summary(self) -> str:
        """Return a short description: `2 workers on cpu, 1 node agent`."""
        counts = {"worker": self.num_workers, "node agent": len(self.nodes)}
        workers, nodes = (f"{count} {noun}{'' if count == 1 else 's'}" for noun, count in counts.items())
        return f"{workers} on {self.device}, {nodes}"

    def to_json(self) -> str:
        """Return byte-stable JSON with masked secrets."""
        content = {
            "run_dir": self.run_dir,
            "device": self.device,
            "workers": self.num_workers,
            "prepare": list(self.prepare),
            "nodes": [
                {
                    "node": node.node,
                    "host": node.host or None,
                    "agent": list(node.agent),
                    "cwd": node.cwd,
                    "argv": list(node.argv),
                    "env": {name: mask_secret(name, value) for name, value in sorted(node.env.items())},
                    **(
                        {"workers": [dict(sorted(variables.items())) for variables in node.workers]}
                        if node.workers
                        else {}
                    ),
                }
                for node in self.nodes
            ],
        }
        return json.dumps(content, indent=2) + "\n"

    def render(self) -> str:
        """Return the commands that a user would type."""
        lines = [f"# run directory {self.run_dir}: {self.summary()}; placeholders in braces are filled in at the start"]
        if self.prepare:
            lines += ["# first, because the data set is not prepared yet", shlex.join(self.prepare)]
        for node in self.nodes:
            lines += [
                f"# node {node.node}{f', agent: {shlex.join(node.agent)}' if node.host else ''}",
                f"cd {shlex.quote(node.cwd)}",
                " &\n".join(node.render_commands()),
            ]
        return "\n".join(lines)


def _render_command(argv: Sequence[str], env: Mapping[str, str]) -> str:
    variables = [f"{name}={shlex.quote(mask_secret(name, value))}" for name, value in sorted(env.items())]
    return " \\\n    ".join(["env -i", *variables, shlex.join(argv)])


def plan_run(
    launch: LaunchConfig,
    site: Site,
    run: RunDir,
    slots: Sequence[int] | None = None,
    *,
    environment: Mapping[str, str],
    cwd: str,
    prepare: tuple[str, ...] = (),
) -> LaunchPlan:
    """Return the plan of `launch`, which has passed the checks.

    `slots`: the launch's nodes to use, since some may have been lost; None: all. They are renumbered from 0.
    """
    device, workers = site.placement(launch)
    used_slots = range(launch.nodes) if slots is None else slots
    starts = _start_commands(launch, site, run, used_slots)
    nodes = tuple(
        NodePlan(
            node=node,
            argv=starts[node].argv,
            env={
                **forwarded_variables_for(site, environment),
                **_launcher_variables(launch, device),
                **starts[node].env,
                **(
                    _local_variables(site, slot, workers, device)
                    if site.is_here
                    else _remote_variables(len(used_slots), environment)
                ),
                **_thread_variables(environment, site.cores_per_node(len(used_slots)) // workers),
                **_core_variables({**environment, **launch.extra_env}, site, len(used_slots), node, workers, device),
                **launch.extra_env,
            },
            cwd=cwd,
            host=site.host(slot),
            agent=site.agent_command(site.host(slot), environment),
            inherits=WRAPPER_VARIABLES if site.is_wrapped else (),
            workers=starts[node].workers,
        )
        for node, slot in enumerate(used_slots)
    )
    parent = str(run.path) if site.is_here and site.is_wrapped else ""
    prepare = (*launch.wrap, *with_python_fallback(prepare)) if prepare and launch.wrap else prepare
    return LaunchPlan(str(run.path), device, workers, nodes, prepare, launch.interface, scratch_parent=parent)


def _start_commands(launch: LaunchConfig, site: Site, run: RunDir, slots: Sequence[int]) -> list[StartCommand]:
    """Return the start command of each node's workers."""
    device, num_workers = site.placement(launch)
    gpu_numbers, has_gpu_slices = tuple(map(str, range(num_workers))), site.is_here and device == "cuda"
    workers_of_node = NodeWorkers(
        node=0,
        worker=("fmfsd", "train", str(run.path), "--device", device),
        device=device,
        gpus=tuple(_gpu_slice(site, slot, num_workers) if has_gpu_slices else gpu_numbers for slot in slots),
        uses_file_rendezvous=site.is_here or len(slots) == 1,
        grace_s=launch.grace_s,
    )
    return [build_start_command(launch.starter, replace(workers_of_node, node=node)) for node in range(len(slots))]


def forwarded_variables_for(site: Site, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that workers at this site get from the caller's environment."""
    excluded = (*LAUNCHER_VARIABLES, *(WRAPPER_VARIABLES if site.is_wrapped else ()))
    variables = {name: value for name, value in forwarded_variables(environment).items() if name not in excluded}
    return (
        variables
        if site.is_here
        else {name: value for name, value in variables.items() if name not in MACHINE_VARIABLES}
    )


def _launcher_variables(launch: LaunchConfig, device: str) -> dict[str, str]:
    return {
        "FMFSD_ATTEMPT": ATTEMPT,
        "FMFSD_COLLECTIVE_TIMEOUT_S": f"{max(launch.hang_timeout_s, MIN_PHASE_TIMEOUT_S) + HANG_MARGIN_S:g}",
        "FMFSD_LOG_TO_FILE": "1",
        **({"FMFSD_PREFLIGHT": "1"} if launch.runs_preflight else {}),
        "PYTHONSAFEPATH": "1",  # never import modules from the working directory
        **(MALLOC_SETTINGS if device == "cpu" else {}),
    }


def _local_variables(site: Site, slot: int, workers: int, device: str) -> dict[str, str]:
    """Return the variables of a node on this machine: each node gets its own slice of the visible GPUs."""
    gpus = _gpu_slice(site, slot, workers) if device == "cuda" else ()
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus), **_FILE_RENDEZVOUS}


def _gpu_slice(site: Site, slot: int, workers: int) -> tuple[str, ...]:
    return site.resources.gpus[slot * workers : (slot + 1) * workers]


def _remote_variables(nodes: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the network variables of a remote node.

    A value of NCCL_SOCKET_IFNAME set by the caller is preserved: NCCL may need another interface than the rendezvous.
    """
    if nodes == 1:
        return _FILE_RENDEZVOUS
    return {
        "GLOO_SOCKET_IFNAME": INTERFACE,
        "NCCL_SOCKET_IFNAME": environment.get("NCCL_SOCKET_IFNAME", NCCL_INTERFACE),
    }


_FILE_RENDEZVOUS = {
    "FMFSD_INIT_METHOD": INIT_METHOD,
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "=lo",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}


def _core_variables(
    environment: Mapping[str, str], site: Site, nodes: int, node: int, workers: int, device: str
) -> dict[str, str]:
    """Return the cores that a node's workers share, at least one each; none if the caller places threads.

    Not set with GPUs: a worker should run near its GPU, which an equal slice of the cores can't consider.
    """
    if device != "cpu" or site.cores_per_node(nodes) < workers or any(map(environment.get, THREAD_PLACEMENT_VARIABLES)):
        return {}
    if site.transport == "ray":  # Ray only counts cores, and uses the other cores for other work
        return {}
    if not site.is_here:
        return {"FMFSD_CORES": "all"}
    numbers = site.resources.core_numbers
    share = len(numbers) // nodes
    return {"FMFSD_CORES": format_core_list(numbers[node * share : (node + 1) * share])} if share >= workers else {}


def _thread_variables(environment: Mapping[str, str], share: int) -> dict[str, str]:
    """Return the caller's number of threads per worker, else an equal share of the node's cores."""
    return {"OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS") or str(max(1, share))}
