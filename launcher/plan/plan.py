"""From config and resources to a plan: every command, variable and folder of a launch, as a value."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fmfsd.run.run_dir import RunDir
from launcher.agent.network import MACHINES_OWN
from launcher.agent.resources import core_list
from launcher.config.environment import OWN, shown, travelling
from launcher.config.launch_config import LaunchConfig
from launcher.plan.placeholders import ATTEMPT, INIT_METHOD, INTERFACE, NCCL_INTERFACE
from launcher.plan.starters import Crew, Start, start_of
from launcher.resources.site import Site
from launcher.transport.agent_client import AGENT
from launcher.transport.wrap import INSIDE, python_inside

SLOW_STATES_S = 120.0
"""Importing, meeting, loading and saving may take as long without a sign of life, whatever --hang-timeout says."""
PLACING_THREADS = (
    *("FMFSD_CORES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "KMP_HW_SUBSET"),
    *("OMP_NUM_THREADS", "OMP_PLACES", "OMP_PROC_BIND"),
)
"""Whose caller has thoughts of his own on which cores do what."""
AFTER_HANG_S = 15
"""A worker gives up waiting for others only after the coordinator has looked who it is that hangs."""

KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(16 << 30)}
"""glibc would give every large tensor back to the kernel, which clears its pages again in the next step
(`python -m tests.benchmarks.train` shows what that costs on the CPU)."""


@dataclass(frozen=True)
class NodePlan:
    """What a node's agent starts: a command, its whole environment, and where.

    `host` is empty for this machine; `agent` is the command that becomes, or leads to, the agent. Variables that it
    `inherits` are the agent's own. `workers` has the variables of each worker that is started by this command; without
    any, the command is what starts them.
    """

    node: int
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    host: str = ""
    agent: tuple[str, ...] = AGENT
    inherits: tuple[str, ...] = ()
    workers: tuple[Mapping[str, str], ...] = ()

    def filled(self, symbols: Mapping[str, str]) -> "NodePlan":
        """With what is known now in the symbols' places."""
        return replace(
            self,
            argv=tuple(symbols.get(part, part) for part in self.argv),
            env={name: symbols.get(value, value) for name, value in self.env.items()},
        )

    def commands(self) -> list[str]:
        """Each command that its agent starts, as a person would type it; secrets are masked."""
        environments = [{**self.env, **own} for own in self.workers or ({},)]
        return [_typed(self.argv, env) for env in environments]


@dataclass(frozen=True)
class LaunchPlan:
    """One launch: a command for each node, and the one that prepares the data first, if need be.

    The nodes meet at a file on this machine or, if it is but one, on their own; or at an address of the first one.
    Sockets in the scratch folder want it to have at most `longest_scratch` characters.
    """

    run_dir: str
    device: str
    workers_per_node: int
    nodes: tuple[NodePlan, ...]
    prepare: tuple[str, ...] = ()
    interface: str | None = None
    longest_scratch: int = 4096
    scratch_parent: str = ""
    """Where the scratch folder of nodes on this machine is, if they don't see its usual place; empty: they do."""

    @property
    def is_here(self) -> bool:
        """Whether its nodes are on this machine."""
        return not self.nodes[0].host

    @property
    def meets_at(self) -> Literal["file here", "file there", "address"]:
        if self.is_here:
            return "file here"
        return "file there" if len(self.nodes) == 1 else "address"

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
                    "host": node.host or None,
                    "agent": list(node.agent),
                    "cwd": node.cwd,
                    "argv": list(node.argv),
                    "env": {name: shown(name, value) for name, value in sorted(node.env.items())},
                    **({"workers": [dict(sorted(each.items())) for each in node.workers]} if node.workers else {}),
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
            lines += [
                f"# node {node.node}{f', whose agent is {shlex.join(node.agent)}' if node.host else ''}",
                f"cd {shlex.quote(node.cwd)}",
                " &\n".join(node.commands()),
            ]
        return "\n".join(lines)


def _typed(argv: Sequence[str], env: Mapping[str, str]) -> str:
    variables = [f"{name}={shlex.quote(shown(name, value))}" for name, value in sorted(env.items())]
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
    """The plan of `launch`, which has passed the checks.

    `slots`: which of the launch's nodes are used, as some may have been lost; None: all. They are numbered anew.
    """
    device, workers = site.placement(launch)
    chosen = range(launch.nodes) if slots is None else slots
    starts = _starts(launch, site, run, chosen)
    nodes = tuple(
        NodePlan(
            node=node,
            argv=starts[node].argv,
            env={
                **travelling_to(site, environment),
                **_own_variables(launch, device),
                **starts[node].env,
                **(_here(site, slot, workers, device) if site.is_here else _there(len(chosen), environment)),
                **_threads(environment, site.cores_a_node(len(chosen)) // workers),
                **_cores({**environment, **launch.extra_env}, site, len(chosen), node, workers, device),
                **launch.extra_env,
            },
            cwd=cwd,
            host=site.host(slot),
            agent=site.agent(site.host(slot), environment),
            inherits=INSIDE if site.is_wrapped else (),
            workers=starts[node].workers,
        )
        for node, slot in enumerate(chosen)
    )
    parent = str(run.path) if site.is_here and site.is_wrapped else ""
    prepare = (*launch.wrap, *python_inside(prepare)) if prepare and launch.wrap else prepare
    return LaunchPlan(str(run.path), device, workers, nodes, prepare, launch.interface, scratch_parent=parent)


def _starts(launch: LaunchConfig, site: Site, run: RunDir, slots: Sequence[int]) -> list[Start]:
    """For each node: what starts its workers."""
    device, workers = site.placement(launch)
    by_number, sliced = tuple(map(str, range(workers))), site.is_here and device == "cuda"
    crew = Crew(
        node=0,
        worker=("fmfsd", "train", str(run.path), "--device", device),
        device=device,
        gpus=tuple(_slice(site, slot, workers) if sliced else by_number for slot in slots),
        at_a_file=site.is_here or len(slots) == 1,
        grace_s=launch.grace_s,
    )
    return [start_of(launch.starter, replace(crew, node=node)) for node in range(len(slots))]


def travelling_to(site: Site, environment: Mapping[str, str]) -> dict[str, str]:
    """What workers there get from the caller's environment."""
    not_theirs = (*OWN, *(INSIDE if site.is_wrapped else ()))
    found = {name: value for name, value in travelling(environment).items() if name not in not_theirs}
    return found if site.is_here else {name: value for name, value in found.items() if name not in MACHINES_OWN}


def _own_variables(launch: LaunchConfig, device: str) -> dict[str, str]:
    return {
        "FMFSD_ATTEMPT": ATTEMPT,
        "FMFSD_COLLECTIVE_TIMEOUT_S": f"{max(launch.hang_timeout_s, SLOW_STATES_S) + AFTER_HANG_S:g}",
        "FMFSD_LOG_TO_FILE": "1",
        **({"FMFSD_PREFLIGHT": "1"} if launch.tries_nodes_first else {}),
        "PYTHONSAFEPATH": "1",  # no module of the folder that the launch was started in
        **(KEEP_FREED_MEMORY if device == "cpu" else {}),
    }


def _here(site: Site, slot: int, workers: int, device: str) -> dict[str, str]:
    """Each node has its own slice of this machine's visible GPUs."""
    gpus = _slice(site, slot, workers) if device == "cuda" else ()
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus), **_AT_A_FILE}


def _slice(site: Site, slot: int, workers: int) -> tuple[str, ...]:
    return site.resources.gpus[slot * workers : (slot + 1) * workers]


def _there(nodes: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Who has chosen NCCL's interface has done so for a reason: it may be another than the one nodes meet over."""
    if nodes == 1:
        return _AT_A_FILE
    return {
        "GLOO_SOCKET_IFNAME": INTERFACE,
        "NCCL_SOCKET_IFNAME": environment.get("NCCL_SOCKET_IFNAME", NCCL_INTERFACE),
    }


_AT_A_FILE = {
    "FMFSD_INIT_METHOD": INIT_METHOD,
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "=lo",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}


def _cores(
    environment: Mapping[str, str], site: Site, nodes: int, node: int, workers: int, device: str
) -> dict[str, str]:
    """What the node's workers divide among themselves, a core each at least; a caller who places threads does so alone.

    With a GPU a worker belongs near it, which a slice of all cores does not know of.
    """
    if device != "cpu" or site.cores_a_node(nodes) < workers or any(map(environment.get, PLACING_THREADS)):
        return {}
    if site.reach == "ray":  # which counts cores, and has other work for those that are left
        return {}
    if not site.is_here:
        return {"FMFSD_CORES": "all"}
    numbers = site.resources.core_numbers
    share = len(numbers) // nodes
    return {"FMFSD_CORES": core_list(numbers[node * share : (node + 1) * share])} if share >= workers else {}


def _threads(environment: Mapping[str, str], share: int) -> dict[str, str]:
    """The caller's own number of threads a worker, else an equal share of the node's cores."""
    return {"OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS") or str(max(1, share))}
